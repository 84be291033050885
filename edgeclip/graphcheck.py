"""What an artifact's files may contain, judged before an engine or converter sees them.

Engines follow what a graph tells them: to other files, to operators that somebody else provides, to offsets past the
end of the weights. Each such thing is refused here, by a reader of ours that follows nothing.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from xml.etree import ElementTree  # What makes XML dangerous, DTDs and entities, is refused before it is parsed.

from edgeclip import onnxwire
from edgeclip.backends import coreml_package
from edgeclip.buffers import Buffer
from edgeclip.errors import BundleFormatError, TargetLoadError
from edgeclip.manifest import Artifact

MAX_XML_BYTES = 1 << 26
MAX_XML_DEPTH = 64
_ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
_GRAPH_SUFFIXES = {"onnx": ".onnx", "tensorrt": ".onnx", "openvino": ".xml"}
_PACKAGE = re.compile(r"(.*?\.mlpackage)/")

Files = Mapping[str, Buffer]


def check_graph(artifact: Artifact, files: Files) -> None:
    """Check the contents of an artifact's files, by path.

    Raises:
        TargetLoadError: a file is a prebuilt TensorRT engine.
        BundlePathError: a graph refers to something outside its own files.
        BundleFormatError: a graph is malformed, or contains what the format does not allow.
    """
    for name in files:
        if name.lower().endswith(_ENGINE_SUFFIXES):
            raise TargetLoadError(
                f"{name}: engines are executable code, and a bundle's is not loaded",
                hint="export with --target tensorrt: it ships ONNX, from which the device builds its engine",
            )
    _check_kind(artifact)
    _CHECKS[artifact.target](artifact.file, files)


def _check_kind(artifact: Artifact) -> None:
    """An engine takes what it recognises, whatever the name; so the name must say what was checked."""
    suffix = _GRAPH_SUFFIXES.get(artifact.target)
    if suffix and not artifact.file.endswith(suffix):
        raise BundleFormatError(f"{artifact.file}: the graph of target {artifact.target} must be a {suffix} file")
    if not suffix and not _PACKAGE.match(artifact.file):
        raise BundleFormatError(f"{artifact.file}: the graph of target {artifact.target} must be in a .mlpackage")


def _check_onnx(name: str, files: Files) -> None:
    onnxwire.check(name, files[name])


def _check_openvino(name: str, files: Files) -> None:
    """An IR: XML without a DTD, and every constant inside the weights."""
    xml = bytes(files[name])
    _require_plain_xml(name, xml)
    weights = name.removesuffix(".xml") + ".bin"
    size = len(files[weights]) if weights in files else 0
    try:
        for layer, attributes in _layers(xml):
            _check_layer(layer, attributes, size)
    except ElementTree.ParseError as exc:
        raise BundleFormatError(f"{name}: not XML: {exc}") from exc
    except BundleFormatError as exc:
        raise BundleFormatError(f"{name}: {exc.message}") from exc


def _require_plain_xml(name: str, data: bytes) -> None:
    if len(data) > MAX_XML_BYTES:
        raise BundleFormatError(f"{name}: {len(data)} bytes of XML, the limit is {MAX_XML_BYTES}")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise BundleFormatError(f"{name}: not UTF-8 at byte {exc.start}") from exc
    declared = re.match(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([^\"']*)", data)
    # In another encoding, or with NULs in between, a DTD would not look like one.
    if b"\0" in data or (declared and declared[1].lower() != b"utf-8"):
        raise BundleFormatError(f"{name}: the XML is not in UTF-8")
    if re.search(rb"<!(?!--|\[CDATA\[)", data):
        raise BundleFormatError(f"{name}: a DTD or entity in the XML")


def _layers(data: bytes) -> Iterator[tuple[dict[str, str], dict[str, str] | None]]:
    """Each layer's own attributes, and those of its `data` element, subgraphs' layers included."""
    open_elements: list[tuple[str, dict[str, str]]] = []
    for event, element in ElementTree.iterparse(io.BytesIO(data), events=("start", "end")):
        if event == "end":
            open_elements.pop()
            element.clear()
            continue
        parent = open_elements[-1] if open_elements else ("", {})
        open_elements.append((element.tag, element.attrib.copy()))
        if len(open_elements) > MAX_XML_DEPTH:
            raise BundleFormatError(f"XML nested deeper than {MAX_XML_DEPTH}")
        if element.tag == "layer":
            yield element.attrib.copy(), None
        elif element.tag == "data" and parent[0] == "layer":
            yield parent[1], element.attrib.copy()


def _check_layer(layer: dict[str, str], data: dict[str, str] | None, size: int) -> None:
    shown = f"layer {layer.get('name', '')[:80]!r} ({layer.get('type', '')[:80]})"
    if not re.fullmatch(r"opset\d{1,3}", layer.get("version", "")):
        raise BundleFormatError(f"{shown}: operators of {layer.get('version', '')[:80]!r} are not allowed")
    if data is None or layer.get("type") != "Const":
        return
    offset, length = data.get("offset", ""), data.get("size", "")
    if not (re.fullmatch("[0-9]{1,18}", offset) and re.fullmatch("[0-9]{1,18}", length)):
        raise BundleFormatError(f"{shown}: offset {offset[:20]!r} and size {length[:20]!r} are not numbers of bytes")
    if int(offset) + int(length) > size:
        raise BundleFormatError(f"{shown}: bytes {offset} to {int(offset) + int(length)} of {size} bytes of weights")


def _check_coreml(name: str, files: Files) -> None:
    """A package's `Manifest.json` names the parts of it that are loaded: they must be in the package."""
    coreml_package.read(name, files)


_CHECKS: dict[str, Callable[[str, Files], None]] = {
    "onnx": _check_onnx,
    "tensorrt": _check_onnx,
    "openvino": _check_openvino,
    "coreml": _check_coreml,
}
