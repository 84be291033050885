"""Embeddings whose first coordinates are embeddings of their own: each loss is the mean of that at several widths.

Source: A. Kusupati et al., arXiv 2205.13147 §3, with equal weights; in place of their sum the mean, so that the weights
of a recipe's losses mean the same with any number of widths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def nested(rows: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """float [B, D] as it is, then its first coordinates at each width, [B, width], L2-normalised again."""
    return [rows, *(F.normalize(rows[:, :width], dim=-1) for width in widths)]
