"""What is measured of a bundle: every artifact that it holds, on the backends of this machine that run it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeclip import backends
from edgeclip.benchmarks.stages import ENCODE, HOST
from edgeclip.bundle import Bundle
from edgeclip.errors import UsageError
from edgeclip.manifest import Artifact, Precision, Target, Tower
from edgeclip.selection import PRECISIONS, describe

REFERENCE = "PyTorch eager"


@dataclass(frozen=True)
class Row:
    """One target at one precision, on one backend."""

    label: str
    bundle: str
    """Its name in the run."""
    path: Path
    target: str
    precision: Precision
    backend: str
    artifacts: tuple[Artifact, ...]
    """One for each tower."""
    size_bytes: int
    missing: str = ""
    """Why it cannot run here; "" where it can."""
    wanted: bool = True
    """Whether it was asked for by name, so that not to run it is a failure."""
    reference: tuple[str, str] | None = None
    """`module:function` and a checkpoint that is timed in the artifact's place."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further ones of `edgeclip.load`."""

    @property
    def stages(self) -> list[str]:
        """Those of the towers that are there."""
        return [stage for stage, tower in ENCODE.items() if tower in self._towers]

    @property
    def host_stages(self) -> list[str]:
        """What the host does for them."""
        return [stage for stage, towers in HOST.items() if {*towers} <= self._towers]

    @property
    def tower(self) -> Tower | None:
        """The only one; None where both are there."""
        return self.artifacts[0].tower if len(self.artifacts) == 1 else None

    @property
    def _towers(self) -> set[Tower]:
        return {artifact.tower for artifact in self.artifacts}

    @property
    def below_gate(self) -> bool:
        """Whether the exporter measured that it broke its bounds."""
        return not all(artifact.parity.passed for artifact in self.artifacts)


def rows_of(
    bundle: Bundle, name: str, targets: Sequence[Target] = (), precisions: Sequence[Precision] = ()
) -> list[Row]:
    """By target, the most precise first.

    Args:
        name: of the bundle, in the run.
        targets, precisions: only these; an artifact that was asked for and has no backend here is a failure.

    Raises:
        UsageError: the bundle has nothing that was asked for.
    """
    held = [a for a in bundle.manifest.artifacts if not targets or a.target in targets]
    held = [a for a in held if not precisions or a.precision in precisions]
    if not held:
        asked = " ".join([*targets, *precisions]) or "anything"
        raise UsageError(
            f"{bundle.path}: no artifact for: {asked}",
            hint=f"it holds: {', '.join(describe(bundle.manifest)) or 'nothing'}",
        )
    sizes = {entry.path: entry.size for entry in bundle.manifest.files}
    found = []
    for target in dict.fromkeys(a.target for a in held):
        for precision in sorted({a.precision for a in held if a.target == target}, key=PRECISIONS.index):
            artifacts = tuple(a for a in held if (a.target, a.precision) == (target, precision))
            size = sum(sizes[file] for a in artifacts for file in a.files)
            for backend, missing in _backends(bundle, target, precision):
                label = f"{target} {precision}" + (f" on {backend}" if backend != _own(target) else "")
                found.append(
                    Row(
                        label=label,
                        bundle=name,
                        path=bundle.path,
                        target=target,
                        precision=precision,
                        backend=backend,
                        artifacts=artifacts,
                        size_bytes=size,
                        missing=missing,
                        wanted=target in targets,
                    )
                )
    return found


def reference(row: Row, maker: str, checkpoint: Path) -> Row:
    """A checkpoint in PyTorch, with the pictures and token ids of a row that can run.

    Args:
        maker: `module:function` that takes the row's model, the checkpoint's path and the number of threads.
    """
    files = [checkpoint] if checkpoint.is_file() else [path for path in checkpoint.rglob("*") if path.is_file()]
    return replace(
        row,
        label=REFERENCE,
        target="checkpoint",
        precision="fp32",
        backend="pytorch",
        size_bytes=sum(path.stat().st_size for path in files),
        reference=(maker, str(checkpoint)),
        options={"backend": row.backend, "precision": row.precision},
    )


def _own(target: str) -> str:
    return next(name for name, entry in backends.BACKENDS.items() if entry.targets[0] == target and entry.automatic)


def _backends(bundle: Bundle, target: Target, precision: Precision) -> Iterator[tuple[str, str]]:
    """Its own, with what it lacks; and those that run it because the bundle has nothing of theirs."""
    own = _own(target)
    yield own, _missing(own)
    for name, entry in backends.BACKENDS.items():
        borrows = name != own and entry.automatic and target in entry.targets
        if borrows and backends.ready(name) and not bundle.artifacts(target=entry.targets[0], precision=precision):
            yield name, ""


def _missing(backend: str) -> str:
    if lacking := backends.missing(backend):
        return f"needs {' and '.join(lacking)}: {backends.remedy(backend)}"
    return "" if backends.ready(backend) else "no device of its kind is here"
