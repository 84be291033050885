"""Which artifact and which backend run on this device, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeclip import backends
from edgeclip.errors import TargetUnavailableError, UsageError
from edgeclip.manifest import Artifact, Manifest, Precision, Tower

# Accuracy before speed: what loses something is run only where it is asked for or nothing else is there.
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "w8a16", "w8a8", "w6a16", "w4a16")


@dataclass(frozen=True)
class Selection:
    """One backend, one precision, and the artifact of each tower."""

    backend: str
    precision: Precision
    artifacts: dict[Tower, Artifact]
    reason: str


def select(
    manifest: Manifest,
    *,
    backend: str = "auto",
    precision: Precision | None = None,
    towers: Sequence[Tower] | None = None,
    device: str | None = None,
) -> Selection:
    """The first (backend, precision) in order of preference that has every tower asked for.

    Args:
        towers: what must be there; None asks for all towers that the bundle has.
        device: with `auto`, only backends that may have it.

    Raises:
        UsageError: no such backend or precision, or the bundle lacks the artifact.
        TargetUnavailableError: the bundle has artifacts, but this device has no library for any of them.
    """
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}", hint=f"one of: {', '.join(PRECISIONS)}")
    wanted = tuple(towers) if towers else tuple(sorted({a.tower for a in manifest.artifacts}))
    every = [name for name, row in backends.BACKENDS.items() if row.automatic and backends.runs_on(name, device)]
    names = every if backend == "auto" else [backend]
    found = [choice for name in names for choice in _choices(manifest, name, precision, wanted)]
    held = sorted(found, key=_is_borrowed)
    if not held:
        raise _absent(manifest, backend, precision, wanted)
    if backend != "auto":
        return _selection(held[0], "asked for" if precision else "asked for, the most precise that the bundle holds")
    able = {name for name in dict.fromkeys(choice[0] for choice in held) if backends.ready(name)}
    usable = [choice for choice in held if choice[0] in able]
    if not usable:
        remedies = dict.fromkeys(backends.remedy(choice[0]) for choice in held)
        raise TargetUnavailableError(
            f"nothing here runs what the bundle holds ({', '.join(describe(manifest))})",
            hint=" or ".join(remedies),
        )
    return _selection(usable[0], f"first of {', '.join(f'{n} {p}' for n, p, _ in usable)}")


def describe(manifest: Manifest) -> list[str]:
    """What a bundle holds, as `onnx-fp32 (image, text)`."""
    groups: dict[str, list[str]] = {}
    for artifact in manifest.artifacts:
        groups.setdefault(f"{artifact.target}-{artifact.precision}", []).append(artifact.tower)
    return [f"{name} ({', '.join(sorted(towers))})" for name, towers in groups.items()]


Choice = tuple[str, Precision, dict[Tower, Artifact]]


def _choices(manifest: Manifest, name: str, precision: Precision | None, towers: Sequence[Tower]) -> list[Choice]:
    targets = backends.entry(name).targets
    found: list[Choice] = []
    for kind in (precision,) if precision else PRECISIONS:
        artifacts: dict[Tower, Artifact] = {}
        for target in reversed(targets):  # its own last, over all others
            artifacts |= {a.tower: a for a in manifest.artifacts if a.target == target and a.precision == kind}
        if all(tower in artifacts for tower in towers):
            found.append((name, kind, {tower: artifacts[tower] for tower in towers}))
    return found


def _is_borrowed(choice: Choice) -> bool:
    """Whether an artifact was made for another backend, which runs it if it is here."""
    name, _, artifacts = choice
    own = backends.entry(name).targets[0]
    return any(artifact.target != own for artifact in artifacts.values())


def _selection(choice: Choice, reason: str) -> Selection:
    name, precision, artifacts = choice
    return Selection(name, precision, artifacts, reason)


def _absent(manifest: Manifest, backend: str, precision: Precision | None, towers: Sequence[Tower]) -> UsageError:
    asked = " ".join(filter(None, [backend if backend != "auto" else "", precision or "", "+".join(towers)]))
    return UsageError(
        f"the bundle has no artifact for: {asked}",
        hint=f"it holds: {', '.join(describe(manifest)) or 'nothing'}; `edgeclip export` adds more",
    )
