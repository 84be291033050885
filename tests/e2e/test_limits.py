"""Little memory and many processes: a clear error or the right answer, never a signal."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

LOAD = """
import resource, sys
import edgeclip
from edgeclip import backends
backends.get(sys.argv[2])
import edgeclip.loading
import numpy as np
pixels = np.zeros((4, 60, 60, 3), np.uint8)

def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

def load():
    with edgeclip.load(sys.argv[1], backend=sys.argv[2], threads=1) as model:
        return model.encode_pixels(pixels)

room = int(sys.argv[3])
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used() + room, hard))
try:
    load()
    said = "worked"
except (edgeclip.errors.ResourceError, edgeclip.errors.TargetError) as error:
    said = type(error).__name__
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
print(said, load().shape)
"""


GLIBC_LAST_WORDS = (
    "libgcc_s.so.1 must be installed for unwinding",
    "Fatal glibc error: failed to register TLS destructor",
)
GLIBC_GAVE_UP = "glibc ended the process (4, 48)"
"""Where an engine starts or ends a thread and glibc itself finds no memory for it, no code of ours gets to run."""


def run(bundle: Path, backend: str, room: int) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, str(bundle), backend, str(room)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    if any(words in done.stderr for words in GLIBC_LAST_WORDS):
        return GLIBC_GAVE_UP
    assert done.returncode == 0, (backend, room, done.returncode, done.stderr[-500:])
    return done.stdout.strip()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc: memory in use cannot be read")
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_little_memory_is_an_error_and_the_next_call_works(tiny_bundle: Path, backend: str) -> None:
    said = [run(tiny_bundle, backend, room << 20) for room in (1, 8, 64, 2048)]
    assert all(words.endswith("(4, 48)") for words in said), said
    assert said[-1].startswith("worked"), said
    assert said[0].startswith(("ResourceError", "TargetLoadError")), said


@pytest.mark.nightly
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_little_memory_at_many_levels(tiny_bundle: Path, backend: str) -> None:
    said = [run(tiny_bundle, backend, room << 20) for room in range(2, 122, 6)]
    assert all(words.endswith("(4, 48)") for words in said), said
    assert said.count(GLIBC_GAVE_UP) <= 2


VERIFY_ONCE = """
import sys, edgeclip
with edgeclip.load(sys.argv[1], verify=True) as model:
    print(model.classifier(["cat", "dog"]).weights.sum())
"""


def test_processes_that_start_at_once_share_a_cold_cache(tiny_bundle: Path, private_cache: Path) -> None:
    def start(_: int) -> str:
        done = subprocess.run(
            [sys.executable, "-c", VERIFY_ONCE, str(tiny_bundle)], capture_output=True, text=True, check=True
        )
        return done.stdout

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(start, range(8)))) == 1
    assert not [path for path in private_cache.rglob("*") if path.name.startswith(".tmp-")]
