"""`edgeclip demo --export`: the whole way, from a checkpoint to labels, on this machine."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgeclip.bundle import Bundle
from edgeclip.cli import classify as classifying
from edgeclip.cli import export as exporting
from edgeclip.cli import progress
from edgeclip.cli import verify as verifying
from edgeclip.cli.classify import RANDOM, Classified
from edgeclip.cli.clock import Clock, median_ms
from edgeclip.cli.hashing import hash_files
from edgeclip.cli.options import Engine, need_export
from edgeclip.cli.output import Output
from edgeclip.cli.photographs import carried_by
from edgeclip.errors import TargetUnavailableError
from edgeclip.manifest import Target
from edgeclip.outcome import JUDGES, raise_if_failed
from edgeclip.templates import photo

if TYPE_CHECKING:
    from edgeclip.backends.base import Embeddings
    from edgeclip.train.models.config import ClipConfig

ARCHITECTURE = "ViT-B-32"
TARGETS: tuple[Target, ...] = ("onnx", "openvino")
LABELS = ("a temple", "a flower", "a cat", "a street", "a bowl of soup")
REPEATS = 9


@dataclass(frozen=True)
class Tried:
    """What one backend made of the photographs."""

    backend: str
    load_s: float
    image_ms: float
    """Median of one photograph, decoding included."""
    text_ms: float
    """Median of one text."""
    embeddings: Embeddings = field(repr=False)
    found: list[Classified]


def export_demo(output: Output, tokenizer: str | None, out: Path | None) -> None:
    """Make a ViT-B/32 with random weights, export it, verify it on every backend, embed and classify two photographs.

    Nothing is downloaded. About a minute and 2 GB of disk.

    Args:
        tokenizer: `tokenizer.json`, or OpenAI's merges; None takes those of an installed open_clip.
        out: keep the checkpoint and the bundle here.
    """
    need_export()
    with progress.steps(output) as begin:
        begin("loading PyTorch")
        from edgeclip.train.models.config import load_config
    config = load_config(ARCHITECTURE)
    if out is not None:
        run(output, config, tokenizer, out)
        output.line(f"kept in {out}")
        return
    with tempfile.TemporaryDirectory(prefix="edgeclip-demo-") as folder:
        run(output, config, tokenizer, Path(folder))


def run(output: Output, config: ClipConfig, tokenizer: str | None, folder: Path) -> None:
    """All steps, in `folder`; prints each as it is done."""
    clock = Clock()
    output.document["random_weights"] = True
    checkpoint, path = folder / f"{config.name}-random", folder / f"{config.name}-random.edgeclip"
    with clock.step("checkpoint"), progress.steps(output) as begin:
        begin(f"making a {config.name} with random weights")
        from edgeclip.export.demo_checkpoint import write_demo_checkpoint

        write_demo_checkpoint(checkpoint, config, tokenizer=tokenizer)
    with clock.step("export"):
        export(output, checkpoint, path)
    with clock.step("verify"):
        verify(output, path)
    photographs = carried_by("sklearn")
    with clock.step("embed and classify"):
        tried = [try_backend(output, path, name, photographs) for name in usable()] if photographs else []
    show(output, tried)
    output.document["seconds"] = clock.rounded()
    output.facts("Time", {name: f"{seconds:.1f} s" for name, seconds in clock.seconds.items()})
    if not photographs:
        output.line("No photographs to embed: pip install scikit-learn brings two.")
    output.line(RANDOM)


def export(output: Output, checkpoint: Path, path: Path) -> None:
    """Export to every target whose backend is installed.

    Raises:
        ParityError: an artifact is below its gate.
    """
    from edgeclip.export.pipeline import export as make
    from edgeclip.export.pipeline import plan

    targets: list[Target] = [target for target in TARGETS if JUDGES[target] in usable()]
    jobs = plan(targets, ["fp32"], None)
    with progress.steps(output, len(jobs) + 3) as begin:
        begin("reading the checkpoint")
        source = exporting.open_checkpoint(str(checkpoint), random_weights=True)
        outcomes = make(source, path, jobs, force=True, progress=begin)
    exporting.show(output, outcomes)
    raise_if_failed(outcomes)


def verify(output: Output, path: Path) -> None:
    """Hash the bundle and verify it on every backend.

    Raises:
        ParityError: a backend does not reproduce the reference.
    """
    bundle = Bundle.open(path)
    hash_files(output, bundle)
    plans = verifying.plan(bundle.manifest, Engine("all"), None)
    with progress.steps(output, len(plans)) as begin:
        runs = list(verifying.verify_each(bundle, plans, begin))
    verifying.show(output, runs)
    verifying.raise_if_failed(runs)


def usable() -> list[str]:
    """Backends that run what is exported here, and whose library is installed.

    Raises:
        TargetUnavailableError: there is none.
    """
    from edgeclip import backends

    names = [
        name for name, row in backends.BACKENDS.items() if {*row.targets} & {*TARGETS} and backends.installed(name)
    ]
    if not names:
        raise TargetUnavailableError("no backend is installed", hint="pip install 'edgeclip[onnx,openvino]'")
    return names


def try_backend(output: Output, path: Path, name: str, photographs: list[Path]) -> Tried:
    """Load a backend, embed and classify the photographs, and take the time."""
    started = time.perf_counter()
    with progress.steps(output) as begin:
        begin(f"running {name}")
        with Engine(name).load(path) as model:
            load_s = time.perf_counter() - started
            paths = [str(photograph) for photograph in photographs]
            found, _ = classifying.classify(model, paths, LABELS, photo, len(LABELS), 32, "raise", lambda amount: None)
            return Tried(
                backend=f"{name} {model.info.engine_version}",
                load_s=round(load_s, 3),
                image_ms=round(median_ms(lambda: model.encode_image(photographs[0]), REPEATS), 2),
                text_ms=round(median_ms(lambda: model.encode_text(LABELS[0]), REPEATS), 2),
                embeddings=model.encode_image(paths),
                found=[Classified(Path(one.source).name, one.predictions) for one in found],
            )


def show(output: Output, tried: list[Tried]) -> None:
    """Print speed, agreement between backends, and labels."""
    if not tried:
        return
    cosines = agreement(tried)
    output.document["backends"] = [
        {"backend": t.backend, "load_s": t.load_s, "image_ms": t.image_ms, "text_ms": t.text_ms, "cosine_min": c}
        for t, c in zip(tried, cosines, strict=True)
    ]
    output.document["photographs"] = {t.backend: t.found for t in tried}
    rows = [
        [t.backend, f"{t.load_s:.2f}", f"{t.image_ms:.1f}", f"{t.text_ms:.1f}", f"{c:.6f}"]
        for t, c in zip(tried, cosines, strict=True)
    ]
    columns = ("backend", "load s", "ms a photograph", "ms a text", f"cosine with {tried[0].backend}")
    output.table("Photographs", columns, rows)
    output.table("Labels", ("photograph", "label", *(t.backend for t in tried)), _label_rows(tried))


def agreement(tried: list[Tried]) -> list[float]:
    """For each backend, the lowest cosine of its embeddings with those of the first."""
    first = tried[0].embeddings
    return [round(float((one.embeddings * first).sum(axis=1).min()), 7) for one in tried]


def _label_rows(tried: list[Tried]) -> list[list[str]]:
    rows = []
    for i, one in enumerate(tried[0].found):
        shares = [{p.label: p.probability for p in t.found[i].predictions} for t in tried]
        for rank, best in enumerate(one.predictions):
            rows.append([one.source if rank == 0 else "", best.label, *(f"{s[best.label]:.4f}" for s in shares)])
    return rows
