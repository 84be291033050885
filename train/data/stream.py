"""Data that is streamed: shards are dealt out to ranks and workers, shuffled in a window, decoded as they come."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from edgeclip.errors import EdgeClipError, UsageError
from edgeclip.train.data.batch import Batch
from edgeclip.train.data.cached import Pixels, decode_one
from edgeclip.train.data.damage import Damage
from edgeclip.train.data.loader import ALONE, Share, Views
from edgeclip.train.data.sample import Sample, Shard
from edgeclip.train.data.seeds import key_ids

_AHEAD = 4
"""Batches that a worker decodes ahead."""


class StreamLoader:
    """Batches from shards. Epochs have no common end: each worker begins its shards anew when it is through."""

    steps_per_epoch: int | None = None

    def __init__(self, shards: Sequence[Shard], views: Views, share: Share = ALONE) -> None:
        """
        Raises:
            UsageError: there are fewer shards than workers.
        """
        self._shards = shards
        self._views = views
        self._share = share
        workers = views.recipe.data.workers
        if len(shards) < share.ranks * max(workers, 1):
            raise UsageError(
                f"{len(shards)} shards for {share.ranks} ranks of {workers} workers",
                hint="fewer data.workers, or more and smaller shards",
            )

    def batches(self, start: int) -> Iterator[Batch]:
        """See `Loader`. What comes before `start` is read again, but not decoded."""
        workers = self._views.recipe.data.workers
        dataset = _Stream(self._shards, self._views, self._share, start)
        options: dict[str, Any] = {"prefetch_factor": _AHEAD, "multiprocessing_context": "spawn"} if workers else {}
        for packed in DataLoader(dataset, batch_size=None, num_workers=workers, **options):
            item = pickle.loads(packed)
            if isinstance(item, EdgeClipError):
                raise item
            yield item


class _Stream(IterableDataset[bytes]):
    """What one worker makes: batches `worker`, `worker + workers`, … of its rank, pickled.

    A worker sends its items from a thread that dies with the interpreter. Were they tensors, that thread could die
    inside PyTorch's sharing of memory, which aborts the process; bytes it only writes.
    """

    def __init__(self, shards: Sequence[Shard], views: Views, share: Share, start: int) -> None:
        self._shards = shards
        self._views = views
        self._share = share
        self._start = start

    def __iter__(self) -> Iterator[bytes]:
        return map(pickle.dumps, self._items())

    def _items(self) -> Iterator[Batch | EdgeClipError]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # The data loader asks worker 0 first: shift who that is, so that step n is made by the same worker always.
        worker = (worker + self._start) % workers
        skip = (self._start - worker + workers - 1) // workers
        size = self._views.recipe.loop.batch_size // self._share.ranks
        damage = Damage(self._views.recipe.data.max_bad)
        samples = self._samples(worker, workers, damage)
        for _ in islice(samples, skip * size):
            pass
        try:
            while True:
                yield self._batch(samples, size, damage)
        except EdgeClipError as exc:  # as an item: raised here, it would reach the trainer as a traceback's text
            yield exc

    def _samples(self, worker: int, workers: int, damage: Damage) -> Iterator[tuple[int, Sample]]:
        """Samples of this worker with their epoch, for ever."""
        recipe = self._views.recipe
        part, parts = self._share.rank * workers + worker, self._share.ranks * workers
        epoch = 0
        while True:
            rng = np.random.default_rng((recipe.seed, epoch))
            order = rng.permutation(len(self._shards))[part::parts]
            mine = (sample for i in order for sample in self._shards[i].read(damage))
            window = np.random.default_rng((recipe.seed, epoch, part))
            yield from ((epoch, sample) for sample in shuffled(mine, recipe.data.shuffle, window))
            damage.judge()
            epoch += 1

    def _batch(self, samples: Iterator[tuple[int, Sample]], size: int, damage: Damage) -> Batch:
        """The next samples of the stream; a damaged one has a later one in its place, so that positions stay."""
        taken = list(islice(samples, size))
        decoded = [(sample, decode_one(sample, self._views.recipe.data.size, damage)) for _, sample in taken]
        good: list[tuple[Sample, Pixels]] = [(sample, pixels) for sample, pixels in decoded if pixels is not None]
        damage.good(len(good))
        if not good:
            damage.judge()
        # A batch must be whole, or the ranks' parts would differ; what is missing is taken twice.
        filled = [good[i % len(good)] for i in range(size)]
        chosen = [sample for sample, _ in filled]
        pixels = np.stack([pixels for _, pixels in filled])
        return self._views(pixels, chosen, key_ids(sample.key for sample in chosen), taken[0][0])


def shuffled(samples: Iterator[Sample], size: int, rng: np.random.Generator) -> Iterator[Sample]:
    """Samples drawn from a window of `size` of them that moves along the stream."""
    window = list(islice(samples, size))
    for sample in samples:
        at = int(rng.integers(len(window)))
        window[at], sample = sample, window[at]
        yield sample
    rng.shuffle(window)
    yield from window
