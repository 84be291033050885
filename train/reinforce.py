"""Reinforced data: what a teacher says of fixed views of each sample, computed once and stored.

A view follows from a seed, the sample's key and the view's number, so that a student's augmentation makes the very
pixels and chooses the very caption that the teacher saw. Nothing of the images is stored.

Source: dataset reinforcement, MobileCLIP, arXiv 2311.17049.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeclip import cpus
from edgeclip.errors import DataError, NonFiniteError
from edgeclip.train.data import augment
from edgeclip.train.data.cached import Pixels, decode_one
from edgeclip.train.data.captions import choose_all
from edgeclip.train.data.damage import Damage
from edgeclip.train.data.sample import Sample, Shard
from edgeclip.train.data.seeds import key_ids, view_seeds
from edgeclip.train.data.sources import open_shards
from edgeclip.train.distributed import World
from edgeclip.train.recipe import Recipe, resolve
from edgeclip.train.step import autocast
from edgeclip.train.store import About, Part, Store, claim, open_store, read_part, shard_file, write_part
from edgeclip.train.teachers import Teacher, open_teacher

__all__ = ["open_store", "reinforce"]

Progress = Callable[[str, int], None]
_BATCH = 256
"""Views, or texts, that the teacher sees at a time."""


def reinforce(
    teacher: Path,
    recipe: Recipe,
    folder: Path,
    *,
    variants: int = 4,
    seed: int = 0,
    world: World | None = None,
    progress: Progress | None = None,
) -> Store:
    """Store a teacher's embeddings of `variants` views of every sample of a recipe's data.

    Shards that are stored already are left alone: an interrupted call goes on when it is repeated. With several
    processes, each does its part of the shards.

    Args:
        teacher: its checkpoint.
        recipe: its `data` and `augment` decide the views, its `loop.precision` how the teacher computes.
        folder: the store; made, or gone on with.
        seed: of the views; teachers that are to teach together need the same.
        progress: called with a shard's name and the number of its samples that were embedded.

    Raises:
        CheckpointError: the teacher cannot be read.
        DataError: the data is missing, or too much of it is damaged.
        NonFiniteError: the teacher's embeddings are not finite.
        UsageError: `folder` holds something else.
        ResourceError: the disk is full.
    """
    world = world or World(0, 1, torch.device("cpu"))
    opened = open_teacher(teacher, recipe, world.device)
    about = About(
        teacher=opened.clip.config.name,
        teacher_sha256=opened.sha256,
        dim=opened.clip.config.embed_dim,
        scale=float(opened.clip.logit_scale.exp()),
        seed=seed,
        variants=variants,
        fingerprint=recipe.view_digest,
    )
    claim(folder, about)
    shards = open_shards(recipe.data.sources, resolve(recipe.data.root), limit=recipe.data.limit)
    damage = Damage(recipe.data.max_bad)
    for shard in shards[world.rank :: world.ranks]:
        file = shard_file(folder, shard.name)
        if file.is_file():
            read_part(file, about)
            continue
        write_part(file, _embed(shard, opened, recipe, about, damage, progress))
    damage.judge()
    return open_store(folder, fingerprint=recipe.view_digest)


def _embed(
    shard: Shard, teacher: Teacher, recipe: Recipe, about: About, damage: Damage, progress: Progress | None
) -> Part:
    """All views of one shard."""
    keys: list[str] = []
    images: list[Tensor] = []
    texts: list[list[str]] = []
    for samples, pixels in _decoded(shard, recipe.data.size, damage, max(1, _BATCH // about.variants)):
        seeds = _seeds(samples, about)
        keys += [sample.key for sample in samples]
        images.append(_see(teacher, recipe, pixels, seeds))
        texts += [list(said) for said in zip(*(choose_all(samples, row, recipe.data) for row in seeds), strict=True)]
        if progress:
            progress(shard.name, len(samples))
    if not keys:
        raise DataError(f"{shard.name}: holds no samples")
    distinct = sorted({text for said in texts for text in said})
    number = {text: i for i, text in enumerate(distinct)}
    text_of = torch.tensor([[number[text] for text in said] for said in texts], dtype=torch.int32)
    return Part(keys, torch.cat(images), _read(teacher, distinct), text_of)


def _seeds(samples: Sequence[Sample], about: About) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """uint64 [K, B]: a seed for each view of each sample."""
    ids = key_ids(sample.key for sample in samples)
    return np.stack([view_seeds(about.seed, ids, variant) for variant in range(about.variants)])


def _decoded(shard: Shard, size: int, damage: Damage, count: int) -> Iterator[tuple[list[Sample], Pixels]]:
    """Samples with their pixels, uint8 [B, size, size, 3], B at most `count`."""
    samples = shard.read(damage)
    with ThreadPoolExecutor(cpus.available_cpus()) as pool:
        while chunk := list(islice(samples, count)):
            decoded = list(pool.map(lambda sample: decode_one(sample, size, damage), chunk))
            good = [(sample, pixels) for sample, pixels in zip(chunk, decoded, strict=True) if pixels is not None]
            damage.good(len(good))
            if good:
                yield [sample for sample, _ in good], np.stack([pixels for _, pixels in good])


@torch.no_grad()
def _see(
    teacher: Teacher, recipe: Recipe, pixels: Pixels, seeds: np.ndarray[tuple[int, int], np.dtype[np.uint64]]
) -> Tensor:
    """float16 [B, K, D]: the teacher's embeddings of K views of B samples."""
    shown = torch.from_numpy(pixels).to(teacher.device)
    views = [augment.draw(recipe.augment, row).to(teacher.device) for row in seeds]
    return torch.stack([_finite(_see_once(teacher, shown, view)) for view in views], dim=1)


def _see_once(teacher: Teacher, pixels: Tensor, views: Tensor) -> Tensor:
    image = augment.normalise(augment.apply(pixels, views, teacher.preprocess.size), teacher.preprocess)
    with autocast(teacher.precision, teacher.device):
        return teacher.clip.encode_image(image)


@torch.no_grad()
def _read(teacher: Teacher, texts: Sequence[str]) -> Tensor:
    """float16 [M, D]: the teacher's embeddings of texts."""
    found = []
    for start in range(0, len(texts), _BATCH):
        ids = teacher.texts(texts[start : start + _BATCH]).to(teacher.device)
        with autocast(teacher.precision, teacher.device):
            found.append(_finite(teacher.clip.encode_text(ids)))
    return torch.cat(found)


def _finite(features: Tensor) -> Tensor:
    """L2-normalised in float32, kept in float16."""
    embeddings = F.normalize(features.float(), dim=-1)
    if not bool(torch.isfinite(embeddings).all()):
        raise NonFiniteError("the teacher's embeddings hold NaN or infinity", hint='loop.precision="fp32"')
    return embeddings.half().cpu()
