"""Tokenizing: texts become int32 [B, C] token ids, as the model was trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from edgeclip.errors import BundleFormatError, ResourceError, TextInputError
from edgeclip.manifest import TokenizerSpec

Ids = NDArray[np.int32]

MAX_TEXT_BYTES = 64 * 1024
"""Per text, in UTF-8. Far above what any context holds; it bounds the time that one text can take."""
_TRIM_STEP = 8
"""Trimmed lengths are multiples of this: engines keep a plan for every shape that they have seen."""


class Tokenizer:
    """Text -> token ids, from a bundle's `tokenizer.json`. Safe to use from many threads.

    Truncation and padding follow `spec`, whatever the JSON says.

    Raises:
        BundleFormatError: the JSON is no tokenizer, or does not fit `spec`.
    """

    def __init__(self, data: bytes, spec: TokenizerSpec) -> None:
        self.spec = spec
        self._data = data
        self._reference = _load(data, encode_special=False)
        _check(self._reference, spec)

    def __call__(self, texts: Sequence[str], *, allow_special: bool = True) -> Ids:
        """Tokenize. Returns int32 [B, C]: start, text, end, padding; a text too long is cut before the end token.

        Args:
            texts: At most 64 KiB of UTF-8 each.
            allow_special: Read `<|endoftext|>` and `<|startoftext|>` in a text as the tokens, as the reference
                tokenizer does; False reads them as plain text.

        Raises:
            TextInputError: an element is not a string, is too long, or is not valid Unicode; names its index.
        """
        checked = _checked(texts)
        ids = np.full((len(checked), self.spec.context_length), self.spec.pad_id, np.int32)
        with library_errors():
            encodings = (self._reference if allow_special else self._plain).encode_batch_fast(checked)
        for row, encoding in zip(ids, encodings, strict=True):
            self._fill(row, encoding.ids)
        return ids

    def lengths(self, ids: Ids) -> NDArray[np.int64]:
        """Tokens per row up to and with the first end-of-text token. See `lengths`."""
        return lengths(ids, self.spec.eot_id)

    def trim(self, ids: Ids) -> Ids:
        """Cut columns that cannot change an embedding; none where the tower is not causal. See `trim`."""
        return trim(ids, self.spec.eot_id) if self.spec.causal else ids

    @cached_property
    def _plain(self) -> Any:
        """Rarely needed, and a setting of the whole tokenizer: hence a second one."""
        return _load(self._data, encode_special=True)

    def _fill(self, row: Ids, found: list[int]) -> None:
        kept = found[: len(row)]
        if max(kept, default=0) >= self.spec.vocab_size:
            raise BundleFormatError(f"tokenizer.json: gives id {max(kept)}, the vocabulary has {self.spec.vocab_size}")
        row[: len(kept)] = kept
        if len(found) > len(row):
            row[-1] = self.spec.eot_id


def lengths(ids: Ids, eot_id: int) -> NDArray[np.int64]:
    """[B, C] token ids -> [B] int64: 1 + the position of the first end-of-text token; C where there is none."""
    is_end = ids == eot_id
    found: NDArray[np.int64] = np.where(is_end.any(axis=1), is_end.argmax(axis=1) + 1, ids.shape[1])
    return found


def trim(ids: Ids, eot_id: int) -> Ids:
    """[B, C] -> [B, n], a view: all rows up to the last of their first end-of-text tokens, to a multiple of 8.

    In a causal tower nothing after that token can reach it, so the embeddings stay the same and cost less.
    """
    if len(ids) == 0:
        return ids
    needed = int(lengths(ids, eot_id).max())
    return ids[:, : -(-needed // _TRIM_STEP) * _TRIM_STEP]


def _checked(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str | bytes):
        raise TextInputError(f"texts: a sequence of strings is expected, got one {type(texts).__name__}", hint="[text]")
    try:
        listed = list(texts)
    except TypeError as exc:
        raise TextInputError(f"texts: a sequence of strings is expected, got {type(texts).__name__}") from exc
    for index, text in enumerate(listed):
        _check_text(index, text)
    return listed


def _check_text(index: int, text: object) -> None:
    if not isinstance(text, str):
        raise TextInputError(f"text {index}: a string is expected, got {type(text).__name__}")
    size = len(text)  # never more than the bytes, and known without encoding
    if size <= MAX_TEXT_BYTES:
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError as exc:
            raise TextInputError(
                f"text {index}: lone surrogate at character {exc.start}, not valid Unicode",
                hint="decode the source with errors='replace'",
            ) from exc
    if size > MAX_TEXT_BYTES:
        raise TextInputError(f"text {index}: more than {MAX_TEXT_BYTES} bytes of UTF-8", hint="cut it")


@contextmanager
def library_errors() -> Iterator[None]:
    """The Rust library panics on some damaged files; a panic arrives as a BaseException of a private class.

    Raises:
        BundleFormatError: for it, and for every ordinary error of the library.
        ResourceError: out of memory.
    """
    try:
        yield
    except MemoryError as exc:
        raise ResourceError("tokenizer: out of memory") from exc
    except BaseException as exc:
        if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
            raise  # KeyboardInterrupt, SystemExit, GeneratorExit
        raise BundleFormatError(f"tokenizer.json: {' '.join(str(exc).split())[:300]}") from exc


def _load(data: bytes, *, encode_special: bool) -> Any:
    with library_errors():
        loaded = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        loaded.no_truncation()
        loaded.no_padding()
        loaded.encode_special_tokens = encode_special
    return loaded


def _check(loaded: Any, spec: TokenizerSpec) -> None:
    """Every id must be a row of the text tower's embedding table, and a text must come between start and end."""
    with library_errors():
        ids = loaded.get_vocab(with_added_tokens=True).values()
        frame = loaded.encode("").ids
    if max(ids, default=-1) >= spec.vocab_size:
        raise BundleFormatError(
            f"tokenizer.json: has ids up to {max(ids)}, the model's vocabulary has {spec.vocab_size}",
            hint="this tokenizer belongs to another model",
        )
    for name, id_ in (("sot_id", spec.sot_id), ("eot_id", spec.eot_id)):
        if loaded.id_to_token(id_) is None:
            raise BundleFormatError(f"tokenizer.json: no token has the {name} {id_}")
    if frame != [spec.sot_id, spec.eot_id]:
        raise BundleFormatError(f"tokenizer.json: an empty text gives {frame[:8]}, not [{spec.sot_id}, {spec.eot_id}]")
    if not 0 <= spec.pad_id < spec.vocab_size:
        raise BundleFormatError(f"tokenizer: pad_id {spec.pad_id} is outside the vocabulary of {spec.vocab_size}")
