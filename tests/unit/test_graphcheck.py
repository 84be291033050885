"""What a graph file may contain: refused by our own scan, before an engine or converter sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeclip.errors import BundleFormatError, BundlePathError, TargetLoadError
from edgeclip.graphcheck import check_graph
from tests.bundles import artifact, coreml_manifest, onnx, openvino_xml

IR = artifact("image", "openvino", "fp32", ["o/image.xml", "o/image.bin"])
PACKAGE = "coreml-fp16/image.mlpackage"
CORE = artifact("image", "coreml", "fp16", [f"{PACKAGE}/Manifest.json"])


def check_ir(xml: bytes, weights: bytes = bytes(64)) -> None:
    check_graph(IR, {"o/image.xml": xml, "o/image.bin": weights})


def check_package(manifest: bytes) -> None:
    inside = {f"{PACKAGE}/Data/com.apple.CoreML/model.mlmodel": b"", f"{PACKAGE}/Data/com.apple.CoreML/weights/w": b""}
    check_graph(CORE, {f"{PACKAGE}/Manifest.json": manifest, **inside})


# --- OpenVINO -----------------------------------------------------------------------------------------------------


def test_constant_that_fills_the_weights_passes() -> None:
    check_ir(openvino_xml(64))


def test_ir_that_openvino_wrote_passes(tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino", reason="openvino is not installed")
    import numpy as np
    import openvino.opset13 as ops

    x = ops.parameter([-1, 4], np.float32, name="x")
    y = ops.softmax(ops.matmul(x, ops.constant(np.ones((4, 4), np.float32)), False, True), 1)
    ov.save_model(ov.Model([y], [x]), tmp_path / "image.xml")
    check_ir((tmp_path / "image.xml").read_bytes(), (tmp_path / "image.bin").read_bytes())


@pytest.mark.parametrize(
    ("offset", "length"), [("0", "65"), ("1", "64"), ("64", "1"), ("0", str(2**59)), ("9" * 18, "9" * 18)]
)
def test_constant_past_the_end_of_the_weights_is_refused(offset: str, length: str) -> None:
    with pytest.raises(BundleFormatError, match=r"layer 'w' \(Const\): bytes \d+ to \d+ of 64 bytes of weights"):
        check_ir(openvino_xml(64, offset=offset, length=length))


@pytest.mark.parametrize("offset", ["-8", "", "0x0", " 0", "1e3", "+1", "9" * 19, "٣"])
def test_offset_that_is_not_a_plain_number_is_refused(offset: str) -> None:
    with pytest.raises(BundleFormatError, match="are not numbers of bytes"):
        check_ir(openvino_xml(64, offset=offset))


def test_constant_without_weights_is_refused() -> None:
    single = artifact("image", "openvino", "fp32", ["o/image.xml"])
    with pytest.raises(BundleFormatError, match="of 0 bytes of weights"):
        check_graph(single, {"o/image.xml": openvino_xml(64)})


def test_constant_in_a_subgraph_is_checked() -> None:
    inner = openvino_xml(99).split(b"?>")[1].replace(b"<net", b"<body").replace(b"</net", b"</body")
    layer = b'<layer id="1" name="l" type="Loop" version="opset5">' + inner + b"</layer>"
    with pytest.raises(BundleFormatError, match=r"layer 'w' \(Const\): bytes 0 to 99 of 64"):
        check_ir(openvino_xml(64).replace(b"</layers></net>", layer + b"</layers></net>"))


@pytest.mark.parametrize("version", ["extension", "", "opset1 ", "internal"])
def test_operator_of_an_extension_is_refused(version: str) -> None:
    with pytest.raises(BundleFormatError, match=rf"layer 'w' \(Const\): operators of '{version}' are not allowed"):
        check_ir(openvino_xml(64, version=version))


DTDS = [
    b"<!DOCTYPE net>",
    b'<!DOCTYPE net SYSTEM "file:///etc/passwd">',
    b'<!DOCTYPE n [<!ENTITY a "x"><!ENTITY b "&a;&a;&a;">]>',
    b"<!ENTITY x 'y'>",
    b"<!doctype net>",
]


@pytest.mark.parametrize("dtd", DTDS)
def test_dtd_is_refused_before_parsing(dtd: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(*_: object, **__: object) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr("xml.etree.ElementTree.iterparse", parse)
    with pytest.raises(BundleFormatError, match="a DTD or entity in the XML"):
        check_ir(openvino_xml(64).replace(b"?>\n", b"?>\n" + dtd))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "cp037"])
def test_dtd_in_another_encoding_does_not_hide(encoding: str) -> None:
    text = openvino_xml(64).decode().replace("?>\n", "?>\n<!DOCTYPE net>")
    with pytest.raises(BundleFormatError, match=r"not UTF-8|not in UTF-8|not XML"):
        check_ir(text.encode(encoding))


def test_declared_encoding_other_than_utf8_is_refused() -> None:
    with pytest.raises(BundleFormatError, match="the XML is not in UTF-8"):
        check_ir(openvino_xml(64).replace(b'version="1.0"', b'version="1.0" encoding="utf-7"', 1))
    check_ir(openvino_xml(64).replace(b'version="1.0"', b'version="1.0" encoding="UTF-8"', 1))


@pytest.mark.parametrize("xml", [b"", b"<net>", b"nothing", openvino_xml(64)[:-3]])
def test_bytes_that_are_not_xml_are_refused(xml: bytes) -> None:
    with pytest.raises(BundleFormatError, match=r"o/image\.xml: not XML"):
        check_ir(xml)


def test_xml_nested_too_deep_is_refused() -> None:
    with pytest.raises(BundleFormatError, match="XML nested deeper than 64"):
        check_ir(b"<net>" + b"<a>" * 100_000)


# --- Core ML and engines ------------------------------------------------------------------------------------------


def test_package_whose_items_are_inside_passes() -> None:
    check_package(coreml_manifest())


OUT = [
    "../../secret",
    "/etc/passwd",
    "/dev/zero",
    "com.apple.CoreML/../../../secret",
    "a\\..\\b",
    "",
    "/".join("a" * 300),
]


@pytest.mark.parametrize("path", OUT)
@pytest.mark.parametrize("item", ["model", "weights"])
def test_package_that_points_outside_is_refused(path: str, item: str) -> None:
    with pytest.raises(BundlePathError, match=r"^coreml-fp16/image.mlpackage/Manifest.json: path "):
        check_package(coreml_manifest(**{item: path}))


def test_package_that_names_a_part_it_lacks_is_refused() -> None:
    with pytest.raises(BundlePathError, match=r"path 'com\.apple\.CoreML/w' is not in the package"):
        check_package(coreml_manifest(weights="com.apple.CoreML/w"))


@pytest.mark.parametrize(
    ("manifest", "match"),
    [
        (b"[" * 100_000, "nested deeper than 32"),
        (b"{}", "lists no items"),
        (b'{"itemInfoEntries": {}}', "lists no items"),
        (b'{"itemInfoEntries": []}', "lists no items"),
        (b'{"itemInfoEntries": {"A": {}}}', "an item without a path"),
        (b'{"itemInfoEntries": {"A": {"path": 1}}}', "an item without a path"),
        (b'{"itemInfoEntries": {"A": {"path": "x", "path": "../y"}}}', "duplicate key 'path'"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_malformed_package_manifest_is_refused(manifest: bytes, match: str) -> None:
    with pytest.raises(BundleFormatError, match=rf"{PACKAGE}/Manifest\.json: {match}"):
        check_package(manifest)


def test_package_without_a_manifest_is_refused() -> None:
    with pytest.raises(BundleFormatError, match=r"image\.mlpackage: the package has no Manifest\.json"):
        check_graph(CORE, {})


@pytest.mark.parametrize("name", ["t/image.engine", "t/image.plan", "t/image.trt", "t/IMAGE.ENGINE"])
def test_prebuilt_engine_is_refused_and_onnx_offered(name: str) -> None:
    with pytest.raises(TargetLoadError, match=r"engines are executable code.*ships ONNX"):
        check_graph(artifact("image", "tensorrt", "fp16", ["t/image.onnx", name]), {"t/image.onnx": onnx(), name: b""})


@pytest.mark.parametrize(
    ("target", "name"), [("onnx", "x.ort"), ("tensorrt", "x.bin"), ("openvino", "x.onnx"), ("coreml", "x.mlmodel")]
)
def test_graph_under_a_name_of_another_kind_is_refused(target: str, name: str) -> None:
    with pytest.raises(BundleFormatError, match=f"{name}: the graph of target {target} must be"):
        check_graph(artifact("image", target, "fp16", [name]), {name: onnx()})  # type: ignore[arg-type]
