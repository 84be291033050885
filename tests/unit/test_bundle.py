"""Opening and reading bundles: everything that is wrong with one is found before an engine sees a byte."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from edgeclip.bundle import Bundle, add_artifact, write_bundle
from edgeclip.errors import (
    BundleFormatError,
    BundleIntegrityError,
    BundleNotFoundError,
    BundlePathError,
    BundleVersionError,
    TargetLoadError,
    UsageError,
)
from edgeclip.folder import Folder
from tests import bundles

NAMES = sorted(bundles.files())
WEIGHTS = "onnx-fp32/image.onnx"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return bundles.write(tmp_path / "m.edgeclip").path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return bundles.write_directory(tmp_path / "m").path


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_file_and_directory_open_to_the_same_bundle(packed: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(packed)
    bundle.unpack(tmp_path / "u")
    unpacked = Bundle.open(tmp_path / "u")
    assert unpacked.manifest == bundle.manifest
    assert unpacked.digest == bundle.digest
    assert bundles.contents(unpacked) == bundles.contents(bundle) == bundles.files()


def test_digest_is_that_of_the_manifest(folder: Path) -> None:
    expected = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert Bundle.open(folder).digest == f"sha256:{expected}"


def test_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match=r"absent\.edgeclip: no such file or directory"):
        Bundle.open(tmp_path / "absent.edgeclip")


def test_path_below_a_file_is_not_found(packed: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="no such file or directory"):
        Bundle.open(packed / "below")


@pytest.mark.parametrize("text", [b"", b"hello", b"<html>", b"PK"])
def test_text_file_is_not_a_bundle(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "notes.txt").write_bytes(text)
    with pytest.raises(BundleFormatError, match=r"notes\.txt: not a bundle"):
        Bundle.open(tmp_path / "notes.txt")


def test_empty_directory_is_an_incomplete_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleFormatError, match=f"{tmp_path}: no manifest: incomplete bundle"):
        Bundle.open(tmp_path)


def test_directory_without_its_manifest_is_an_incomplete_bundle(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(BundleFormatError, match="no manifest: incomplete bundle"):
        Bundle.open(folder)


def test_zip_without_a_manifest_is_an_incomplete_bundle(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(bundles.zip_bytes({"a": b"x"}))
    with pytest.raises(BundleFormatError, match="no manifest: incomplete bundle"):
        Bundle.open(tmp_path / "x.zip")


def test_fifo_is_not_a_bundle_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    with pytest.raises(BundlePathError, match="a FIFO, not a regular file"):
        Bundle.open(tmp_path / "f")


def test_opening_a_bad_bundle_imports_no_engine(tmp_path: Path) -> None:
    script = f"""
        import sys
        from edgeclip.bundle import Bundle
        from edgeclip.errors import BundleError
        try:
            Bundle.open({str(tmp_path)!r})
        except BundleError:
            print(sorted({{"numpy", "onnxruntime", "openvino", "torch", "PIL"}} & set(sys.modules)))
    """
    assert child(script) == "[]"


def child(script: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.parametrize("name", NAMES)
def test_flipped_bit_in_a_directory_names_the_file_and_both_digests(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    damaged = flip(data, len(data) // 2)
    (folder / name).write_bytes(damaged)
    expected, actual = (hashlib.sha256(each).hexdigest() for each in (data, damaged))
    with pytest.raises(BundleIntegrityError, match=f"{name} has sha256 {actual}, expected {expected}"):
        Bundle.open(folder).read(name)


@pytest.mark.parametrize("name", [*NAMES, "manifest.json"])
def test_flipped_bit_in_a_file_is_found(packed: Path, name: str) -> None:
    content = bundles.files().get(name, b'"tiny"')
    data = packed.read_bytes()
    packed.write_bytes(flip(data, data.index(content) + len(content) // 2))
    with pytest.raises(BundleIntegrityError, match=name):
        Bundle.open(packed).verify_files()


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x"], ids=["short", "long"])
def test_wrong_size_is_found_when_the_bundle_opens(folder: Path, change: Any) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(change(data))
    with pytest.raises(BundleIntegrityError, match=f"{WEIGHTS} has {len(change(data))} bytes, expected {len(data)}"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", NAMES)
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleIntegrityError, match=f"the bundle lacks '{name}'"):
        Bundle.open(folder)


def test_extra_file_in_a_directory_is_named(folder: Path) -> None:
    (folder / "onnx-fp32" / "more.onnx").write_bytes(b"x")
    with pytest.raises(BundleIntegrityError, match=r"the manifest does not list 'onnx-fp32/more\.onnx'"):
        Bundle.open(folder)


def test_extra_file_in_a_zip_is_named(folder: Path, tmp_path: Path) -> None:
    entries = {name: (folder / name).read_bytes() for name in [*NAMES, "manifest.json"]}
    (tmp_path / "x.edgeclip").write_bytes(bundles.zip_bytes(entries | {"more": b"x"}))
    with pytest.raises(BundleIntegrityError, match="the manifest does not list 'more'"):
        Bundle.open(tmp_path / "x.edgeclip")


def test_leftovers_of_file_managers_are_passed_over_unread(folder: Path) -> None:
    os.mkfifo(folder / ".DS_Store")
    (folder / "onnx-fp32" / "Thumbs.db").symlink_to("/dev/zero")
    Bundle.open(folder).verify_files()


def test_git_lfs_pointer_in_place_of_a_file_says_what_to_do(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(POINTER)
    with pytest.raises(BundleIntegrityError, match=r"image\.onnx has .* \(a Git LFS pointer: run git lfs pull\)"):
        Bundle.open(folder)


def test_git_lfs_pointer_of_the_same_size_says_what_to_do(folder: Path) -> None:
    size = (folder / WEIGHTS).stat().st_size
    (folder / WEIGHTS).write_bytes(POINTER.ljust(size, b"\n"))
    with pytest.raises(BundleIntegrityError, match="a Git LFS pointer: run git lfs pull"):
        Bundle.open(folder).read(WEIGHTS)


@pytest.mark.parametrize("name", ["m.edgeclip", "m/manifest.json"])
def test_git_lfs_pointer_in_place_of_the_bundle_says_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(BundleFormatError, match="a Git LFS pointer: run git lfs pull"):
        Bundle.open((tmp_path / name) if name.endswith(".edgeclip") else tmp_path / "m")


def test_loaded_bytes_are_the_hashed_bytes_when_the_file_is_swapped_between(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(folder)
    original = (folder / WEIGHTS).read_bytes()
    sha256 = hashlib.sha256

    class Swapping:
        """Overwrites the file after it was read, before what was read is hashed."""

        def __init__(self, data: Any) -> None:
            (folder / WEIGHTS).write_bytes(b"evil" * (len(original) // 4))
            self.inner = sha256(data)

        def hexdigest(self) -> str:
            return self.inner.hexdigest()

    monkeypatch.setattr(hashlib, "sha256", Swapping)
    assert bundle.read(WEIGHTS) == original
    with pytest.raises(BundleIntegrityError, match=WEIGHTS):
        bundle.read(WEIGHTS)


def test_file_that_vanished_after_opening_is_named(folder: Path) -> None:
    bundle = Bundle.open(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(BundleIntegrityError, match=rf"the bundle lacks .*{WEIGHTS}"):
        bundle.read(WEIGHTS)


@pytest.mark.parametrize("form", ["file", "directory"])
def test_bundle_that_was_replaced_after_opening_is_noticed(packed: Path, folder: Path, form: str) -> None:
    bundle = Bundle.open(packed if form == "file" else folder)
    bundles.write(bundle.path, seed=1, replace=True)
    with pytest.raises(BundleIntegrityError, match=r"replaced since it was opened \(open it again\)"):
        bundle.read(WEIGHTS)


def test_bundle_that_was_overwritten_in_place_after_opening_is_noticed(packed: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(packed)
    packed.write_bytes(bundles.write(tmp_path / "other", seed=1).path.read_bytes())
    with pytest.raises(BundleIntegrityError, match=f"{WEIGHTS} has sha256"):
        bundle.read(WEIGHTS)


def test_directory_that_is_exchanged_while_it_is_opened_is_read_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = Folder.scan
    pending = [1]

    def exchanging(path: Path) -> Folder:
        scanned = scan(path)
        if pending:
            bundles.write(path, seed=pending.pop(), size=300, replace=True)
        return scanned

    monkeypatch.setattr(Folder, "scan", exchanging)
    assert bundles.contents(Bundle.open(folder)) == bundles.files(1, 300)


def test_file_that_is_not_listed_cannot_be_read(packed: Path) -> None:
    with pytest.raises(UsageError, match=r"the bundle lists no file '\.\./x'"):
        Bundle.open(packed).read("../x")


def test_newer_bundle_names_its_path(folder: Path) -> None:
    bundles.edit_manifest(folder, lambda document: document.update(format_version=2))
    with pytest.raises(BundleVersionError, match=f"{folder}: manifest.json: format version 2"):
        Bundle.open(folder)


def test_manifest_of_100_mb_is_read_to_its_limit_only(folder: Path) -> None:
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(100 << 20)
    with pytest.raises(BundleFormatError, match=r"manifest\.json: 1048577 bytes or more, the limit is 1048576"):
        Bundle.open(folder)


# --- artifacts ----------------------------------------------------------------------------------------------------


def test_artifacts_are_selected_by_what_is_asked(packed: Path) -> None:
    bundle = Bundle.open(packed)
    assert len(bundle.artifacts()) == 4
    assert [a.target for a in bundle.artifacts(tower="image")] == ["coreml", "onnx", "openvino"]
    assert [a.file for a in bundle.artifacts(tower="text", target="onnx", precision="fp32")] == ["onnx-fp32/text.onnx"]
    assert bundle.artifacts(precision="w4a16") == []


def test_files_of_every_artifact_pass_the_graph_rules(packed: Path) -> None:
    bundle = Bundle.open(packed)
    for artifact in bundle.artifacts():
        assert bundle.files(artifact) == {name: bundles.files()[name] for name in artifact.files}


def test_graph_that_breaks_the_rules_is_refused(tmp_path: Path) -> None:
    files = bundles.files() | {WEIGHTS: bundles.onnx(b"", bundles.node(b"Evil", domain=b"evil"))}
    bundle = write_bundle(tmp_path / "m.edgeclip", bundles.manifest(), files, replace=False)
    with pytest.raises(BundleFormatError, match="operators of domain 'evil' are not allowed"):
        bundle.files(bundle.artifacts(target="onnx", tower="image")[0])


def test_prebuilt_engine_is_refused(tmp_path: Path) -> None:
    engine = bundles.artifact("image", "tensorrt", "fp16", ["tensorrt-fp16/image.engine"])
    bundle = add_artifact(bundles.write(tmp_path / "m.edgeclip"), engine, {"tensorrt-fp16/image.engine": b"ptrt"})
    with pytest.raises(TargetLoadError, match="engines are executable code"):
        bundle.files(engine)
