"""What lies in a checkpoint's directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgeclip.errors import CheckpointError

T = TypeVar("T")

WEIGHTS = (
    "open_clip_model.safetensors",
    "model.safetensors.index.json",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""Names under which libraries save weights, best first: safetensors before pickles."""
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def find_weights(folder: Path) -> list[Path]:
    """The file that holds the weights, or the files, where they are sharded.

    Raises:
        CheckpointError: there is none, or more than one that could be meant.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return _shards(folder / name) if name.endswith(".index.json") else [folder / name]
    found = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
    if len(found) == 1:
        return found
    if not found:
        raise CheckpointError(f"{folder.name}: no weights in the directory", hint=f"looked for {', '.join(WEIGHTS)}")
    raise CheckpointError(
        f"{folder.name}: {len(found)} files could hold the weights: {', '.join(f.name for f in found)}",
        hint="name the file instead of the directory",
    )


def _shards(index: Path) -> list[Path]:
    names = sorted(set(read_json(index, _Index).weight_map.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside or not names:
        raise CheckpointError(f"{index.name}: {outside[0] if outside else 'nothing'} is not a file beside it")
    return [index.parent / name for name in names]


def read_json(file: Path, kind: type[T]) -> T:
    """A JSON file as a struct; unknown keys are allowed, since other projects add some.

    Raises:
        CheckpointError: it is missing, is not JSON, or has a value of another type.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except FileNotFoundError as exc:
        raise CheckpointError(f"{file.name}: no such file") from exc
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise CheckpointError(f"{file.name}: {exc}") from exc


def convert(values: dict[str, Any], kind: type[T], where: str) -> T:
    """Checked values as one of our structs.

    Raises:
        CheckpointError: naming the field that is wrong.
    """
    try:
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, ValueError) as exc:
        raise CheckpointError(f"{where}: {exc}") from exc


def find_tokenizer(folder: Path) -> Path | None:
    """`tokenizer.json`, or the directory itself where it has `vocab.json` and `merges.txt`."""
    if (folder / "tokenizer.json").is_file():
        return folder / "tokenizer.json"
    pair = all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    return folder if pair else None


def find_licence(folder: Path) -> str:
    """What the model card's header states, or an empty string."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    header = re.match(r"---\r?\n(.*?)\r?\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    licence = re.search(r"^license:[ \t]*(.+?)[ \t]*$", header[1], re.MULTILINE) if header else None
    return licence[1].strip("'\"") if licence else ""


def square(size: int | list[int], what: str, where: str) -> int:
    """One side of a size that may be given as two.

    Raises:
        CheckpointError: the sides differ.
    """
    sides = [size] if isinstance(size, int) else size
    if len(set(sides)) != 1:
        raise CheckpointError(f"{where}: {what} {size} is not square")
    return sides[0]
