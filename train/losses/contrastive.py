"""The contrastive loss of CLIP, and its form for pairs that share a caption."""

from __future__ import annotations

import torch
from torch import Tensor

_EXCLUDED = -1e9
"""The logit of what is not compared: nothing is left of it in a softmax, and 0 times it is 0."""


def contrastive(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    *,
    positives: Tensor | None = None,
    compared: Tensor | None = None,
    rows: slice | None = None,
) -> Tensor:
    """Symmetric cross-entropy of the batch's [B, B] logits; a scalar.

    Args:
        image, text: float [B, D], L2-normalised. Row i of one belongs to row i of the other.
        scale: exp(t), the factor from cosine to logit.
        positives: bool [B, B], symmetric with a true diagonal: pairs that match as well. The target of a row is
            uniform over them.
        compared: bool [B, B], symmetric with a true diagonal: pairs that are contrasted at all; None: all are.
        rows: a rank's own rows of the gathered batch. The result is their part: over all ranks the parts sum up to
            the loss of the whole batch, and no rank computes all B x B logits.

    Source: arXiv 2103.00020 §2.3; uniform targets over several positives as in UniCL, arXiv 2204.03610 §3.1.
    """
    own = slice(None) if rows is None else rows
    matches = _diagonal(len(image), image.device) if positives is None else positives
    of_image, of_text = scale * image[own] @ text.T, scale * text[own] @ image.T
    if compared is not None:
        matches = matches & compared
        of_image, of_text = (logits.masked_fill(~compared[own], _EXCLUDED) for logits in (of_image, of_text))
    from_image, from_text = _cross_entropy(of_image, matches[own]), _cross_entropy(of_text, matches.T[own])
    return (from_image + from_text) / (2 * len(image))


def same(keys: Tensor) -> Tensor:
    """int64 [B] to bool [B, B]: which pairs share a caption, or a source."""
    return keys[:, None] == keys[None, :]


def _cross_entropy(logits: Tensor, matches: Tensor) -> Tensor:
    """Sum over rows of the cross-entropy with a target that is uniform over `matches`."""
    targets = matches.to(logits.dtype)
    targets = targets / targets.sum(1, keepdim=True)
    return -(targets * torch.log_softmax(logits, dim=1)).sum()


def _diagonal(size: int, device: torch.device) -> Tensor:
    return torch.eye(size, dtype=torch.bool, device=device)
