"""Running out of memory or threads, as one error of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgeclip.errors import ResourceError


@contextmanager
def exhaustion(doing: str) -> Iterator[None]:
    """Map what Python raises when the system has no more to give.

    Raises:
        ResourceError: out of memory, or no further thread can be started.
    """
    try:
        yield
    except MemoryError as exc:
        raise ResourceError(f"{doing}: out of memory") from exc
    except RuntimeError as exc:
        if "can't start new thread" not in str(exc):
            raise
        raise ResourceError(f"{doing}: no further thread can be started") from exc
