"""Random numbers that depend on a sample and nothing else: not on its batch, its order, its rank or its worker."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edgeclip.train.data.batch import Indices, Seeds

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def key_id(key: str) -> int:
    """A sample's key as 64 bits."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def key_ids(keys: Iterable[str]) -> Seeds:
    """uint64 [N]."""
    return np.array([key_id(key) for key in keys], np.uint64)


def view_seeds(seed: int, ids: Seeds, variant: int | Indices) -> Seeds:
    """uint64 [B]: what decides a view's crop, colours and caption.

    Args:
        ids: uint64 [B] of `key_ids`.
        variant: which view of the sample: the epoch, or the number of a stored view; one for all, or int64 [B].
    """
    start = _mixed(np.full(len(ids), seed, np.uint64))
    return _mixed(_mixed(start ^ ids) + np.asarray(variant).astype(np.uint64) * _STEP)


def uniform(seeds: Seeds, count: int, stream: int = 0) -> NDArray[np.float64]:
    """float64 [B, count] in [0, 1); streams are independent of each other."""
    counters = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(stream << 32)
    words = _mixed(seeds[:, None] + counters[None, :] * _STEP)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(words: Seeds) -> Seeds:
    """SplitMix64's finaliser. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014."""
    words = words + _STEP
    words = (words ^ (words >> np.uint64(30))) * _MIX[0]
    words = (words ^ (words >> np.uint64(27))) * _MIX[1]
    mixed: Seeds = words ^ (words >> np.uint64(31))
    return mixed
