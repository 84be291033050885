"""What an ONNX file may contain, judged from its bytes before an engine parses them; needs no `onnx` package.

A model is a protobuf message. The walk visits the graph's structure and skips tensors' payloads by their length, so
that its time depends on the number of nodes, not on the size of the weights.

Source: field numbers from onnx.proto3 (ONNX 1.19); wire format from protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeclip.buffers import Buffer
from edgeclip.errors import BundleFormatError, BundlePathError

MAX_SUBGRAPH_DEPTH = 8
MAX_FIELDS = 2_000_000
CONTRIB_OPS = frozenset({b"QuickGelu", b"Gelu", b"FusedMatMul", b"QuantizeLinear", b"DequantizeLinear", b"MatMulNBits"})
"""Operators of the `com.microsoft` domain that a CLIP tower may need."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTION = 7, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_NAME, _NODE_OP, _NODE_ATTRIBUTE, _NODE_DOMAIN = 3, 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 8, 13, 14
_SPARSE_TENSORS = (1, 2)

Span = tuple[int, int]


def check(path: str, data: Buffer) -> None:
    """Refuse a model that reads other files, has operators or functions of its own, or is not well-formed.

    Raises:
        BundlePathError: a tensor keeps its data outside the file.
        BundleFormatError: an operator domain that is not allowed, a function, subgraphs nested too deep, or bad
            protobuf.
    """
    try:
        _Model(data).check()
    except IndexError as exc:
        raise BundleFormatError(f"{path}: not an ONNX model: truncated") from exc
    except (BundleFormatError, BundlePathError) as exc:
        raise type(exc)(f"{path}: {exc.message}") from exc


class _Model:
    def __init__(self, data: Buffer) -> None:
        self._data = data
        self._fields_left = MAX_FIELDS

    def check(self) -> None:
        if self._data[4:8] == b"ORTM":  # ONNX Runtime takes its own format under any name.
            raise BundleFormatError("in ONNX Runtime's own format, not an ONNX model")
        graphs = []
        for number, wire, start, end in self._fields((0, len(self._data))):
            if number in (_MODEL_TRAINING, _MODEL_FUNCTION):
                raise BundleFormatError("the model defines functions or training steps of its own")
            if number == _MODEL_GRAPH and wire == _BYTES:
                graphs.append((start, end))
        if not graphs:
            raise BundleFormatError("not an ONNX model: it has no graph")
        for graph in graphs:
            self._check_graph(graph, depth=0)

    def _check_graph(self, span: Span, depth: int) -> None:
        for number, wire, start, end in self._fields(span):
            if wire != _BYTES:
                continue
            if number == _GRAPH_NODE:
                self._check_node((start, end), depth)
            elif number == _GRAPH_INITIALIZER:
                self._check_tensor((start, end))
            elif number == _GRAPH_SPARSE:
                self._check_sparse((start, end))

    def _check_node(self, span: Span, depth: int) -> None:
        name = b""
        ops, domains, attributes = set(), set(), []
        for number, wire, start, end in self._fields(span):
            if wire != _BYTES:
                continue
            if number == _NODE_ATTRIBUTE:
                attributes.append((start, end))
            elif number == _NODE_OP:
                ops.add(self._text(start, end))
            elif number == _NODE_DOMAIN:
                domains.add(self._text(start, end))
            elif number == _NODE_NAME:
                name = self._text(start, end)
        # A field may stand twice, and then the last one counts: all of them must be allowed.
        node = f"node {_shown(name)} ({' '.join(map(_shown, sorted(ops)))})"
        for domain in domains - {b"", b"ai.onnx"}:
            if domain != b"com.microsoft" or not ops <= CONTRIB_OPS:
                raise BundleFormatError(f"{node}: operators of domain {_shown(domain)} are not allowed")
        for attribute in attributes:
            self._check_attribute(attribute, node, depth)

    def _check_attribute(self, span: Span, node: str, depth: int) -> None:
        for number, wire, start, end in self._fields(span):
            if wire != _BYTES:
                continue
            if number in _ATTRIBUTE_TENSORS:
                self._check_tensor((start, end))
            elif number in _ATTRIBUTE_SPARSE:
                self._check_sparse((start, end))
            elif number in _ATTRIBUTE_GRAPHS:
                if depth == MAX_SUBGRAPH_DEPTH:
                    raise BundleFormatError(f"{node}: subgraphs nested deeper than {MAX_SUBGRAPH_DEPTH}")
                self._check_graph((start, end), depth + 1)

    def _check_sparse(self, span: Span) -> None:
        for number, wire, start, end in self._fields(span):
            if number in _SPARSE_TENSORS and wire == _BYTES:
                self._check_tensor((start, end))

    def _check_tensor(self, span: Span) -> None:
        name = b""
        external = False
        for number, wire, start, end in self._fields(span):
            if number == _TENSOR_NAME and wire == _BYTES:
                name = self._text(start, end)
            elif number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and start):
                external = True
        if external:
            raise BundlePathError(f"tensor {_shown(name)} keeps its data in another file: a graph must hold its own")

    def _text(self, start: int, end: int) -> bytes:
        return bytes(self._data[start:end])

    def _fields(self, span: Span) -> Iterator[tuple[int, int, int, int]]:
        """Fields of a message as (number, wire type, start, end) of the payload; a varint's value stands in `start`."""
        data = self._data
        position, stop = span
        while position < stop:
            key, position = self._varint(position)
            number, wire = key >> 3, key & 7
            start = position
            if wire == _BYTES:
                length, start = self._varint(position)
                position = end = start + length
            elif wire == _VARINT:
                start, position = self._varint(position)
                end = position
            elif wire in (_FIXED64, _FIXED32):
                position = end = position + (8 if wire == _FIXED64 else 4)
            else:
                raise BundleFormatError(f"not an ONNX model: wire type {wire} at byte {position}")
            if position > stop or not 0 < number < 1 << 29:
                raise BundleFormatError(f"not an ONNX model: field {number} ends at byte {position} of {len(data)}")
            self._fields_left -= 1
            if self._fields_left < 0:
                raise BundleFormatError(f"more than {MAX_FIELDS} fields")
            yield number, wire, start, end

    def _varint(self, position: int) -> tuple[int, int]:
        """Value and the position after it."""
        byte = self._data[position]
        if byte < 0x80:
            return byte, position + 1
        value = 0
        for shift in range(0, 70, 7):
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise BundleFormatError(f"not an ONNX model: a number of more than 10 bytes at byte {position}")


def _shown(name: bytes) -> str:
    return repr(name[:80].decode("utf-8", "backslashreplace"))
