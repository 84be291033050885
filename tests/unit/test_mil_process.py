"""The child processes that coremltools is used in. Here, children that do without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeclip.errors import ExportError, TargetUnavailableError
from edgeclip.quantize import mil_process

CHILD = """
import json, os, signal, sys, tempfile, time
from pathlib import Path
from edgeclip.quantize.mil_process import OPTIONS, RESULT, serve

def main(folder):
    options = json.loads((folder / OPTIONS).read_text())
    print("what libraries say")
    exec(options["do"])
    (folder / RESULT / "who").write_text(f"{os.getpid()} {tempfile.mkdtemp()}")

serve(main)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "tiny_child.py").write_text(CHILD)
    (tmp_path / "lame_child.py").write_text("raise ModuleNotFoundError(\"No module named 'coremltools'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "tiny_child"


def work(child: str, folder: Path, do: str = "") -> tuple[str, Path]:
    """A job in a folder of its own: the child that did it, and where it made a temporary folder."""
    folder.mkdir()
    who, scratch = mil_process.run(child, folder, {"do": do})["who"].decode().split()
    return who, Path(scratch)


def test_a_child_does_job_after_job_where_it_may_stay(child: str, tmp_path: Path) -> None:
    with mil_process.staying():
        first, _ = work(child, tmp_path / "1")
        with mil_process.staying():
            second, _ = work(child, tmp_path / "2")
        third, _ = work(child, tmp_path / "3")
    after, _ = work(child, tmp_path / "4")
    assert first == second == third != after


def test_no_child_outlives_the_block(child: str, tmp_path: Path) -> None:
    with mil_process.staying():
        pid, _ = work(child, tmp_path / "1")
        assert Path("/proc", pid).exists()
    other, _ = work(child, tmp_path / "2")
    assert not Path("/proc", pid).exists() and not Path("/proc", other).exists()


def test_what_libraries_leave_lies_in_the_folder_of_the_job(child: str, tmp_path: Path) -> None:
    with mil_process.staying():
        for folder in (tmp_path / "1", tmp_path / "2"):
            _, scratch = work(child, folder)
            assert scratch.parent == folder


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ("raise ValueError('no such operator')", "failed: ValueError: no such operator"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by signal 11"),
        ("os._exit(3)", "failed: no message"),
        ("time.sleep(60)", "took longer than 2 s"),
    ],
)
def test_a_job_that_fails_is_our_error_and_the_next_has_a_child_of_its_own(
    child: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, do: str, message: str
) -> None:
    with mil_process.staying():
        first, _ = work(child, tmp_path / "1", "print('a warning', file=sys.stderr)")
        monkeypatch.setattr(mil_process, "TIME_LIMIT_S", 2.0)
        with pytest.raises(ExportError, match=f"coremltools: {message}"):
            work(child, tmp_path / "2", do)
        monkeypatch.undo()
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        second, _ = work(child, tmp_path / "3")
    assert first != second


def test_a_child_that_does_not_find_coremltools_says_so(child: str, tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailableError, match=r"coremltools is not installed .*edgeclip\[coreml\]"):
        work("lame_child", tmp_path / "1")
