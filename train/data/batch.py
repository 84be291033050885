"""What a step of training is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Seeds = NDArray[np.uint64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """B pairs of image and text, the images not yet augmented."""

    pixels: Tensor
    """uint8 [B, H, W, 3], H = W = `data.size`."""
    views: Tensor
    """float32 [B, 8], what `augment.apply` does to each image."""
    ids: Tensor
    """int32 [B, C'], cut after the longest text."""
    caption_keys: Tensor
    """int64 [B], equal where two pairs share their caption or class."""
    sources: Tensor
    """int64 [B], the number of each pair's source in the recipe."""
    texts: Sequence[str]
    """The captions, for teachers that have a tokenizer of their own."""
    keys: Sequence[str]
    """Of the samples."""
    teachers: Sequence[Mapping[str, Tensor]] = field(default_factory=tuple)
    """For each teacher whose embeddings are stored: `image` and `text`, float [B, D]."""

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        if device.type == "cpu":
            return self
        moved = {name: getattr(self, name).to(device) for name in ("pixels", "views", "ids", "caption_keys", "sources")}
        teachers = [{name: tensor.to(device) for name, tensor in one.items()} for one in self.teachers]
        return replace(self, **moved, teachers=teachers)

    def part(self, rows: slice) -> Batch:
        """Some of its pairs; no copy."""
        return Batch(
            self.pixels[rows],
            self.views[rows],
            self.ids[rows],
            self.caption_keys[rows],
            self.sources[rows],
            self.texts[rows],
            self.keys[rows],
            [{name: tensor[rows] for name, tensor in one.items()} for one in self.teachers],
        )


class TeacherStore(Protocol):
    """A teacher's embeddings of views that were chosen beforehand."""

    seed: int
    """The views are those of `view_seeds(seed, ids, variant)`."""
    variants: int
    """How many views there are of each sample."""
    dim: int
    """D of its embeddings."""
    scale: float
    """The teacher's exp(logit_scale)."""

    def lookup(self, keys: Sequence[str], variants: Indices) -> Mapping[str, Tensor]:
        """`image` and `text`, float [B, D], of each sample's view.

        Raises:
            DataError: a sample is not in the store.
        """
        ...
