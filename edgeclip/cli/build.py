"""`edgeclip build`: the TensorRT engines of a bundle, ahead of their first use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from edgeclip.bundle import Bundle
from edgeclip.cli import progress
from edgeclip.cli.group import Command, examples
from edgeclip.cli.options import PRECISIONS, bundle_argument, tower_option
from edgeclip.cli.output import Output
from edgeclip.errors import UsageError
from edgeclip.manifest import Artifact, Manifest, Precision, Tower

BACKEND = "tensorrt"
LIMIT_S = 3600


@dataclass(frozen=True)
class Row:
    """One engine."""

    tower: Tower
    precision: Precision
    seconds: float
    """That building took, now or when it was built."""
    bytes: int
    cached: bool
    power_mode: str
    device_profile: str


@click.command(
    cls=Command,
    epilog=examples(
        "edgeclip build b32.edgeclip", "edgeclip build b32.edgeclip --precision fp16 --device cuda:1 --json"
    ),
)
@bundle_argument
@click.option("--precision", type=click.Choice(PRECISIONS), help="Only this one; all by default.")
@tower_option
@click.option("--device", default="cuda", show_default=True, help="The GPU, as cuda:1.")
@click.option("--rebuild", is_flag=True, help="Build engines that are in the cache, too.")
@click.option(
    "--device-profile", metavar="NAME", default="", help="A name for this device and its set-up, kept beside."
)
@click.option(
    "--time-limit", type=click.FloatRange(min=1), default=LIMIT_S, show_default=True, help="Seconds for one engine."
)
@click.pass_obj
def command(
    output: Output,
    bundle: Path,
    precision: Precision | None,
    tower: Tower | None,
    device: str,
    rebuild: bool,
    device_profile: str,
    time_limit: float,
) -> None:
    """Build the engines of BUNDLE's TensorRT artifacts on this device and keep them in the cache.

    Without this, the first load builds them. Engines fit one kind of GPU, one driver and one version of TensorRT; where
    one of these changes, they are built again.
    """
    from edgeclip import backends

    opened = Bundle.open(bundle)
    wanted = chosen(opened.manifest, precision, tower)
    backends.get(BACKEND)
    from edgeclip.backends import cuda, trt, trt_engines

    gpu = cuda.describe(trt.ordinal_of(device))
    rows = []
    with progress.steps(output, len(wanted)) as begin:
        for artifact in wanted:
            begin(f"building {artifact.file}")
            output.note(f"the engine of {artifact.file} for {gpu.name}; this can take minutes")
            engine = trt_engines.obtain(
                artifact,
                opened.files(artifact)[artifact.file],
                gpu,
                afresh=rebuild,
                device_profile=device_profile,
                limit_s=time_limit,
                tick=lambda passed_s: None,
            )
            size, facts = len(engine.plan), (engine.cached, engine.power_mode, engine.device_profile)
            rows.append(Row(artifact.tower, artifact.precision, round(engine.seconds, 2), size, *facts))
    show(output, gpu, rows)


def chosen(manifest: Manifest, precision: Precision | None, tower: Tower | None) -> list[Artifact]:
    """The artifacts to build.

    Raises:
        UsageError: there is none.
    """
    every = [artifact for artifact in manifest.artifacts if artifact.target == BACKEND]
    found = [a for a in every if precision in (None, a.precision) and tower in (None, a.tower)]
    if not found:
        from edgeclip.selection import describe

        asked = " ".join(filter(None, (BACKEND, precision, tower)))
        raise UsageError(
            f"the bundle has no artifact for: {asked}",
            hint=f"it holds: {', '.join(describe(manifest))}; `edgeclip export --target tensorrt` adds them",
        )
    return found


def show(output: Output, gpu: object, rows: Sequence[Row]) -> None:
    """Print what was built, and where."""
    output.document |= {"gpu": gpu, "engines": [asdict(row) for row in rows]}
    cells = [
        [
            r.tower,
            r.precision,
            f"{r.seconds:.1f}",
            f"{r.bytes / 1e6:.1f}",
            "cached" if r.cached else "built",
            r.power_mode,
        ]
        for r in rows
    ]
    output.table("Engines", ("tower", "precision", "seconds", "plan MB", "", "power mode"), cells)
    output.line(str(gpu))
