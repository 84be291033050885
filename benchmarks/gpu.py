"""TensorRT on this GPU, beside PyTorch: `python -m edgeclip.benchmarks.gpu BUNDLE… --peer CHECKPOINT`.

One table says of each engine how long it took to build and to load, how large it is, and how close it is to the fp32
reference at batches inside and outside its profile; the other how long a batch takes from the host's memory to the
host's memory, with CUDA graphs and without, interleaved with PyTorch in half precision.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgeclip import backends
from edgeclip.backends.base import Array, Embeddings, Options, Session
from edgeclip.benchmarks import environment, report, timing
from edgeclip.benchmarks.gpu_peer import GpuPeer, ids_of, pixels_of
from edgeclip.benchmarks.timing import Estimate
from edgeclip.bundle import Bundle
from edgeclip.cli import machine, tables
from edgeclip.errors import EdgeClipError, UsageError
from edgeclip.golden import Golden
from edgeclip.manifest import Artifact, Tower

SCHEMA = "edgeclip.gpu/1"
PARITY_BATCHES = (1, 3, 8, 32, 33, 70)
"""Sizes of the profile, an odd one, and two beyond its largest, which are run in parts."""
SPEED_BATCHES = (1, 8, 32)
DEVICE = "cuda:0"
ENGINES = ("bundle", "tower", "precision", "ONNX MB", "plan MB", "build s", "load s", *map(str, PARITY_BATCHES), "note")
SPEEDS = ("bundle", "tower", "batch", "contender", "p50 ms", "95 % CI", "times faster than eager", "95 % CI ")


@dataclass(frozen=True)
class Built:
    """One engine: how it came about, and how close it is."""

    bundle: str
    tower: Tower
    precision: str
    onnx_bytes: int
    plan_bytes: int = 0
    build_s: float = 0.0
    cached: bool = False
    """It was not built now: `build_s` is from then."""
    load_s: float = 0.0
    cosine_min: tuple[float, ...] = ()
    """Lowest cosine to the fp32 reference, for each of `PARITY_BATCHES`."""
    graphs_differ: float = 0.0
    """Largest difference of an embedding's element with and without CUDA graphs."""
    failure: str = ""


@dataclass(frozen=True)
class Speed:
    """One contender at one batch size."""

    bundle: str
    tower: Tower
    batch: int
    contender: str
    p50_ms: Estimate
    ratio: Estimate | None
    """How many times faster than PyTorch eager."""


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--peer", "checkpoint", type=click.Path(exists=True, path_type=Path), help="Checkpoint of the first bundle."
)
@click.option("--seconds", default=1.0, show_default=True, help="For each contender and batch.")
@click.option("--report", type=click.Path(path_type=Path), help="Write REPORT.json and REPORT.md.")
@click.option("--note", default="", help="Said in the report's heading.")
def main(bundles: tuple[Path, ...], checkpoint: Path | None, seconds: float, report: Path | None, note: str) -> None:
    """Build, load, compare and time the TensorRT artifacts of BUNDLES on the first GPU."""
    try:
        document, engines, speeds = measure(bundles, checkpoint, seconds, note)
    except EdgeClipError as exc:
        raise SystemExit(f"error: {exc}") from exc
    text = to_markdown(document, engines, speeds)
    click.echo(text)
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        report.with_suffix(".md").write_text(text, encoding="utf-8")
    if any(one.failure for one in engines):
        raise SystemExit(1)


def measure(
    bundles: Sequence[Path], checkpoint: Path | None, seconds: float, note: str = ""
) -> tuple[dict[str, Any], list[Built], list[Speed]]:
    """All of the report: the document, and its two tables.

    Raises:
        TargetUnavailableError: TensorRT or a GPU is missing.
        UsageError: a bundle has nothing for TensorRT.
    """
    backends.get("tensorrt")
    from edgeclip.backends import cuda

    gpu = str(cuda.describe(0))
    click.echo(gpu, err=True)
    engines: list[Built] = []
    speeds: list[Speed] = []
    for number, path in enumerate(bundles):
        of_bundle = Subject.open(path, checkpoint if number == 0 else None)
        engines += of_bundle.engines()
        speeds += of_bundle.speeds(seconds)
    document = {
        "schema": SCHEMA,
        "gpu": gpu,
        "note": note,
        "versions": _versions(),
        "env": environment.describe(1),
        "engines": [asdict(one) for one in engines],
        "speeds": [asdict(one) for one in speeds],
    }
    return document, engines, speeds


