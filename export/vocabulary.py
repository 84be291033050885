"""Finding the tokenizer of a checkpoint, and writing it as the one `tokenizer.json` that a bundle carries.

CLIP checkpoints come with a `tokenizer.json`, with `vocab.json` and `merges.txt`, or with nothing (OpenAI, OpenCLIP:
the merges lie in their packages). All become the same file.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from edgeclip.errors import BundleFormatError, UsageError
from edgeclip.manifest import TokenizerSpec
from edgeclip.tokenizer import Tokenizer, library_errors
from edgeclip.train.vocabulary import EOT, SOT, build_tokenizer, from_pairs, serialised

MERGES = 48_894
"""Merges that OpenAI's model uses of the 262,000 in its file: 49,152 less the 256 bytes and the two special tokens."""
MERGES_NAMES = ("bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt")
HUB = "hf-hub:"
_HUB_FILES = ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"]
_FOUR_WAYS = (
    "name one with --tokenizer (tokenizer.json, vocab.json beside merges.txt, or bpe_simple_vocab_16e6.txt.gz), "
    "put it beside the checkpoint, pip install open_clip_torch, or name a hub repository as hf-hub:ORG/NAME"
)


def find_tokenizer(
    checkpoint_path: Path | None, named: str | Path | None, *, vocab_size: int, context_length: int
) -> tuple[bytes, TokenizerSpec]:
    """The tokenizer that is named; else the one beside the checkpoint; else that of an installed open_clip_torch.

    Args:
        checkpoint_path: The checkpoint's file or directory.
        named: `tokenizer.json`, a directory with a tokenizer, OpenAI's merges, or `hf-hub:ORG/NAME`, the only case
            that uses the network.
        vocab_size: Rows of the text tower's embedding table.
        context_length: Columns of the text tower's input.

    Returns:
        The bytes of `tokenizer.json`, the same for the same source, and what the runtime must know beside them.

    Raises:
        UsageError: none is found, or the one that is found is damaged or does not fit the model.
    """
    where, data, pad_id = _locate(checkpoint_path, named)
    try:
        spec = _spec(data, pad_id, vocab_size=vocab_size, context_length=context_length)
        Tokenizer(data, spec)
    except BundleFormatError as exc:
        raise UsageError(f"{where}: not this model's tokenizer: {exc.message}", hint=_FOUR_WAYS) from exc
    return data, spec


def from_merges(lines: Sequence[str], *, merges: int = MERGES) -> bytes:
    """OpenAI's vocabulary from the lines of its merges file (a version line first, then one merge a line).

    Raises:
        UsageError: there are fewer merges, or a line is none.
    """
    pairs = [_pair(line) for line in lines[1 : merges + 1]]
    if len(pairs) < merges:
        raise UsageError(f"merges: {len(pairs)} found, {merges} expected")
    return from_pairs(pairs)


def from_vocab_merges(directory: Path) -> bytes:
    """Hugging Face's older pair of files, `vocab.json` and `merges.txt`, in one directory."""
    lines = _read_text(directory / "merges.txt").splitlines()
    pairs = [_pair(line) for line in lines if line.strip() and not line.startswith("#version")]
    vocab = _read_json(directory / "vocab.json")
    if not all(isinstance(i, int) for i in vocab.values()) or not {SOT, EOT} <= vocab.keys():
        raise UsageError(f"{directory / 'vocab.json'}: not CLIP's vocabulary: it must map {SOT} and {EOT} to ids")
    return build_tokenizer(vocab, pairs)


def _spec(data: bytes, pad_id: int | None, *, vocab_size: int, context_length: int) -> TokenizerSpec:
    """Start and end are what the tokenizer itself puts around an empty text."""
    parsed = _parsed(data, "tokenizer.json")
    with library_errors():
        frame = parsed.encode("").ids
    if len(frame) != 2:
        raise BundleFormatError(f"an empty text gives {len(frame)} tokens, not a start and an end")
    return TokenizerSpec(
        file="tokenizer.json",
        context_length=context_length,
        vocab_size=vocab_size,
        sot_id=frame[0],
        eot_id=frame[1],
        pad_id=frame[1] if pad_id is None else pad_id,  # as transformers does for CLIP
    )


