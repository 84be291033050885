"""What is minimised: the contrastive loss and, with a teacher, what distillation adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgeclip.train.losses.contrastive import contrastive, same
from edgeclip.train.losses.distillation import mean
from edgeclip.train.losses.matryoshka import nested
from edgeclip.train.recipe import Recipe

if TYPE_CHECKING:
    from edgeclip.train.distill import Distiller, TeacherBatch


class Objective(nn.Module):
    """The weighted sum of a recipe's losses over a gathered batch."""

    def __init__(self, recipe: Recipe, distiller: Distiller | None = None) -> None:
        super().__init__()
        self._multi_positive = recipe.loop.multi_positive
        self._within_source = recipe.by_source
        self._widths = recipe.model.matryoshka
        self._contrastive = recipe.distill.contrastive if recipe.distill else 1.0
        weights = recipe.distill.weights if recipe.distill else {}
        self._weights: dict[str, float] = {str(name): weight for name, weight in weights.items()}
        self.distiller = distiller

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        keys: Tensor,
        sources: Tensor,
        teachers: Sequence[TeacherBatch],
        rows: slice,
    ) -> dict[str, Tensor]:
        """This rank's parts of the losses, each unweighted, and `loss`, their weighted sum.

        Over the ranks, the parts sum up to the losses of the whole batch.

        Args:
            image, text: float32 [B, D], L2-normalised, of all ranks.
            keys: int64 [B], equal where pairs share a caption.
            sources: int64 [B], equal where pairs are of one source.
            teachers: their embeddings of the same B pairs.
            rows: this rank's own.
        """
        positives = same(keys) if self._multi_positive else None
        compared = same(sources) if self._within_source else None
        pairs = zip(nested(image, self._widths), nested(text, self._widths), strict=True)
        plain = [contrastive(*pair, scale, positives=positives, compared=compared, rows=rows) for pair in pairs]
        losses = {"contrastive": mean(plain)}
        total = self._contrastive * losses["contrastive"]
        if self.distiller is not None:
            taught = self.distiller.loss(image, text, scale, list(teachers), positives=positives)
            share = (rows.stop - rows.start) / len(image)
            for name, value in taught.items():
                losses[name] = value * share
                total = total + self._weights[name] * losses[name]
        return {**losses, "loss": total}


def detached(losses: dict[str, Tensor]) -> tuple[list[str], Tensor]:
    """Names and values, float32 [n], on one tensor, so that one transfer or reduction carries them all."""
    names = sorted(losses)
    return names, torch.stack([losses[name].detach().float() for name in names])