class Subject:
    """One bundle's TensorRT artifacts, and the peer with the same weights where there is one."""

    def __init__(self, bundle: Bundle, name: str, checkpoint: Path | None) -> None:
        self._bundle = bundle
        self._name = name
        self._golden = Golden.from_bytes(bundle.read(bundle.manifest.golden))
        self._checkpoint = checkpoint
        self.artifacts = [a for a in bundle.manifest.artifacts if a.target == "tensorrt"]

    @classmethod
    def open(cls, path: Path, checkpoint: Path | None) -> Subject:
        """
        Raises:
            UsageError: the bundle has nothing for TensorRT.
        """
        subject = cls(Bundle.open(path), path.stem, checkpoint)
        if not subject.artifacts:
            raise UsageError(f"{path}: no artifact for tensorrt", hint="edgeclip export --target tensorrt")
        return subject

    def engines(self) -> list[Built]:
        """Build and compare each artifact."""
        return [self._built(artifact) for artifact in self.artifacts]

    def speeds(self, seconds: float) -> list[Speed]:
        """Time each tower at each batch size."""
        return [speed for tower in ("image", "text") for speed in self._tower_speeds(tower, seconds)]

    def _built(self, artifact: Artifact) -> Built:
        from edgeclip.backends import cuda, trt_engines

        onnx = self._bundle.files(artifact)[artifact.file]
        about = partial(Built, self._name, artifact.tower, artifact.precision, len(onnx))
        click.echo(f"{self._name} {artifact.file}", err=True)
        try:
            engine = trt_engines.obtain(artifact, onnx, cuda.describe(0), tick=lambda seconds: None)
            started = time.perf_counter()
            with self._session(artifact) as session:
                load_s = time.perf_counter() - started
                cosines = tuple(self._cosine(session, artifact.tower, size) for size in PARITY_BATCHES)
                differ = self._graphs_differ(artifact, session)
        except EdgeClipError as exc:
            return about(failure=exc.message)
        return about(len(engine.plan), engine.seconds, engine.cached, load_s, cosines, differ)

    def _cosine(self, session: Session, tower: Tower, batch: int) -> float:
        inputs, wanted = self._rows(tower, batch)
        found = [session.run(inputs) for _ in range(3)]  # as it is, recorded, replayed
        return min(float((one * wanted).sum(axis=1).min()) for one in found)

    def _graphs_differ(self, artifact: Artifact, session: Session) -> float:
        inputs, _ = self._rows(artifact.tower, 8)
        with self._session(artifact, graphs=False) as plain:
            return float(np.abs(session.run(inputs) - plain.run(inputs)).max())

    def _rows(self, tower: Tower, batch: int) -> tuple[Array, Embeddings]:
        """Golden inputs over and over, and what they must become."""
        golden = self._golden
        inputs, wanted = (
            (golden.pixels, golden.image_embeddings) if tower == "image" else (golden.ids, golden.text_embeddings)
        )
        rows = np.arange(batch) % len(inputs)
        return inputs[rows], wanted[rows]

    @contextmanager
    def _session(self, artifact: Artifact, *, graphs: bool = True) -> Iterator[Session]:
        from edgeclip.backends import trt

        with _environment(trt.GRAPHS_VARIABLE, str(int(graphs))):
            session = trt.open(artifact, self._bundle.files(artifact), Options(DEVICE))
        try:
            yield session
        finally:
            session.close()

    def _tower_speeds(self, tower: Any, seconds: float) -> Iterator[Speed]:
        for batch in SPEED_BATCHES:
            with self._contenders(tower, batch) as calls:
                click.echo(f"{self._name} {tower}, batch {batch}: {', '.join(calls)}", err=True)
                samples = timing.time_calls(calls, budget_s=seconds, min_queries=20, warmup=8)
            eager = next((name for name in samples if name == EAGER), None)
            for name, some in samples.items():
                ratio = timing.ratio(samples[eager], some) if eager and name != eager else None
                yield Speed(self._name, tower, batch, name, timing.median(some * 1e3), ratio)

    @contextmanager
    def _contenders(self, tower: Tower, batch: int) -> Iterator[dict[str, Callable[[], object]]]:
        inputs, _ = self._rows(tower, batch)
        calls: dict[str, Callable[[], object]] = {}
        sessions: list[Session] = []
        try:
            for artifact in (a for a in self.artifacts if a.tower == tower):
                for graphs in (True, False):
                    manager = self._session(artifact, graphs=graphs)
                    try:
                        sessions.append(manager.__enter__())
                    except EdgeClipError:
                        continue  # it is in the table of engines, with its reason
                    label = f"edgeclip {artifact.precision}" + ("" if graphs else ", no CUDA graphs")
                    calls[label] = partial(sessions[-1].run, inputs)
            yield calls | self._peers(tower, inputs)
        finally:
            for session in sessions:
                session.close()

    def _peers(self, tower: Tower, inputs: Array) -> dict[str, Callable[[], object]]:
        if self._checkpoint is None:
            return {}
        spec = self._bundle.manifest.preprocess
        ready = pixels_of(inputs, spec) if tower == "image" else ids_of(inputs)
        peers = {EAGER: GpuPeer(self._checkpoint, DEVICE, compiled=False)}
        peers[COMPILED] = GpuPeer(self._checkpoint, DEVICE, compiled=True)
        return {name: partial(getattr(peer, tower), ready) for name, peer in peers.items()}


