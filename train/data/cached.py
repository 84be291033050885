"""Data that is decoded once and kept: every view of every epoch is made from uint8 pixels in memory."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeclip import cpus
from edgeclip.errors import DataError, InputError, ResourceError
from edgeclip.manifest import Preprocess
from edgeclip.preprocess import preprocess
from edgeclip.train.data.damage import Damage
from edgeclip.train.data.sample import Sample, Shard

Pixels = NDArray[np.uint8]
Progress = Callable[[int], None]
_CHUNK = 512
_VERSION = 2
_PIXELS, _TEXTS = "pixels.bin", "texts.msgpack"


@dataclass(frozen=True)
class CachedData:
    """N decoded samples."""

    pixels: Pixels
    """uint8 [N, H, H, 3]; in memory, or mapped from the disk."""
    samples: Sequence[Sample]
    """Their keys and texts; the encoded images are gone."""
    repeat: NDArray[np.float32]
    """float32 [N], how often an epoch visits each."""
    source: NDArray[np.int32]
    """int32 [N], the number of its source in the recipe."""

    def __len__(self) -> int:
        return len(self.samples)


def decode_spec(size: int) -> Preprocess:
    """How an image becomes the square that is kept: short side to `size`, then the centre."""
    return Preprocess(size=size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def load_cached(
    shards: Sequence[Shard], size: int, *, max_bad: float, folder: Path | None = None, progress: Progress | None = None
) -> CachedData:
    """Read and decode everything.

    Args:
        folder: where the pixels are kept for the next run too; None keeps them in memory.
        progress: called with the number of samples that were decoded.

    Raises:
        DataError: too much is damaged, or nothing is left.
        ResourceError: out of memory or disk.
    """
    if folder is None:
        buffer = bytearray()
        samples, of_shards = _decode(shards, size, Damage(max_bad), buffer.extend, progress)
        return _cached(_shaped(np.frombuffer(buffer, np.uint8), size), samples, shards, of_shards)
    place = folder / _fingerprint(shards, size)
    if not place.is_dir():
        _write(place, shards, size, max_bad, progress)
    texts, of_shards = msgspec.msgpack.decode((place / _TEXTS).read_bytes(), type=tuple[list[_Texts], list[int]])
    pixels = np.memmap(place / _PIXELS, np.uint8, mode="r")
    kept = [Sample(one.key, b"", one.captions, one.names) for one in texts]
    return _cached(_shaped(pixels, size), kept, shards, of_shards)


def _cached(pixels: Pixels, samples: list[Sample], shards: Sequence[Shard], of_shards: list[int]) -> CachedData:
    """What `_decode` found, with what the recipe says of each sample's shard."""
    repeat = np.array([shard.repeat for shard in shards], np.float32)
    source = np.array([shard.source for shard in shards], np.int32)
    return CachedData(pixels, samples, repeat[of_shards], source[of_shards])


class _Texts(msgspec.Struct, array_like=True):
    key: str
    captions: tuple[str, ...]
    names: tuple[str, ...]


def _decode(
    shards: Sequence[Shard], size: int, damage: Damage, keep: Callable[[bytes], object], progress: Progress | None
) -> tuple[list[Sample], list[int]]:
    """Decode all samples, in order; those that cannot be are counted. Returns each one's shard, too."""
    samples: list[Sample] = []
    of_shards: list[int] = []
    try:
        with ThreadPoolExecutor(cpus.available_cpus()) as pool:
            for number, shard in enumerate(shards):
                for chunk in _chunks(shard.read(damage)):
                    decoded = list(pool.map(lambda sample: decode_one(sample, size, damage), chunk))
                    good = [(s, pixels) for s, pixels in zip(chunk, decoded, strict=True) if pixels is not None]
                    keep(b"".join(pixels.tobytes() for _, pixels in good))
                    samples += [replace(sample, image=b"") for sample, _ in good]
                    of_shards += [number] * len(good)
                    damage.good(len(good))
                    if progress:
                        progress(len(chunk))
    except MemoryError as exc:
        hint = 'data.cache="disk", or a smaller data.size'
        raise ResourceError(f"out of memory after {len(samples)} decoded images", hint=hint) from exc
    damage.judge()
    if not samples:
        raise DataError("the data holds no samples")
    return samples, of_shards


def decode_one(sample: Sample, size: int, damage: Damage) -> Pixels | None:
    """uint8 [size, size, 3], or None where the image cannot be decoded, which is counted."""
    try:
        return preprocess(sample.image, decode_spec(size), source=sample.key)
    except InputError as exc:
        damage.bad(sample.key, exc)
        return None


def _chunks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    iterator = iter(samples)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _shaped(flat: NDArray[np.uint8], size: int) -> Pixels:
    return flat.reshape(-1, size, size, 3)


def _fingerprint(shards: Sequence[Shard], size: int) -> str:
    """What the decoded pixels depend on: names, sizes and times of the shards, and the side."""
    parts = [f"{_VERSION} {size}"]
    for shard in shards:
        status = shard.file.stat() if shard.file else None
        parts.append(f"{shard.name} {(status.st_size, status.st_mtime_ns) if status else ''}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _write(place: Path, shards: Sequence[Shard], size: int, max_bad: float, progress: Progress | None) -> None:
    """Decode into a folder that has its name when it is whole."""
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        with (temporary / _PIXELS).open("wb") as file:
            samples, of_shards = _decode(shards, size, Damage(max_bad), file.write, progress)
        texts = [_Texts(sample.key, sample.captions, sample.names) for sample in samples]
        (temporary / _TEXTS).write_bytes(msgspec.msgpack.encode((texts, of_shards)))
        if not place.is_dir():  # another rank may have been faster
            temporary.rename(place)
    except OSError as exc:
        if not place.is_dir():
            hint = "free some space, or name another data.cache_dir"
            raise ResourceError(f"{place}: cannot be written: {exc.strerror or exc}", hint=hint) from exc
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
