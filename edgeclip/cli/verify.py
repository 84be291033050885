"""`edgeclip verify`: is the bundle intact, and does this device compute what its makers measured?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.bundle import Bundle
from edgeclip.cli import progress
from edgeclip.cli.group import Command, examples
from edgeclip.cli.hashing import hash_files
from edgeclip.cli.options import Engine, bundle_argument, engine_options, tower_option
from edgeclip.cli.output import Output
from edgeclip.cli.parity import COLUMNS, allowed, measured
from edgeclip.errors import BundleError, EdgeClipError, TargetError, TargetUnavailableError
from edgeclip.manifest import Manifest, Tower

if TYPE_CHECKING:
    from edgeclip.parity import Bounds
    from edgeclip.verify import Verification


@dataclass(frozen=True)
class Plan:
    """One engine and one set of artifacts to verify."""

    engine: Engine
    tower: Tower | None

    def __str__(self) -> str:
        parts = (self.engine.backend, self.engine.precision, self.engine.compute, self.tower)
        return " ".join(part for part in parts if part)


@dataclass(frozen=True)
class Run:
    """What verifying gave: a verification, or the error that kept it from being made."""

    plan: Plan
    verification: Verification | None = None
    error: EdgeClipError | None = None


@click.command(
    cls=Command,
    epilog=examples(
        "edgeclip verify b32.edgeclip",
        "edgeclip verify b32.edgeclip --backend all",
        "edgeclip verify b32.edgeclip --backend openvino --compute bf16 --json",
    ),
)
@bundle_argument
@engine_options
@tower_option
@click.pass_obj
def command(output: Output, bundle: Path, engine: Engine, tower: Tower | None) -> None:
    """Hash every file of BUNDLE, then run its golden vectors on this device and compare with the fp32 reference.

    --backend all verifies every backend and precision that the bundle holds and whose library and device are here.
    """
    opened = Bundle.open(bundle)
    count = hash_files(output, opened)
    output.document |= {"bundle": str(bundle), "digest": opened.digest, "files_hashed": count}
    plans = plan(opened.manifest, engine, tower)
    with progress.steps(output, len(plans)) as begin:
        runs = list(verify_each(opened, plans, begin))
    show(output, runs)
    output.line(f"{count} files hashed; {opened.digest}")
    raise_if_failed(runs)


def plan(manifest: Manifest, engine: Engine, tower: Tower | None) -> list[Plan]:
    """What to verify: one plan, or with backend `all` one for each set of artifacts that can be run here.

    Raises:
        TargetUnavailableError: `all`, and nothing can be run.
    """
    if engine.backend != "all":
        return [Plan(engine, tower)]
    plans = list(_all(manifest, engine, tower))
    if not plans:
        from edgeclip.selection import describe

        raise TargetUnavailableError(
            f"no library here runs what is asked of the bundle ({', '.join(describe(manifest))})",
            hint="`edgeclip doctor` says what to install",
        )
    return plans


def verify_each(bundle: Bundle, plans: Sequence[Plan], begin: progress.Step) -> Iterator[Run]:
    """Verify each plan. An engine that cannot be loaded does not keep the others from being verified."""
    from edgeclip.verify import verify

    for one in plans:
        begin(f"verifying {one}")
        try:
            with one.engine.load(bundle.path, one.tower) as model:
                # What `auto` stands for is known now.
                info = model.info
                engine = replace(one.engine, backend=info.backend, precision=info.precision, device=info.device)
                yield Run(replace(one, engine=engine), verify(model))
        except (BundleError, TargetError) as exc:
            if isinstance(exc, BundleError) or len(plans) == 1:
                raise
            yield Run(one, error=exc)


def show(output: Output, runs: Sequence[Run]) -> None:
    """Print every check."""
    output.document["runs"] = [_described(run) for run in runs]
    output.document["passed"] = all(run.verification is not None and run.verification.passed for run in runs)
    rows = [row for run in runs for row in _rows(output, run)]
    output.table("Verification", ("backend", "check", "status", *COLUMNS, "reason"), rows)
    for name, bounds in _bounds(runs).items():
        output.line(allowed(name, bounds))


def raise_if_failed(runs: Sequence[Run]) -> None:
    """
    Raises:
        ParityError: a check failed.
        TargetError: an engine could not be loaded.
    """
    for run in runs:
        if run.verification is not None:
            run.verification.raise_if_failed()
    for run in runs:
        if run.error is not None:
            raise run.error


def _all(manifest: Manifest, engine: Engine, tower: Tower | None) -> Iterator[Plan]:
    from edgeclip import backends
    from edgeclip.selection import PRECISIONS

    every = {artifact.tower for artifact in manifest.artifacts}
    for name, row in backends.BACKENDS.items():
        if not backends.runs_on(name, engine.device) or not {a.target for a in manifest.artifacts} & {*row.targets}:
            continue
        for precision in PRECISIONS if backends.ready(name) else ():
            if engine.precision not in (None, precision):
                continue
            of = {a.tower for a in manifest.artifacts if a.target in row.targets and a.precision == precision}
            held = [t for t in sorted(of) if tower in (None, t)]
            one = replace(engine, backend=name, precision=precision)
            whole = len(held) == len(every) and tower is None
            yield from [Plan(one, None)] if whole and held else [Plan(one, t) for t in held]


def _rows(output: Output, run: Run) -> Iterator[list[str]]:
    if run.verification is None:
        yield [str(run.plan), "load", output.status("failed"), *measured(None), run.error.message if run.error else ""]
        return
    who = f"{run.verification.backend} {_arithmetic(run)}"
    for check in run.verification.checks:
        status = output.status("failed" if check.failures else "ok")
        yield [who, check.name, status, *measured(check.agreement), ", ".join(check.failures)]


def _arithmetic(run: Run) -> str:
    """The artifact's precision, and the engine's arithmetic where it is not that of the graph."""
    precision, compute = run.plan.engine.precision or "", run.plan.engine.compute
    return precision if compute == "f32" else f"{precision} in {compute}"


def _bounds(runs: Sequence[Run]) -> dict[str, Bounds]:
    checks = [(_arithmetic(run), check) for run in runs if run.verification for check in run.verification.checks]
    return {name: check.bounds for name, check in checks if check.bounds is not None}


def _described(run: Run) -> dict[str, Any]:
    engine = run.plan.engine
    return {
        "backend": engine.backend,
        "precision": engine.precision,
        "device": engine.device,
        "compute": engine.compute,
        "tower": run.plan.tower,
        "verification": run.verification,
        "error": run.error.message if run.error else None,
    }