EAGER = "PyTorch fp16, eager"
COMPILED = "PyTorch fp16, torch.compile"


def to_markdown(document: dict[str, Any], engines: Sequence[Built], speeds: Sequence[Speed]) -> str:
    """One page."""
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items() if version)
    parts = [
        "# TensorRT on a GPU",
        f"{document['gpu']}. {versions}.",
        *([document["note"]] if document["note"] else []),
        "## Engines\n\nLowest cosine to the fp32 reference on the golden inputs, by batch size; sizes beyond the "
        "profile are run in parts.\n\n" + report.grid(ENGINES, [_engine_row(one) for one in engines]),
        "## Speed\n\nFrom inputs in the host's memory to embeddings there, contenders interleaved in one process.\n\n"
        + report.grid(SPEEDS, [_speed_row(one) for one in speeds]),
    ]
    return "\n\n".join(parts) + "\n"


def _engine_row(one: Built) -> list[str]:
    start = [one.bundle, one.tower, one.precision, f"{one.onnx_bytes / 1e6:.1f}"]
    if one.failure:
        return [*start, *[""] * (len(ENGINES) - len(start) - 1), tables.clean(one.failure)]
    note = f"CUDA graphs change elements by {one.graphs_differ:.1g}" if one.graphs_differ else ""
    cosines = [f"{cosine:.6f}" for cosine in one.cosine_min]
    return [*start, f"{one.plan_bytes / 1e6:.1f}", f"{one.build_s:.1f}", f"{one.load_s:.2f}", *cosines, note]


def _speed_row(one: Speed) -> list[str]:
    row = [one.bundle, one.tower, str(one.batch), one.contender, f"{one.p50_ms.value:.3f}"]
    return [
        *row,
        report.interval(one.p50_ms, 3),
        f"{one.ratio.value:.2f}" if one.ratio else "",
        report.interval(one.ratio, 2),
    ]


def _versions() -> dict[str, str | None]:
    from edgeclip.backends import trt_library

    names = ("torch", "transformers", "cuda-bindings", "numpy")
    return {"TensorRT": trt_library.version()} | {name: machine.version_of(name) for name in names}


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


if __name__ == "__main__":
    main()
