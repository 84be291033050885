"""Damaged data: counted, named, and fatal when there is more of it than a recipe allows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

from edgeclip.errors import DataError

_SHOWN = 3
_ENOUGH = 1000
"""Samples that must have been read before a share of them is judged while more come."""


@dataclass
class Damage:
    """What one reader has met."""

    allowed: float = 0.01
    """The share of samples, and of shards, that may be damaged."""
    read: int = 0
    samples: list[str] = field(default_factory=list)
    """Key and reason of each sample that was left out."""
    shards_read: int = 0
    shards: list[str] = field(default_factory=list)
    """Name and reason of each shard that ended early."""

    def begin_shard(self, name: str) -> None:
        """A shard is opened."""
        self.shards_read += 1

    def good(self, count: int = 1) -> None:
        """Samples were read and decoded."""
        self.read += count

    def bad(self, key: str, exc: BaseException) -> None:
        """A sample is left out.

        Raises:
            DataError: there are too many of them by now.
        """
        self.samples.append(f"{key}: {_reason(exc).removeprefix(f'{key}: ')}")
        if self.read + len(self.samples) >= _ENOUGH:
            self._judge_samples()

    def torn(self, name: str, exc: BaseException) -> None:
        """The rest of a shard is lost."""
        self.shards.append(f"{name}: {_reason(exc)}")

    def judge(self) -> None:
        """At the end of a pass over the data.

        Raises:
            DataError: more is damaged than may be.
        """
        share = len(self.shards) / max(self.shards_read, 1)
        if share > self.allowed:
            raise DataError(
                f"{len(self.shards)} of {self.shards_read} shards cannot be read to their end, "
                f"{self.allowed:.1%} may: {_some(self.shards)}",
                hint="get them again, or raise data.max_bad",
            )
        self._judge_samples()
        if self.samples or self.shards:
            some = _some([*self.samples, *self.shards])
            warnings.warn(
                f"{len(self.samples)} samples were left out, {len(self.shards)} shards cut: {some}", stacklevel=2
            )

    def _judge_samples(self) -> None:
        total = self.read + len(self.samples)
        if len(self.samples) > self.allowed * total:
            raise DataError(
                f"{len(self.samples)} of {total} samples are damaged, {self.allowed:.1%} may be: {_some(self.samples)}",
                hint="get the data again, or raise data.max_bad",
            )


def _reason(exc: BaseException) -> str:
    message = getattr(exc, "message", None) or str(exc) or type(exc).__name__
    return " ".join(str(message).split())[:200]


def _some(lines: list[str]) -> str:
    more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "; ".join(lines[:_SHOWN]) + more
