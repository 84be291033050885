"""Protobuf messages, read by field number from bytes that somebody else wrote.

Nothing is copied until it is asked for, every length is checked against the message that it lies in, and a field that
is asked for as another kind than it is written in is an error.

Source: wire format from protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from edgeclip.errors import TargetLoadError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}
_LONGEST_VARINT = 10


class Message:
    """One message. Of a field that may stand once, the last one counts; absent ones have proto3's default value."""

    def __init__(self, data: memoryview) -> None:
        self._fields: dict[int, list[tuple[int, int | memoryview]]] = {}
        for number, wire, value in _fields(data):
            self._fields.setdefault(number, []).append((wire, value))

    def has(self, number: int) -> bool:
        return number in self._fields

    def integer(self, number: int) -> int:
        """An unsigned integer, enum or bool; 0 where it is absent."""
        values = self._of(number, _VARINT)
        return int(values[-1]) if values else 0

    def signed(self, number: int) -> int:
        """An int32 or int64, written in two's complement of 64 bits."""
        return _signed(self.integer(number))

    def binary(self, number: int) -> memoryview:
        """A field of bytes; empty where it is absent."""
        values = self._of(number, _BYTES)
        return values[-1] if values else memoryview(b"")  # type: ignore[return-value]

    def text(self, number: int) -> str:
        """A string; empty where it is absent."""
        return _text(self.binary(number))

    def texts(self, number: int) -> list[str]:
        """A repeated string."""
        return [_text(value) for value in self._of(number, _BYTES)]

    def message(self, number: int) -> Message:
        """A message inside this one; an empty one where it is absent."""
        return Message(self.binary(number))

    def messages(self, number: int) -> list[Message]:
        """A repeated message, or the entries of a map: their key is field 1, their value field 2."""
        return [Message(value) for value in self._of(number, _BYTES)]  # type: ignore[arg-type]

    def mapping(self, number: int) -> dict[str, Message]:
        """A map from strings to messages."""
        return {entry.text(1): entry.message(2) for entry in self.messages(number)}

    def integers(self, number: int) -> list[int]:
        """A repeated int32, int64 or bool, packed or not."""
        return [_signed(value) for value in self._repeated(number, _VARINT)]

    def numbers(self, number: int, code: str) -> bytes:
        """A repeated float (`code` is "f") or double ("d"), packed or not, as little-endian bytes."""
        wire = _FIXED32 if code == "f" else _FIXED64
        found = bytearray()
        for kind, value in self._fields.get(number, []):
            if kind == _BYTES and isinstance(value, memoryview) and len(value) % _WIDTHS[wire] == 0:
                found += value
            elif kind == wire and isinstance(value, int):
                found += struct.pack("<I" if code == "f" else "<Q", value)
            else:
                raise TargetLoadError(f"field {number} is not a list of floating-point numbers")
        return bytes(found)

    def _of(self, number: int, wire: int) -> list[int | memoryview]:
        values = self._fields.get(number, [])
        if any(kind != wire for kind, _ in values):
            raise TargetLoadError(f"field {number} is written in a way that does not fit it")
        return [value for _, value in values]

    def _repeated(self, number: int, wire: int) -> Iterator[int]:
        for kind, value in self._fields.get(number, []):
            if kind == wire and isinstance(value, int):
                yield value
            elif kind == _BYTES and isinstance(value, memoryview):
                position = 0
                while position < len(value):
                    item, position = _varint(value, position)
                    yield item
            else:
                raise TargetLoadError(f"field {number} is not a list of integers")


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Each field's number, wire type, and value: an integer, or the bytes of a string, message or list."""
    position, size = 0, len(data)
    while position < size:
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, wire, value
            continue
        if wire == _BYTES:
            length, position = _varint(data, position)
        elif wire in _WIDTHS:
            length = _WIDTHS[wire]
        else:
            raise TargetLoadError(f"not a Core ML model: wire type {wire}")
        if length > size - position:
            raise TargetLoadError(f"not a Core ML model: field {number} is longer than what it lies in")
        payload = data[position : position + length]
        position += length
        yield number, wire, payload if wire == _BYTES else int.from_bytes(payload, "little")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Value and the position after it."""
    value = 0
    for index, byte in enumerate(data[position : position + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position + index + 1
    raise TargetLoadError("not a Core ML model: a number without an end")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _text(value: int | memoryview) -> str:
    assert isinstance(value, memoryview)
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise TargetLoadError("not a Core ML model: a name that is not UTF-8") from exc
