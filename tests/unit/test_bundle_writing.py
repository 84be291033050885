"""Writing bundles: deterministic, checked, and building on what is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeclip import publish
from edgeclip.bundle import Bundle, add_artifact, write_bundle
from edgeclip.errors import (
    BundleFormatError,
    BundleIntegrityError,
    BundlePathError,
    ExportExistsError,
    UsageError,
)
from tests import bundles

WEIGHTS = "onnx-fp32/image.onnx"
NEW = bundles.artifact("image", "tensorrt", "fp16", ["tensorrt-fp16/image.onnx"])
NEW_FILES = {"tensorrt-fp16/image.onnx": bundles.onnx(b"\1" * 64)}


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return bundles.write(tmp_path / "m.edgeclip").path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return bundles.write_directory(tmp_path / "m").path


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    first = bundles.write(tmp_path / "a.edgeclip").path.read_bytes()
    backwards = dict(reversed(bundles.files().items()))
    write_bundle(tmp_path / "b.edgeclip", bundles.manifest(), backwards, replace=False)
    assert (tmp_path / "b.edgeclip").read_bytes() == first
    assert str(tmp_path).encode() not in first


def test_content_may_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bundles.files()[WEIGHTS])
    files: dict[str, bytes | Path] = {**bundles.files(), WEIGHTS: tmp_path / "w"}
    bundle = write_bundle(tmp_path / "a.edgeclip", bundles.manifest(), files, replace=False)
    assert bundle.path.read_bytes() == bundles.write(tmp_path / "b.edgeclip").path.read_bytes()


def test_content_that_changes_while_it_is_written_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w").write_bytes(b"before")
    monkeypatch.setattr(
        publish, "fault_point", lambda name: name != "created" or (tmp_path / "w").write_bytes(b"after!")
    )
    files: dict[str, bytes | Path] = {**bundles.files(), WEIGHTS: tmp_path / "w"}
    with pytest.raises(BundleIntegrityError, match=r"image\.onnx: changed while it was being written"):
        write_bundle(tmp_path / "a.edgeclip", bundles.manifest(), files, replace=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w"]


def test_content_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    files: dict[str, bytes | Path] = {**bundles.files(), WEIGHTS: tmp_path / "absent"}
    with pytest.raises(UsageError, match=r"absent: cannot be read for onnx-fp32/image\.onnx: No such file"):
        write_bundle(tmp_path / "a.edgeclip", bundles.manifest(), files, replace=False)


def test_bundle_that_could_not_be_opened_is_not_written(tmp_path: Path) -> None:
    files = {name: data for name, data in bundles.files().items() if name != WEIGHTS}
    with pytest.raises(BundleFormatError, match=rf"'{WEIGHTS}' is not among"):
        write_bundle(tmp_path / "a.edgeclip", bundles.manifest(), files, replace=False)
    with pytest.raises(BundlePathError, match=r"path '\.\./x'"):
        write_bundle(tmp_path / "a.edgeclip", bundles.manifest(), bundles.files() | {"../x": b""}, replace=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["file", "directory"])
def test_added_artifact_joins_the_others(packed: Path, folder: Path, form: str) -> None:
    bundle = Bundle.open(packed if form == "file" else folder)
    added = add_artifact(bundle, NEW, NEW_FILES)
    assert added.path == bundle.path
    assert len(added.artifacts()) == 5
    assert bundles.contents(added) == bundles.files() | NEW_FILES


def test_order_of_additions_does_not_matter(tmp_path: Path) -> None:
    other = bundles.artifact("text", "tensorrt", "fp16", ["tensorrt-fp16/text.onnx"])
    other_files = {"tensorrt-fp16/text.onnx": bundles.onnx(b"\2" * 64)}
    one = add_artifact(add_artifact(bundles.write(tmp_path / "a"), NEW, NEW_FILES), other, other_files)
    two = add_artifact(add_artifact(bundles.write(tmp_path / "b"), other, other_files), NEW, NEW_FILES)
    assert one.path.read_bytes() == two.path.read_bytes()


def test_artifact_that_is_there_is_not_replaced_unasked(packed: Path) -> None:
    before = packed.read_bytes()
    same = bundles.artifact("image", "onnx", "fp32")
    with pytest.raises(ExportExistsError, match="already has the artifact image onnx fp32"):
        add_artifact(Bundle.open(packed), same, {WEIGHTS: bundles.onnx()})
    assert packed.read_bytes() == before


def test_replaced_artifact_takes_its_files_away(packed: Path) -> None:
    same = bundles.artifact("image", "onnx", "fp32", ["onnx-fp32/other.onnx"])
    bundle = add_artifact(Bundle.open(packed), same, {"onnx-fp32/other.onnx": bundles.onnx()}, replace=True)
    assert len(bundle.artifacts()) == 4
    assert WEIGHTS not in bundles.contents(bundle)


def test_file_of_another_artifact_is_not_overwritten(packed: Path) -> None:
    clash = bundles.artifact("image", "tensorrt", "fp16", ["golden.safetensors"])
    with pytest.raises(ExportExistsError, match=r"'golden\.safetensors' belongs to something else"):
        add_artifact(Bundle.open(packed), clash, {"golden.safetensors": b"x"}, replace=True)


def test_artifacts_files_must_be_those_it_names(packed: Path) -> None:
    with pytest.raises(UsageError, match=r"names the files 'tensorrt-fp16/image\.onnx', but 'x' are given"):
        add_artifact(Bundle.open(packed), NEW, {"x": b""})


def test_damaged_bundle_is_not_copied_on(packed: Path) -> None:
    data = packed.read_bytes()
    damaged = flip(data, data.index(bundles.files()[WEIGHTS]))
    packed.write_bytes(damaged)
    with pytest.raises(BundleIntegrityError, match=f"{WEIGHTS} has sha256"):
        add_artifact(Bundle.open(packed), NEW, NEW_FILES)
    assert packed.read_bytes() == damaged


def test_addition_builds_on_what_another_export_has_added_meanwhile(packed: Path) -> None:
    stale = Bundle.open(packed)
    other = bundles.artifact("text", "tensorrt", "fp16", ["tensorrt-fp16/text.onnx"])
    add_artifact(Bundle.open(packed), other, {"tensorrt-fp16/text.onnx": bundles.onnx()})
    assert len(add_artifact(stale, NEW, NEW_FILES).artifacts()) == 6


def test_unpacking_refuses_an_existing_directory(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "u").mkdir()
    with pytest.raises(ExportExistsError, match="u: exists"):
        Bundle.open(packed).unpack(tmp_path / "u")
    assert list((tmp_path / "u").iterdir()) == []


def test_unpacking_a_damaged_bundle_leaves_nothing(packed: Path, tmp_path: Path) -> None:
    data = packed.read_bytes()
    packed.write_bytes(flip(data, data.index(bundles.files()[WEIGHTS])))
    with pytest.raises(BundleIntegrityError, match=WEIGHTS):
        Bundle.open(packed).unpack(tmp_path / "u")
    assert [path.name for path in tmp_path.iterdir()] == ["m.edgeclip"]
