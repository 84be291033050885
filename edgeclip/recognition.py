"""Whether a machine is the device of a profile, and which profile is this machine's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgeclip import profiles
from edgeclip.board import Board
from edgeclip.errors import TargetUnavailableError
from edgeclip.profiles import Profile

AUTO = "auto"
State = Literal["ok", "differs", "not known"]


@dataclass(frozen=True)
class Check:
    """One fact of a device beside what its profile says."""

    what: str
    state: State
    wanted: str
    found: str
    fix: str = ""
    """What to do where it differs or is not known."""

    def __str__(self) -> str:
        return f"{self.what}: {self.found}" + (f", not {self.wanted}" if self.wanted else "")


def compared(what: str, wanted: object, found: object, *, ok: bool, fix: str = "") -> Check:
    """A check of something that is known."""
    return Check(what, "ok" if ok else "differs", str(wanted), str(found), "" if ok else fix)


def identity(profile: Profile, board: Board) -> list[Check]:
    """Whether it is that device, however it is set."""
    told = profile.recognise
    checks = [
        compared("system", told.system, board.system, ok=board.system == told.system),
        compared("machine", " or ".join(told.machine), board.machine, ok=board.machine in told.machine),
    ]
    if told.device_tree:
        ok = any(part in name for part in told.device_tree for name in board.device_tree)
        shown = board.device_tree[:1] if ok else board.device_tree
        found = ", ".join(shown) or "no device tree"
        checks.append(compared("device tree", " or ".join(told.device_tree), found, ok=ok))
    if told.features:
        lacking = [feature for feature in told.features if feature not in board.features]
        found = f"lacks {', '.join(lacking)}" if lacking else "has them"
        checks.append(compared("CPU features", ", ".join(told.features), found, ok=not lacking))
    if told.cpus is not None:
        checks.append(compared("CPUs", told.cpus, board.cpus, ok=board.cpus == told.cpus))
    return checks


def others(checks: Sequence[Check]) -> list[Check]:
    """Those that differ."""
    return [check for check in checks if check.state == "differs"]


def candidates(board: Board) -> list[Profile]:
    """The profiles that edgeclip brings of this device, in whatever power mode."""
    return [profile for profile in profiles.shipped() if not others(identity(profile, board))]


def fitting(board: Board) -> Profile | None:
    """The profile of this device in its power mode; None where there is none, or several."""
    found = candidates(board)
    if len(found) > 1:
        found = [profile for profile in found if profile.power_mode == board.power_mode]
    return found[0] if len(found) == 1 else None


def choose(name: str, board: Board) -> Profile:
    """A profile by its name or path; `auto` is the one that fits.

    Raises:
        UsageError: there is no such profile, or it is damaged.
        TargetUnavailableError: none fits, or the power mode does not tell which.
    """
    if name != AUTO:
        return profiles.load(name)
    profile = fitting(board)
    if profile is not None:
        return profile
    if known := [each.name for each in candidates(board)]:
        raise TargetUnavailableError(
            f"which profile fits is not known: power mode {board.power_mode}", hint=f"name one of: {', '.join(known)}"
        )
    raise TargetUnavailableError(
        f"no profile fits this machine: {board}",
        hint="`edgeclip doctor --profiles` lists them; docs/devices.md says how to write your own",
    )


def refuse_another(profile: Profile, board: Board) -> None:
    """
    Raises:
        TargetUnavailableError: this machine is not the profile's device; naming what differs.
    """
    if differing := others(identity(profile, board)):
        raise TargetUnavailableError(
            f"this machine is not {profile.name}: {'; '.join(map(str, differing))}",
            hint="`edgeclip doctor --profile` finds the profile that fits",
        )
