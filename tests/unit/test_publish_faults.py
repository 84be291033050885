"""A writer that is killed, or whose disk is full: old or new, never half."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from edgeclip.bundle import Bundle
from edgeclip.errors import ResourceError
from tests import bundles

ROOT = Path(__file__).resolve().parent.parent.parent
KILLS = 100
NIGHTLY_KILLS = 1_000
DISK_FULL_POINTS = 20


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return bundles.write(tmp_path / "m.edgeclip").path


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def python(script: str, *args: object) -> subprocess.Popen[str]:
    """A child that runs a script, or a file of that name."""
    head = [script] if script.endswith(".py") else ["-c", textwrap.dedent(script)]
    command = [sys.executable, *head, *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment)


def finished(child: subprocess.Popen[str], timeout: float = 120) -> str:
    out, err = child.communicate(timeout=timeout)
    assert child.returncode == 0, err
    return out


def kill(output: Path, count: int, faults: str) -> tuple[dict[str, int], list[str], list[str]]:
    """What was seen after each kill, what is left after one more export, and the steps at which a writer died."""
    out = finished(python("tests/unit/killer.py", output, count, faults), timeout=600)
    *steps, last = out.splitlines()
    report = json.loads(last)
    return report["seen"], report["left"], [step.removeprefix("at ") for step in steps]


def kill_at_random(output: Path, count: int) -> None:
    seen, left, _ = kill(output, count, "random")
    assert seen.get("old", 0) + seen.get("new", 0) == count, seen
    assert seen["died"] == count
    assert seen["temps"] > count / 20, "too few were killed in the middle of writing to show anything"
    assert left == [output.name]


def test_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    kill_at_random(tmp_path / "m.edgeclip", KILLS)


@pytest.mark.nightly
def test_killed_writer_leaves_the_old_file_or_the_new_one_in_number(tmp_path: Path) -> None:
    kill_at_random(tmp_path / "m.edgeclip", NIGHTLY_KILLS)


@pytest.mark.skipif(sys.platform != "linux", reason="directories are exchanged on Linux only")
def test_killed_writer_leaves_the_old_directory_or_the_new_one(tmp_path: Path) -> None:
    bundles.write_directory(tmp_path / "m")
    kill_at_random(tmp_path / "m", KILLS // 2)


STEPS = ["locked", "swept", "created", "written", "synced", "replaced", "directory synced"]


@pytest.mark.parametrize("form", ["file", "directory"])
def test_writer_killed_at_each_step_leaves_old_or_new(tmp_path: Path, form: str) -> None:
    if form == "directory":
        if sys.platform != "linux":
            pytest.skip("directories are exchanged on Linux only")
        bundles.write_directory(tmp_path / "m")
    seen, left, steps = kill(tmp_path / "m", 18, "points")
    assert set(STEPS) < set(steps)
    assert len(steps) >= 12
    assert seen.get("old", 0) + seen.get("new", 0) == 18, seen
    assert left == ["m"]


FILL = """
    import resource, sys
    from pathlib import Path
    from edgeclip.bundle import Bundle, add_artifact
    from edgeclip.errors import ResourceError
    from tests import bundles
    path, writer, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    points = [size * i // int(sys.argv[4]) for i in range(int(sys.argv[4]))]
    for limit in points:
        bundle = Bundle.open(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            if writer == "write":
                bundles.write(path, seed=1, size=20_000, replace=True)
            elif writer == "add":
                new = bundles.artifact("image", "tensorrt", "fp16", ["t/image.onnx"])
                add_artifact(bundle, new, {"t/image.onnx": bundles.onnx(bytes(20_000))})
            else:
                bundle.unpack(path.with_name("u"))
            print("written")
        except ResourceError as exc:
            print(exc)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert [p.name for p in path.parent.iterdir()] == [path.name], list(path.parent.iterdir())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE: absent on Windows")
@pytest.mark.parametrize("writer", ["write", "add", "unpack"])
def test_full_disk_keeps_the_old_bundle_and_says_what_is_needed(tmp_path: Path, writer: str) -> None:
    path = bundles.write(tmp_path / "m.edgeclip", size=20_000).path
    before = path.read_bytes()
    # No single file of the unpacked tree is larger than its weights.
    size = 20_000 if writer == "unpack" else len(before)
    lines = finished(python(FILL, path, writer, size, DISK_FULL_POINTS)).splitlines()
    assert len(lines) == DISK_FULL_POINTS
    for line in lines:
        assert re.search(r"the disk or a quota is full: \d{5,} bytes needed, \d+ free in ", line)
    assert path.read_bytes() == before
    Bundle.open(path).verify_files()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_at_the_last_fsync_is_a_resource_error(
    packed: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    before = packed.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="the disk or a quota is full"):
        bundles.write(packed, seed=1, replace=True)
    monkeypatch.undo()
    assert packed.read_bytes() == before
    assert names(packed.parent) == [packed.name]
