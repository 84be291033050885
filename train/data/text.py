"""The tokenizer that a model is trained with, and the ids of texts that come again and again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeclip.errors import BundleFormatError, UsageError
from edgeclip.manifest import TokenizerSpec
from edgeclip.tokenizer import Tokenizer, library_errors
from edgeclip.train.models.config import TextConfig

_KEPT = 1 << 20
"""Texts whose ids are kept."""


class Texts:
    """Texts to ids, each text tokenized once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, NDArray[np.int32]] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int32 [B, C'], cut after the longest text where that changes nothing."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        if fresh:
            self._add(fresh)
        ids = np.stack([self._known[text] for text in texts])
        return torch.from_numpy(np.ascontiguousarray(self._tokenizer.trim(ids)))

    def _add(self, texts: list[str]) -> None:
        if len(self._known) + len(texts) > _KEPT:
            self._known.clear()
        self._known.update(zip(texts, self._tokenizer(texts), strict=True))


def open_tokenizer(data: bytes, config: TextConfig, where: str | Path) -> Tokenizer:
    """A `tokenizer.json` for a text tower.

    Raises:
        UsageError: it is damaged, or does not fit.
    """
    try:
        with library_errors():
            frame = tokenizers.Tokenizer.from_str(data.decode("utf-8")).encode("").ids
        if len(frame) != 2:
            raise BundleFormatError(f"an empty text gives {len(frame)} tokens, not a start and an end")
        spec = TokenizerSpec(
            file="tokenizer.json",
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            sot_id=frame[0],
            eot_id=frame[1],
            pad_id=frame[1],
        )
        return Tokenizer(data, spec)
    except (BundleFormatError, UnicodeDecodeError) as exc:
        raise UsageError(f"{where}: not this model's tokenizer: {exc}") from exc
