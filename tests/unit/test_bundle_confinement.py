"""Nothing outside of a bundle is opened, whatever stands in it: links, pipes, devices, paths in the manifest."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from edgeclip.bundle import Bundle
from edgeclip.errors import (
    BundleFormatError,
    BundleIntegrityError,
    BundlePathError,
    UsageError,
)
from edgeclip.folder import Folder
from tests import bundles

WEIGHTS = "onnx-fp32/image.onnx"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return bundles.write(tmp_path / "m.edgeclip").path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return bundles.write_directory(tmp_path / "m").path


def child(script: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def opened_by(path: Path, expect_digest: str = "") -> tuple[str, list[str]]:
    """Error and paths that are opened, listed or linked while a child opens the bundle and reads all of it."""
    script = f"""
        import os, sys
        from edgeclip.bundle import Bundle
        from edgeclip.errors import EdgeClipError
        touched = []
        watched = {{"open", "os.listdir", "os.scandir", "os.link", "os.symlink", "os.rename", "os.mkdir"}}
        sys.addaudithook(lambda event, args: touched.append(str(args[0])) if event in watched else None)
        error = "none"
        try:
            Bundle.open({str(path)!r}, expect_digest={expect_digest!r} or None).verify_files()
        except EdgeClipError as exc:
            error = type(exc).__name__
        print(error, *[p for p in touched if not p.isdigit()], sep="\\n")
    """
    error, *touched = child(script).split("\n")
    return error, touched


@pytest.mark.parametrize("escape", ["../secret", "/etc/passwd", "C:\\x", "a\\..\\x", "a/./x", "~/x", "CON", "x.", "x "])
def test_manifest_that_points_outside_opens_nothing_but_itself(folder: Path, escape: str) -> None:
    (folder.parent / "secret").write_bytes(b"secret")

    def point(document: dict[str, Any]) -> None:
        document["files"][0]["path"] = document["golden"] = escape

    bundles.edit_manifest(folder, point)
    error, touched = opened_by(folder)
    assert error == "BundlePathError"
    assert [path for path in touched if Path(path).is_file()] == [str(folder / "manifest.json")]


@pytest.mark.parametrize("form", ["file", "directory"])
def test_wrong_digest_reads_nothing_but_the_manifest(packed: Path, folder: Path, form: str) -> None:
    path = packed if form == "file" else folder
    digest = Bundle.open(path).digest
    wrong = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    with pytest.raises(BundleIntegrityError, match=f"the bundle's digest is {digest}, expected {wrong}"):
        Bundle.open(path, expect_digest=wrong)
    error, touched = opened_by(path, wrong)
    files = {touch for touch in touched if Path(touch).is_file()}
    assert error == "BundleIntegrityError"
    assert files == {str(packed if form == "file" else folder / "manifest.json")}


def test_right_digest_opens(packed: Path) -> None:
    digest = Bundle.open(packed).digest
    assert Bundle.open(packed, expect_digest=digest).digest == digest


@pytest.mark.parametrize("digest", ["", "sha256:", "0" * 64, "sha256:" + "A" * 64, "md5:" + "0" * 64])
def test_digest_in_another_form_is_a_usage_error(packed: Path, digest: str) -> None:
    with pytest.raises(UsageError, match="is not `sha256:` and 64 hex digits"):
        Bundle.open(packed, expect_digest=digest)


def test_symlinked_file_is_refused_even_with_the_right_content(folder: Path) -> None:
    outside = shutil.move(folder / WEIGHTS, folder.parent / "outside")
    (folder / WEIGHTS).symlink_to(outside)
    with pytest.raises(BundlePathError, match=f"{WEIGHTS}: a symlink, not a regular file"):
        Bundle.open(folder)


def test_symlinked_directory_is_refused(folder: Path) -> None:
    outside = shutil.move(folder / "onnx-fp32", folder.parent / "outside")
    (folder / "onnx-fp32").symlink_to(outside)
    with pytest.raises(BundlePathError, match="onnx-fp32: a symlink, not a regular file"):
        Bundle.open(folder)


def test_directory_swapped_for_a_symlink_after_opening_is_refused(folder: Path) -> None:
    bundle = Bundle.open(folder)
    outside = shutil.move(folder / "onnx-fp32", folder.parent / "outside")
    (folder / "onnx-fp32").symlink_to(outside)
    with pytest.raises(BundlePathError, match="onnx-fp32: a symlink, not a directory"):
        bundle.read(WEIGHTS)


def test_manifest_that_is_a_symlink_is_refused(folder: Path) -> None:
    outside = shutil.move(folder / "manifest.json", folder.parent / "outside")
    (folder / "manifest.json").symlink_to(outside)
    with pytest.raises(BundlePathError, match=r"manifest\.json: a symlink, not a regular file"):
        Bundle.open(folder)


def test_fifo_in_place_of_a_file_does_not_block(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    with pytest.raises(BundlePathError, match="a FIFO, not a regular file"):
        Bundle.open(folder)


def test_fifo_that_appears_after_opening_does_not_block(folder: Path) -> None:
    bundle = Bundle.open(folder)
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    with pytest.raises(BundlePathError, match="a FIFO, not a regular file"):
        bundle.read(WEIGHTS)


def test_socket_in_place_of_a_file_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / WEIGHTS).unlink()
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(WEIGHTS)
        with pytest.raises(BundlePathError, match="a socket, not a regular file"):
            Bundle.open(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="device nodes: needs root")
def test_device_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    try:
        os.mknod(folder / WEIGHTS, 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("device nodes: the container forbids mknod")
    with pytest.raises(BundlePathError, match="a device, not a regular file"):
        Bundle.open(folder)


def test_hard_link_opens(folder: Path) -> None:
    os.link(folder / WEIGHTS, folder.parent / "backup")
    Bundle.open(folder).verify_files()


def test_symlink_to_a_bundle_opens(packed: Path, folder: Path) -> None:
    for target in (packed, folder):
        link = target.with_name("link")
        link.symlink_to(target)
        Bundle.open(link).verify_files()
        link.unlink()


def test_directory_of_a_million_files_is_not_listed_to_the_end(tmp_path: Path) -> None:
    for i in range(4200):
        (tmp_path / str(i)).touch()
    with pytest.raises(BundleFormatError, match="more than 4096 files and directories"):
        Folder.scan(tmp_path)
