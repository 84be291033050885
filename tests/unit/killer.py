"""Child of test_publish_faults: forks writers that overwrite one bundle, kills each, and checks what stands afterwards.

Usage: killer.py OUTPUT COUNT FAULTS, where FAULTS is `random` or `points`. Prints what it saw as JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NoReturn

from edgeclip import publish
from edgeclip.bundle import Bundle, write_bundle
from tests import bundles

SIZE = 500_000
FILES = {"old": bundles.files(1, SIZE), "new": bundles.files(2, SIZE)}


def write(output: Path, version: str) -> Bundle:
    return write_bundle(output, bundles.manifest(), FILES[version], replace=True)


def writer(output: Path, die_at: int | None) -> NoReturn:
    """Overwrite the bundle with each version in turn, forever; or die at the given step of the first time."""
    steps = itertools.count()

    def fault_point(name: str) -> None:
        if next(steps) == die_at:
            os.write(1, f"at {name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    publish.fault_point = fault_point
    for version in itertools.cycle(["new", "old"]):
        write(output, version)
        if die_at is not None:
            os._exit(0)
    raise AssertionError


def run(output: Path, die_at: int | None, delay: float) -> bool:
    """Whether the writer died, rather than end by itself."""
    pid = os.fork()
    if pid == 0:
        writer(output, die_at)
    if die_at is None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def state(output: Path, digests: dict[str, str]) -> str:
    """Which version stands there; every file is hashed."""
    try:
        bundle = Bundle.open(output)
        bundle.verify_files()
    except Exception as exc:
        return f"broken: {exc!r}"
    return digests.get(bundle.digest, "unknown")


def main(output: Path, count: int, faults: str) -> None:
    digests = {write(output, version).digest: version for version in ("new", "old")}
    rng = random.Random(count)
    seen: Counter[str] = Counter()
    for i in range(count):
        died = run(output, i if faults == "points" else None, rng.uniform(0, 0.03))
        seen[state(output, digests)] += 1
        seen["temps"] += any(path.name.endswith(".tmp") for path in output.parent.iterdir())
        seen["died"] += died
    write(output, "new")
    print(json.dumps({"seen": seen, "left": sorted(path.name for path in output.parent.iterdir())}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
