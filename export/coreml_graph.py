"""What a Core ML program computes: a tower behind pixels or ids as an app has them, in operators that Core ML likes."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from edgeclip.errors import ExportError
from edgeclip.export.graph import PlanarImageGraph, TextGraph
from edgeclip.manifest import Preprocess, Tower
from edgeclip.train.models.clip import Clip
from edgeclip.train.models.folding import fold_batchnorm
from edgeclip.train.models.layers import MASKED
from edgeclip.train.models.text import TextTransformer

MAX_TEXTS = 8
"""Rows of ids that a text program takes at once."""
_EXACT_IN_HALF = 1 << 11
"""Whole numbers up to here are exact in half precision."""


class PooledText(nn.Module):
    """The text tower, its pooled position found by arithmetic: the same numbers, without indices made at run time.

    Core ML has no good form of `x[arange, at]`: coremltools makes thirteen operators of it that only a CPU runs. Here
    the row is picked by a product with zeros and a one.
    """

    earliest: Tensor

    def __init__(self, text: TextTransformer) -> None:
        super().__init__()
        self.text = text
        length = len(text.position_embedding)
        if 2 * length > _EXACT_IN_HALF:
            raise ExportError(
                f"coreml: a context of {length} tokens is too long", hint=f"{_EXACT_IN_HALF // 2} at most"
            )
        self.register_buffer("earliest", torch.arange(length, 0, -1, dtype=torch.float32))  # C, …, 1

    def forward(self, ids: Tensor) -> Tensor:
        """[B, C] to features [B, D], not L2-normalised."""
        text = self.text
        x = text.token_embedding(ids) + text.position_embedding  # [B, C, W]
        first, last = list(text.transformer.blocks)[:-1], text.transformer.blocks[-1]
        for block in first:
            x = block(x, None, text.mask)
        at = self._end(ids)
        later = self.earliest < (at * self.earliest).sum(dim=-1, keepdim=True)  # [B, C]
        x = last(torch.matmul(at[:, None], x), x, (later.float() * MASKED)[:, None, None])
        return cast("Tensor", text.projection(text.norm_post(x.squeeze(1))))

    def _end(self, ids: Tensor) -> Tensor:
        """[B, C] float: 1 where `end_positions` is, 0 elsewhere."""
        end = ids.amax(dim=-1, keepdim=True) if self.text.eot_id is None else self.text.eot_id
        score = (ids == end).float() * len(self.earliest) + self.earliest
        return (score == score.amax(dim=-1, keepdim=True)).float()


def coreml_graph(clip: Clip, tower: Tower, preprocess: Preprocess) -> nn.Module:
    """The graph of one tower in fp32, in evaluation mode. The model itself is not changed.

    Raises:
        ExportError: the text tower's context is too long.
    """
    if tower == "text":
        return TextGraph(PooledText(clip.text)).eval()
    return PlanarImageGraph(fold_batchnorm(clip.image), preprocess).eval()


def coreml_example(clip: Clip, tower: Tower) -> Tensor:
    """An example input of the graph, for tracing: a batch of 1 for images, of any other size for texts."""
    if tower == "image":
        return torch.zeros(1, 3, clip.config.image_size, clip.config.image_size)
    return torch.ones(2, clip.config.text.context_length, dtype=torch.int32)
