"""What `edgeclip doctor` shows of device profiles."""

from __future__ import annotations

from collections.abc import Sequence

from edgeclip import board, profiles, recognition
from edgeclip.board import Board
from edgeclip.cli.output import Output
from edgeclip.errors import GateError
from edgeclip.profiles import Profile
from edgeclip.recognition import Check

COLUMNS = ("what", "status", "profile", "this machine", "what to do")
UNMEASURED = "not by us: from documents alone"


def show_all(output: Output) -> None:
    """Print every profile that edgeclip brings, and which of them are of this machine."""
    found, here = profiles.shipped(), board.read()
    fitting = recognition.fitting(here)
    names = {profile.name for profile in recognition.candidates(here)}
    rows = []
    for profile in found:
        mine = "fits" if profile == fitting else "this device, another mode" if profile.name in names else ""
        rows.append([profile.name, profile.title, ", ".join(profile.targets), _measured(profile), mine])
    output.document |= {"profiles": found, "fitting": fitting.name if fitting else None}
    output.table("Device profiles", ("name", "device", "targets", "measured", "this machine"), rows)


def examine(output: Output, name: str) -> None:
    """Print whether this machine is the profile's device and is set as it says.

    Raises:
        UsageError: there is no such profile, or it is damaged.
        TargetUnavailableError: it is another device, or no profile fits.
        GateError: it is that device, set otherwise.
    """
    from edgeclip.benchmarks import readiness
    from edgeclip.benchmarks.conditions import Device

    here, device = board.read(), Device(board.ROOT)
    profile = recognition.choose(name, here)
    rows = [*recognition.identity(profile, here), *readiness.settings(profile, here, device)]
    rows += readiness.means(profile, device)
    output.document |= {"profile": profile, "checks": rows}
    _show(output, profile, rows)
    recognition.refuse_another(profile, here)
    if differing := recognition.others(rows):
        raise GateError(
            f"{len(differing)} of {len(rows)} checks differ from {profile.name}: {'; '.join(map(str, differing))}",
            hint="the table says what to do",
        )


def in_words(here: Board) -> str:
    """Which profile fits a machine."""
    fitting = recognition.fitting(here)
    if fitting is not None:
        return f"{fitting.name} ({_measured(fitting)})"
    if known := [profile.name for profile in recognition.candidates(here)]:
        return f"one of {', '.join(known)}: power mode {here.power_mode}"
    return "none fits"


def _show(output: Output, profile: Profile, checks: Sequence[Check]) -> None:
    output.facts("Profile", _facts(profile))
    cells = [[one.what, output.status(one.state), one.wanted, one.found, one.fix] for one in checks]
    output.table("This machine beside it", COLUMNS, cells)
    if profile.prepare:
        output.table("Before measuring", ("what", "command"), [[step.what, step.command] for step in profile.prepare])


def _facts(profile: Profile) -> dict[str, str]:
    facts = {
        "name": profile.name,
        "device": profile.title,
        "measured": _measured(profile),
        "targets": ", ".join(profile.targets),
        "precision": profile.precision or "",
        "threads": str(profile.threads or "all"),
        "batches": ", ".join(map(str, profile.batches)),
    }
    return {name: value for name, value in facts.items() if value}


def _measured(profile: Profile) -> str:
    if profile.name not in profiles.names():
        return "a profile of your own"
    return "by us" if profile.measured_by_us else UNMEASURED