def _locate(checkpoint_path: Path | None, named: str | Path | None) -> tuple[str, bytes, int | None]:
    """Where it was found, `tokenizer.json`, and the padding id where it is known."""
    if named is not None:
        return str(named), *_from_named(named)
    if checkpoint_path is not None:
        directory = checkpoint_path if checkpoint_path.is_dir() else checkpoint_path.parent
        if found := _from_directory(directory):
            return str(directory), *found
    if path := _open_clip_merges():
        return str(path), *_from_file(path)
    raise UsageError("no tokenizer was found for this checkpoint", hint=_FOUR_WAYS)


def _from_named(named: str | Path) -> tuple[bytes, int | None]:
    on_hub = isinstance(named, str) and named.startswith(HUB)
    path = _fetch(str(named).removeprefix(HUB)) if on_hub else Path(named)
    if path.is_file():
        return _from_file(path)
    if not path.is_dir():
        raise UsageError(f"{named}: no such file or directory", hint=_FOUR_WAYS)
    if found := _from_directory(path):
        return found
    raise UsageError(f"{named}: holds no tokenizer", hint=_FOUR_WAYS)


def _from_directory(directory: Path) -> tuple[bytes, int | None] | None:
    for name in ("tokenizer.json", "vocab.json", *MERGES_NAMES):
        if (directory / name).is_file():
            return _from_file(directory / name)
    return None


def _from_file(path: Path) -> tuple[bytes, int | None]:
    if path.name.endswith((".txt.gz", ".txt")) and path.name != "merges.txt":
        return from_merges(_read_text(path).split("\n")), 0  # OpenAI and OpenCLIP pad with zeros
    if path.name in ("vocab.json", "merges.txt"):
        data = from_vocab_merges(path.parent)
    else:
        data = serialised(_parsed(_read(path), str(path)))
    return data, _pad_id(path, data)


def _pad_id(path: Path, data: bytes) -> int | None:
    """What the files beside it say, else the file itself."""
    parsed = _parsed(data, str(path))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        beside = path.parent / name
        token = _read_json(beside).get("pad_token") if beside.is_file() else None
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and (id_ := parsed.token_to_id(token)) is not None:
            return int(id_)
    padding = _read_json(path).get("padding") if path.suffix == ".json" else None
    if isinstance(padding, dict) and isinstance(padding.get("pad_id"), int):
        return int(padding["pad_id"])
    return None


def _open_clip_merges() -> Path | None:
    """The package is located, not imported: importing it takes seconds and runs its code."""
    package = importlib.util.find_spec("open_clip")
    folders = package.submodule_search_locations if package else None
    paths = [Path(folder) / name for folder in folders or () for name in MERGES_NAMES]
    return next((path for path in paths if path.is_file()), None)


def _fetch(reference: str) -> Path:
    """Download a hub repository's tokenizer files; `ORG/NAME` or `ORG/NAME@REVISION`."""
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as exc:
        if exc.name != "huggingface_hub":
            raise
        raise UsageError("huggingface_hub is not installed", hint="pip install 'edgeclip[hub]'") from exc
    name, _, revision = reference.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_HUB_FILES))
    except Exception as exc:  # its errors, and those of the network stack below it
        raise UsageError(f"{HUB}{reference}: could not be fetched: {' '.join(str(exc).split())[:200]}") from exc


def _parsed(data: bytes, where: str) -> Any:
    try:
        with library_errors():
            return tokenizers.Tokenizer.from_str(data.decode("utf-8"))
    except BundleFormatError as exc:
        raise UsageError(f"{where}: not a tokenizer: {exc.message}", hint=_FOUR_WAYS) from exc


def _pair(line: str) -> tuple[str, str]:
    parts = line.split()
    if len(parts) != 2:
        raise UsageError(f"merges: a line must hold two symbols, got {line[:50]!r}")
    return parts[0], parts[1]


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as exc:
        raise UsageError(f"{path}: cannot be read: {exc}") from exc


def _read_text(path: Path) -> str:
    try:
        return _read(path).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path}: not UTF-8 at byte {exc.start}") from exc


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"{path}: not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise UsageError(f"{path}: not a JSON object")
    return value
