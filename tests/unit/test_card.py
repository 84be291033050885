"""The accuracy card: strict, kept in the bundle, and stale when the artifacts are others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgeclip.bundle import Bundle, add_artifact, put_file
from edgeclip.card import FILE, Card, Cost, encode, make_card, read_card, with_card
from edgeclip.errors import BundleFormatError, BundleIntegrityError, BundleVersionError, UsageError
from edgeclip.scores import score
from tests import bundles

GRAPH = "onnx-fp32/image.onnx"
COST = Cost(size_bytes=1000, image_ms=2.5, text_ms=1.5, cpu="Some CPU", threads=2)


@pytest.fixture(params=["file", "directory"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    return (
        bundles.write(tmp_path / "m.edgeclip") if request.param == "file" else bundles.write_directory(tmp_path / "m")
    )


@pytest.fixture
def packed(tmp_path: Path) -> Bundle:
    return bundles.write(tmp_path / "p.edgeclip")


def card_of(bundle: Bundle, **options: Any) -> Card:
    found = [score("pets", "top1", 0.5, 100), score("pets", "text_to_image_r1", 0.25, 100)]
    artifacts = bundle.artifacts(target="onnx", precision="fp32")
    return make_card(bundle.manifest, artifacts, found, backend="onnxruntime 1.20.0", **options)


def test_a_bundle_without_a_card_has_none(packed: Bundle) -> None:
    assert read_card(packed) is None


def test_a_card_is_read_as_it_was_put_in(bundle: Bundle) -> None:
    card = card_of(bundle, notes={"pets": "never trained on"}, cost=COST)
    changed = with_card(bundle, card)
    assert read_card(changed) == card and not card.is_stale(changed.manifest)
    assert {entry.path for entry in card.measured} == {GRAPH, "onnx-fp32/text.onnx", "tokenizer.json"}
    assert bundles.contents(changed) == bundles.files() | {FILE: encode(card)}
    changed.verify_files()


def test_a_card_replaces_the_one_that_is_there(packed: Bundle) -> None:
    first = with_card(packed, card_of(packed, notes={"pets": "first"}))
    second = with_card(first, card_of(packed, notes={"pets": "second"}))
    found = read_card(second)
    assert found is not None and found.notes == {"pets": "second"}
    assert len(second.manifest.files) == len(first.manifest.files)


def test_a_card_is_stale_when_a_measured_artifact_changes(packed: Bundle) -> None:
    card = card_of(packed)
    with_card(packed, card)
    other = bundles.artifact("image", "openvino", "w8a8", ["openvino-w8a8/image.xml", "openvino-w8a8/image.bin"])
    files = {"openvino-w8a8/image.xml": bundles.openvino_xml(4), "openvino-w8a8/image.bin": b"\1\2\3\4"}
    unrelated = add_artifact(packed, other, files, replace=True)
    assert read_card(unrelated) == card and not card.is_stale(unrelated.manifest)
    same = bundles.artifact("image", "onnx", "fp32")
    replaced = add_artifact(packed, same, {GRAPH: bundles.onnx(b"\7" * 64)}, replace=True)
    assert read_card(replaced) == card and card.is_stale(replaced.manifest)


def test_a_damaged_card_is_refused(packed: Bundle) -> None:
    with_card(packed, card_of(packed))
    data = packed.path.read_bytes()
    packed.path.write_bytes(data.replace(b'"n": 100', b'"n": 900'))
    with pytest.raises(BundleIntegrityError, match=r"report\.json has sha256"):
        read_card(Bundle.open(packed.path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": []}, r"length >= 1.*\$\.scores"),
        ({"extra": 1}, "unknown field `extra`"),
        ({"precision": "fp8"}, r"'fp8'.*\$\.precision"),
        ({"format_version": 0}, "format version 0 does not exist"),
        ({"notes": {"pets": "x" * 201}}, r"length <= 200.*\$\.notes"),
        ({"scores": [{"data": "a", "metric": "top1", "value": 1.5, "low": 0, "high": 1, "n": 1}]}, r"<= 1\.0"),
        ({"scores": [{"data": "a", "metric": "top1", "value": 0.1, "low": 0.2, "high": 1, "n": 1}]}, "does not lie in"),
    ],
)
def test_a_malformed_card_is_refused(packed: Bundle, change: dict[str, Any], message: str) -> None:
    plain = json.loads(encode(card_of(packed))) | change
    bundle = put_file(packed, FILE, json.dumps(plain).encode())
    with pytest.raises(BundleFormatError, match=rf"p\.edgeclip: report\.json: .*{message}"):
        read_card(bundle)


def test_a_card_of_a_newer_format_says_what_to_do(packed: Bundle) -> None:
    plain = json.loads(encode(card_of(packed))) | {"format_version": 2, "news": 1}
    bundle = put_file(packed, FILE, json.dumps(plain).encode())
    with pytest.raises(BundleVersionError, match=r"format version 2, this edgeclip reads up to 1 \(pip install -U"):
        read_card(bundle)


def test_an_oversized_card_is_refused_before_it_is_read(packed: Bundle) -> None:
    bundle = put_file(packed, FILE, bytes((1 << 20) + 1))
    with pytest.raises(BundleFormatError, match="1048577 bytes, the limit is 1048576"):
        read_card(bundle)


def test_a_card_that_could_not_be_read_is_not_written(packed: Bundle) -> None:
    before = packed.path.read_bytes()
    with pytest.raises(BundleFormatError, match=r"report\.json: .*\$\.notes"):
        with_card(packed, msgspec.structs.replace(card_of(packed), notes={"pets": "x" * 201}))
    assert packed.path.read_bytes() == before


@pytest.mark.parametrize("name", [GRAPH, "tokenizer.json", "golden.safetensors"])
def test_a_file_of_the_model_is_not_replaced(packed: Bundle, name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' belongs to the model"):
        put_file(packed, name, b"x")


def test_a_file_is_put_beside_what_an_export_has_added_meanwhile(packed: Bundle) -> None:
    new = bundles.artifact("image", "tensorrt", "fp16", ["t/image.onnx"])
    add_artifact(Bundle.open(packed.path), new, {"t/image.onnx": bundles.onnx()})
    assert len(put_file(packed, "notes.txt", b"x").artifacts()) == 5
