"""Path rules."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from edgeclip import paths
from edgeclip.errors import BundlePathError

REFUSED = [
    *["../x", "/x", "C:\\x", "C:/x", "a\\..\\x", "a/./x", "a/../x", "~", "~/x", "a//b", "a/", "", ".", ".."],
    *["CON", "con", "nul.txt", "a/LPT1", "COM9.onnx", "x.", "x ", " x", "a./x", ".DS_Store", "a/Thumbs.db"],
    *["a" * 201, "é", "ſ", "a\nb", "a\0b", "a:b", "a*", "$HOME"],
]


@pytest.mark.parametrize("path", REFUSED)
def test_path_that_may_leave_the_bundle_or_mean_two_things_is_refused(path: str) -> None:
    with pytest.raises(BundlePathError, match=r"^path "):
        paths.check(path)


@pytest.mark.parametrize(
    "path", ["a", "a/b-c_d.e", "A" * 200, "x.mlpackage/Data/com.apple.CoreML/weights/weight.bin", "console.txt", ".a"]
)
def test_ordinary_path_is_accepted(path: str) -> None:
    paths.check(path)


def test_error_names_the_path_and_the_rule() -> None:
    with pytest.raises(BundlePathError, match=r"path 'a/\.\./b': absolute, or has an empty"):
        paths.check("a/../b")


def test_hostile_name_is_shown_without_control_characters() -> None:
    with pytest.raises(BundlePathError) as caught:
        paths.check("\x1b[2J" * 1000)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1200


def test_names_that_differ_in_case_only_collide() -> None:
    with pytest.raises(BundlePathError, match="'A/x': collides with 'a/X'"):
        paths.check_set(["a/X", "A/x"])


def test_a_file_cannot_be_a_directory_too() -> None:
    with pytest.raises(BundlePathError, match="'a/b/c': 'A/b' is a file"):
        paths.check_set(["a/b/c", "A/b"])


def test_fifo_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    with pytest.raises(BundlePathError, match="a FIFO, not a regular file"):
        paths.open_regular(tmp_path / "f")


def test_symlink_is_refused_unless_it_may_be_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(BundlePathError, match="a symlink, not a regular file"):
        paths.open_regular(tmp_path / "link")
    with paths.open_regular(tmp_path / "link", follow=True) as file:
        assert file.read() == b"x"


def test_device_is_refused() -> None:
    with pytest.raises(BundlePathError, match="a device, not a regular file"):
        paths.open_regular(Path("/dev/zero"))


def test_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # A socket's path must be short.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        with pytest.raises(BundlePathError, match="a socket, not a regular file"):
            paths.open_regular(Path("s"))
