"""How long the steps of a command take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Seconds of each step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def rounded(self) -> dict[str, float]:
        """To milliseconds."""
        return {name: round(seconds, 3) for name, seconds in self.seconds.items()}
