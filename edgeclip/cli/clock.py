"""How long the steps of a command, and single calls, take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
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


def median_ms(call: Callable[[], object], repeats: int, *, warm_up: int = 0) -> float:
    """Median milliseconds of some calls, after others that do not count."""
    times = []
    for _ in range(warm_up + repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times[warm_up:])
