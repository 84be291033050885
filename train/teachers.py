"""Teachers: checkpoints that run beside the student, and embeddings that were stored beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from edgeclip.errors import UsageError
from edgeclip.manifest import Preprocess
from edgeclip.train.checkpoints import build, read_checkpoint
from edgeclip.train.data import augment
from edgeclip.train.data.batch import Batch, TeacherStore
from edgeclip.train.data.text import Texts, open_tokenizer
from edgeclip.train.distill import TeacherBatch
from edgeclip.train.distributed import World
from edgeclip.train.models.clip import Clip
from edgeclip.train.recipe import Recipe, resolve
from edgeclip.train.step import autocast


@dataclass(frozen=True)
class Teacher:
    """A frozen model with its own eyes and its own words."""

    clip: Clip
    preprocess: Preprocess
    texts: Texts
    device: torch.device
    precision: str
    sha256: str
    """Of the weights."""

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherBatch:
        """Its embeddings of the views that the student sees, at its own size."""
        pixels = augment.normalise(augment.apply(batch.pixels, batch.views, self.preprocess.size), self.preprocess)
        ids = self.texts(batch.texts).to(self.device)
        with autocast(self.precision, self.device):
            image, text, scale = self.clip(pixels, ids)
        return TeacherBatch(image, text, scale.detach())


@dataclass(frozen=True)
class Teachers:
    """All teachers of a recipe: those that run, then those that are stored."""

    running: Sequence[Teacher]
    stores: Sequence[TeacherStore]
    dims: list[int]
    """Widths of their embeddings."""
    scales: Sequence[float]
    """exp(t) of the stored ones."""

    def __call__(self, batch: Batch) -> list[TeacherBatch]:
        """Their embeddings of a rank's batch."""
        device = batch.pixels.device
        stored = [
            TeacherBatch(one["image"].float(), one["text"].float(), torch.tensor(scale, device=device))
            for one, scale in zip(batch.teachers, self.scales, strict=True)
        ]
        return [teacher(batch) for teacher in self.running] + stored


def open_teachers(recipe: Recipe, world: World) -> Teachers:
    """Read them all.

    Raises:
        CheckpointError: a teacher cannot be read.
        UsageError: a teacher has no tokenizer, or a store's views are not this recipe's.
    """
    settings = recipe.distill
    assert settings is not None
    running = [open_teacher(resolve(path), recipe, world.device) for path in recipe.teachers]
    stores = []
    if settings.stored:
        from edgeclip.train.reinforce import open_store

        stores = [open_store(resolve(path), fingerprint=recipe.view_digest) for path in settings.stored]
        if len({(store.seed, store.variants) for store in stores}) > 1:
            raise UsageError("the stored teachers have seen different views", hint="reinforce with one seed")
    dims = [teacher.clip.config.embed_dim for teacher in running] + [store.dim for store in stores]
    return Teachers(running, stores, dims, [store.scale for store in stores])


def open_teacher(path: Path, recipe: Recipe, device: torch.device) -> Teacher:
    """A checkpoint that computes as the recipe's loop does.

    Raises:
        CheckpointError: it cannot be read.
        UsageError: it has no tokenizer.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.tokenizer is None or not checkpoint.tokenizer.is_file():
        raise UsageError(f"{path}: the teacher brings no tokenizer.json", hint="put it into its folder")
    tokenizer = open_tokenizer(checkpoint.tokenizer.read_bytes(), checkpoint.config.text, path)
    clip = build(checkpoint).requires_grad_(False)
    clip = clip.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Teacher(clip, checkpoint.preprocess, Texts(tokenizer), device, recipe.loop.precision, checkpoint.sha256)
