"""The text tower."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from edgeclip.train.models.config import TextConfig
from edgeclip.train.models.layers import LayerNorm, Transformer, causal_mask


class TextTransformer(nn.Module):
    """A causal transformer; the end-of-text position is the feature. Source: arXiv 2103.00020 §2.4."""

    mask: Tensor

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        width, eps = config.width, config.layer_norm_eps
        self.eot_id = config.eot_id
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = nn.Parameter(torch.empty(config.context_length, width))
        self.transformer = Transformer(width, config.layers, config.heads, config.mlp_width, config.activation, eps)
        self.norm_post = LayerNorm(width, eps=eps)
        self.projection = nn.Linear(width, embed_dim, bias=False)
        self.register_buffer("mask", causal_mask(config.context_length), persistent=False)
        self.reset_parameters()

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [B, C'] of an integer dtype, C' ≤ context_length, to features [B, D], not L2-normalised.

        No position sees a later one: what follows a row's end-of-text token may be cut off.
        """
        length = ids.shape[1]
        x = self.token_embedding(ids) + self.position_embedding[:length]  # [B, C', W]
        pooled = self.transformer(x, end_positions(ids, self.eot_id), self.mask[:length, :length])  # [B, W]
        return cast("Tensor", self.projection(self.norm_post(pooled)))

    def reset_parameters(self) -> None:
        """Draw new weights. Source: github.com/openai/CLIP."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)
        nn.init.normal_(self.projection.weight, std=self.transformer.width**-0.5)
        self.transformer.reset_parameters()

    def reset_mask(self) -> None:
        """Make the mask anew: it is no weight, so that a model made on the `meta` device has none yet."""
        self.mask = causal_mask(self.position_embedding.shape[0])


def end_positions(ids: Tensor, eot_id: int | None) -> Tensor:
    """[B] int64: the first position of `eot_id` in each row, or of the row's highest id when it is None.

    Ids are compared as integers, because half precision cannot tell 49406 from 49407; the earliest hit scores highest,
    because engines differ in which of equal maxima they return.
    """
    end = ids.amax(dim=-1, keepdim=True) if eot_id is None else eot_id
    earliest = torch.arange(ids.shape[1], 0, -1, dtype=torch.float32, device=ids.device)  # [C']: C', …, 1
    return ((ids == end).float() * earliest).argmax(dim=-1)
