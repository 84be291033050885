"""A sample, and a shard of samples: the form in which every source gives its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeclip.train.data.damage import Damage

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif")


@dataclass(frozen=True)
class Sample:
    """One image with all that may be said of it."""

    key: str
    """Unique within the data: shard, then key."""
    image: bytes | Path
    """Encoded."""
    captions: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """Of its class, where captions are made by templates."""


@dataclass(frozen=True)
class Shard:
    """Samples that are read one after the other. Shards can be sent to other processes."""

    name: str
    read: Callable[[Damage], Iterator[Sample]]
    """What cannot be read is counted by the `Damage` that is given."""
    repeat: float = 1.0
    file: Path | None = None
    """Where it lies, if it is a file."""
    source: int = 0
    """Number of its source in the recipe."""
