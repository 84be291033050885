"""One step's gradients: exact for the whole batch, however it is cut into micro-batches and ranks.

    embed all parts -> gather embeddings -> loss and its gradient by embeddings -> back through each part

The contrastive loss needs all embeddings of the batch at once, but the activations of one part at a time are enough:
of several parts, each is embedded twice, the second time with activations kept.

Source: gradient caching, arXiv 2101.06983; local rows of the loss, open_clip's `local_loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeclip.manifest import Preprocess
from edgeclip.train import distributed
from edgeclip.train.data import augment
from edgeclip.train.data.batch import Batch
from edgeclip.train.distributed import World
from edgeclip.train.models.clip import Clip
from edgeclip.train.models.text import end_positions
from edgeclip.train.objective import Objective, detached

if TYPE_CHECKING:
    from edgeclip.train.distill import TeacherBatch

Encode = Callable[[Batch], tuple[Tensor, Tensor]]
_LENGTHS = 8
"""Texts whose lengths are the same in multiples of this are encoded together."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Teach(Protocol):
    """Gives the teachers' embeddings of a rank's batch."""

    def __call__(self, batch: Batch) -> list[TeacherBatch]: ...


@dataclass(frozen=True)
class Step:
    """Computes gradients; the optimizer is someone else's."""

    clip: Clip
    objective: Objective
    preprocess: Preprocess
    world: World
    precision: str = "fp32"
    micro_batch: int = 0
    """Pairs that are computed at a time; 0: all."""
    scaler: torch.amp.GradScaler | None = None
    teach: Teach | None = None

    def __call__(self, batch: Batch, side: int = 0) -> dict[str, float]:
        """Leave the whole batch's gradients in `grad` of all parameters; returns the whole batch's losses.

        Args:
            batch: this rank's part of the batch.
            side: of the images, in pixels; 0: the model's own.
        """
        parts = self._parts(batch)
        encode = partial(self._encode, side=side or self.preprocess.size)
        image, text = self._embed(parts, encode)
        leaves = [distributed.gather(part.detach(), self.world).requires_grad_() for part in (image, text)]
        losses = self._losses(batch, *leaves)
        self._scaled(losses["loss"]).backward()  # type: ignore[no-untyped-call]
        distributed.sum_over_ranks((leaf.grad for leaf in leaves), self.world)
        own = distributed.own(self.world, len(batch))
        gradients = [leaf.grad[own] for leaf in leaves if leaf.grad is not None]
        self._backward(parts, encode, (image, text), gradients)
        distributed.sum_over_ranks((parameter.grad for parameter in self.parameters()), self.world)
        return self._totals(losses)

    def parameters(self) -> Iterator[nn.Parameter]:
        """All that is trained."""
        yield from self.clip.parameters()
        yield from self.objective.parameters()

    def _parts(self, batch: Batch) -> list[Batch]:
        size = self.micro_batch or len(batch)
        return [batch.part(slice(start, start + size)) for start in range(0, len(batch), size)]

    def _embed(self, parts: Sequence[Batch], encode: Encode) -> tuple[Tensor, Tensor]:
        """[B, D] twice: of a single part with its graph, of several without."""
        if len(parts) == 1:
            return encode(parts[0])
        with torch.no_grad(), statistics_kept(self.clip):
            embedded = [encode(part) for part in parts]
        images, texts = zip(*embedded, strict=True)
        return torch.cat(images), torch.cat(texts)

    def _encode(self, batch: Batch, side: int) -> tuple[Tensor, Tensor]:
        """[B, D] twice, float32 and L2-normalised."""
        pixels = augment.normalise(augment.apply(batch.pixels, batch.views, side), self.preprocess)
        with autocast(self.precision, self.world.device):
            image, text = self.clip.encode_image(pixels), read_once(self.clip, batch.ids)
        return F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)

    def _losses(self, batch: Batch, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        taught = [_gathered(one, self.world) for one in self.teach(batch)] if self.teach else []
        keys, sources = (distributed.gather(one, self.world) for one in (batch.caption_keys, batch.sources))
        own = distributed.own(self.world, len(batch))
        scale = self.clip.logit_scale.exp()
        losses: dict[str, Tensor] = self.objective(image, text, scale, keys, sources, taught, own)
        return losses

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def _backward(
        self, parts: Sequence[Batch], encode: Encode, kept: tuple[Tensor, Tensor], gradients: Sequence[Tensor]
    ) -> None:
        """From the embeddings' gradients to the weights', part by part."""
        if len(parts) == 1:
            torch.autograd.backward(kept, gradients)
            return
        size = len(parts[0])
        for i, part in enumerate(parts):
            rows = slice(i * size, i * size + len(part))
            torch.autograd.backward(encode(part), [gradient[rows] for gradient in gradients])

    def _totals(self, losses: dict[str, Tensor]) -> dict[str, float]:
        names, values = detached(losses)
        distributed.sum_over_ranks([values], self.world)
        return dict(zip(names, values.tolist(), strict=True))


def read_once(clip: Clip, ids: Tensor) -> Tensor:
    """`clip.encode_text` of ids [B, C'] to [B, D] for less work: each distinct text once, and none longer than it is.

    Class names repeat within a batch, and most captions are a third as long as the longest.
    """
    distinct, rows = torch.unique(ids, dim=0, return_inverse=True)
    groups = end_positions(distinct, clip.text.eot_id) // _LENGTHS
    order = groups.argsort(stable=True)
    sizes = torch.bincount(groups).tolist()
    parts = zip(distinct[order].split(sizes), range(1, len(sizes) + 1), strict=True)
    features = torch.cat([clip.encode_text(part[:, : _LENGTHS * count]) for part, count in parts if len(part)])
    return features[order.argsort()[rows]]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Where matrix products and convolutions compute in half precision; nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch normalisation computes as in training, but its running statistics stay: this pass will come again."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def _gathered(teacher: TeacherBatch, world: World) -> TeacherBatch:
    if world.ranks == 1:
        return teacher
    parts = (distributed.gather(teacher.image, world), distributed.gather(teacher.text, world))
    return type(teacher)(*parts, teacher.scale)
