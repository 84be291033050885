"""Batches: from decoded data by a seeded permutation for each epoch, prefetched on a thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from edgeclip.errors import DataError
from edgeclip.train.data import augment
from edgeclip.train.data.batch import Batch, Indices, Seeds, TeacherStore
from edgeclip.train.data.cached import CachedData, Pixels
from edgeclip.train.data.captions import caption_keys, choose_all
from edgeclip.train.data.sample import Sample
from edgeclip.train.data.seeds import key_ids, uniform, view_seeds
from edgeclip.train.data.text import Texts
from edgeclip.train.recipe import Recipe

T = TypeVar("T")
_VARIANT_STREAM = 3


@dataclass(frozen=True)
class Share:
    """A rank's part of every batch."""

    rank: int = 0
    ranks: int = 1


ALONE = Share()


class Loader(Protocol):
    """An endless run of batches that can begin anywhere."""

    steps_per_epoch: int | None
    """None where the data has no known length."""

    def batches(self, start: int) -> Iterator[Batch]:
        """This rank's parts of the batches from step `start` on; the same whatever was read before."""
        ...


@dataclass(frozen=True)
class Views:
    """Makes batches from decoded samples."""

    recipe: Recipe
    texts: Texts
    stores: Sequence[TeacherStore] = ()
    """Teachers whose embeddings are stored: they decide which views there are."""

    def __call__(self, pixels: Pixels, samples: Sequence[Sample], ids: Seeds, epoch: int) -> Batch:
        """B samples with uint8 [B, H, H, 3] pixels and uint64 [B] ids, all of source 0, as an epoch sees them."""
        seeds, variants = self._seeds(ids, epoch)
        texts = choose_all(samples, seeds, self.recipe.data)
        keys = [sample.key for sample in samples]
        return Batch(
            pixels=torch.from_numpy(pixels),
            views=augment.draw(self.recipe.augment, seeds),
            ids=self.texts(texts),
            caption_keys=torch.from_numpy(caption_keys(samples, texts)),
            sources=torch.zeros(len(samples), dtype=torch.int64),
            texts=texts,
            keys=keys,
            teachers=self._stored(keys, variants),
        )

    def _seeds(self, ids: Seeds, epoch: int) -> tuple[Seeds, Indices]:
        """The views' seeds and, with stored teachers, which of their views each is."""
        own = view_seeds(self.recipe.seed, ids, epoch)
        if not self.stores:
            return own, np.zeros(len(ids), np.int64)
        store = self.stores[0]
        variants = (uniform(own, 1, _VARIANT_STREAM)[:, 0] * store.variants).astype(np.int64)
        return view_seeds(store.seed, ids, variants), variants

    def _stored(self, keys: Sequence[str], variants: Indices) -> list[Mapping[str, Tensor]]:
        return [store.lookup(keys, variants) for store in self.stores]


class CachedLoader:
    """Each epoch is a permutation that its seed decides; the last, incomplete batch is left out."""

    def __init__(self, data: CachedData, views: Views, share: Share = ALONE) -> None:
        """
        Raises:
            DataError: there are fewer samples than a batch has.
        """
        self._data = data
        self._views = views
        self._share = share
        self._ids = key_ids(sample.key for sample in data.samples)
        self._batch_size = views.recipe.loop.batch_size
        length = len(self._order(0))
        self.steps_per_epoch: int | None = length // self._batch_size
        if length < self._batch_size:
            raise DataError(
                f"{length} samples do not fill a batch of {self._batch_size}", hint="a smaller loop.batch_size"
            )

    def batches(self, start: int) -> Iterator[Batch]:
        """See `Loader`."""
        assert self.steps_per_epoch is not None
        epoch, first = divmod(start, self.steps_per_epoch)
        while True:
            order = self._order(epoch)
            for step in range(first, self.steps_per_epoch):
                yield self._batch(order, step, epoch)
            epoch, first = epoch + 1, 0

    def _batch(self, order: Indices, step: int, epoch: int) -> Batch:
        begin = step * self._batch_size
        rows = order[begin : begin + self._batch_size][own_rows(self._batch_size, self._share)]
        samples = [self._data.samples[i] for i in rows]
        pixels = np.ascontiguousarray(self._data.pixels[rows])
        sources = torch.from_numpy(self._data.source[rows].astype(np.int64))
        return replace(self._views(pixels, samples, self._ids[rows], epoch), sources=sources)

    def _order(self, epoch: int) -> Indices:
        """int64: the samples of an epoch, always as many. One that comes 1.5 times comes once or twice."""
        rng = np.random.default_rng((self._views.recipe.seed, epoch))
        repeat = self._data.repeat
        times = np.floor(repeat).astype(np.int64)
        for fraction in np.unique(repeat % 1):
            partly = np.flatnonzero(repeat % 1 == fraction)
            times[rng.choice(partly, round(len(partly) * float(fraction)), replace=False)] += 1
        return rng.permutation(np.repeat(np.arange(len(repeat)), times))


def own_rows(batch_size: int, share: Share) -> slice:
    """The rows of a batch that are a rank's; ranks must divide the batch."""
    each = batch_size // share.ranks
    return slice(share.rank * each, (share.rank + 1) * each)


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next of them made on a thread meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        pending = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item
