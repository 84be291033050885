"""Strict tables: an unknown key is refused with its table and the nearest known one; overrides by dotted keys."""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import msgspec

from edgeclip.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TOML_TYPES = {"str": "a string", "int": "an integer", "float": "a number", "bool": "true or false"}


def read_toml(file: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        UsageError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{file}: cannot be read: {exc}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{file.name}: not TOML: {exc}") from exc


def override(tables: dict[str, Any], text: str) -> None:
    """Set `a.b=value` in nested tables. The value is TOML; what is none is a string."""
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UsageError(f"override {text!r} is not of the form table.key=value", hint="as loop.batch_size=256")
    table = tables
    for part in path[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UsageError(f"override {text!r}: {part} is no table")
    table[path[-1]] = _value(value.strip())


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def refuse_unknown(table: Any, kind: Any, path: str, where: str) -> None:
    """Find the first unknown key, so that the message can name its neighbours, which msgspec's does not."""
    if not isinstance(table, dict) or not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    tag = kind.__struct_config__.tag_field
    for key, value in table.items():
        if key not in fields and key != tag:
            close = difflib.get_close_matches(key, fields, n=1, cutoff=0.6)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(fields)}"
            raise UsageError(f"{where} [{path or 'top'}]: unknown key {key!r}", hint=hint)
        _descend(value, fields.get(key), f"{path}.{key}" if path else key, where)


def _descend(value: Any, kind: Any, path: str, where: str) -> None:
    arguments = get_args(kind)
    if isinstance(value, list) and arguments:
        for item in value:
            _descend(item, arguments[0], path, where)
        return
    options = _structs(kind)
    tagged = {option.__struct_config__.tag: option for option in options}
    chosen = tagged.get(value.get("kind") if isinstance(value, dict) else None, options[0] if options else None)
    if len(options) < 2 or (isinstance(value, dict) and value.get("kind") in tagged):
        refuse_unknown(value, chosen, path, where)


def _structs(kind: Any) -> list[Any]:
    """The structs that a type may be."""
    if get_origin(kind) is Annotated:
        return _structs(get_args(kind)[0])
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    return [struct for argument in get_args(kind) for struct in _structs(argument)]


def in_toml(message: str) -> str:
    """msgspec's message in TOML's words: `$.loop.lr` becomes `loop.lr`."""
    message = message.replace("`$.", "`")
    return re.sub(r"`(str|int|float|bool)`", lambda match: _TOML_TYPES[match[1]], message)
