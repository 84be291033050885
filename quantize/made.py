"""What a producer makes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Made:
    """One quantized tower."""

    files: dict[str, bytes]
    """Contents of the artifact's files, by name."""
    quantized: frozenset[str]
    """Names of the layers whose weights or inputs really became integers, read from the result."""
