"""The oldest systems that a Core ML package can be made for, and which precision needs a newer one."""

from __future__ import annotations

from edgeclip.errors import UsageError
from edgeclip.manifest import Precision

SYSTEMS: dict[str, int] = {"iOS17": 8, "macOS14": 8, "iOS18": 9, "macOS15": 9}
"""Name → version of the model specification that it reads. Source: coremltools, `AvailableTarget`."""
DEFAULT = "iOS17"
_NEEDS: dict[Precision, str] = {"w4a16": "iOS18"}
"""Blocks of 4-bit integers with a scale each exist from there on."""


def deployment(precision: Precision, asked: str | None = None) -> str:
    """The system to make a package for: the one that is asked for, or else the oldest that can run the precision.

    Raises:
        UsageError: there is no such system, or it cannot run the precision.
    """
    least = _NEEDS.get(precision, DEFAULT)
    if asked is None:
        return least
    check(asked)
    if SYSTEMS[asked] < SYSTEMS[least]:
        raise UsageError(f"coreml {precision} needs {least}, not {asked}", hint=f"--coreml-target {least}")
    return asked


def check(system: str) -> None:
    """
    Raises:
        UsageError: there is no such system.
    """
    if system not in SYSTEMS:
        raise UsageError(f"unknown Core ML target {system!r}", hint=f"one of: {', '.join(SYSTEMS)}")
