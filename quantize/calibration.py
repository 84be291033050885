"""The pictures and texts that the ranges of activations are measured on: drawn, checked, and kept for the next time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from edgeclip import cache as disk
from edgeclip import images, templates
from edgeclip.errors import DataError, UsageError
from edgeclip.manifest import CalibrationSpec, Preprocess
from edgeclip.pixels import Skipped, batches
from edgeclip.samples import Entry, Sample, SampleReader, Samples, find_samples
from edgeclip.testset import read_lines
from edgeclip.tokenizer import Ids, Tokenizer

COUNT = 300
MINIMUM = 16
"""Pictures, or texts, below which ranges of activations are noise."""
CONTRAST = 3
"""A picture has some where a channel spans so many of 255 levels."""
_VERSION = 1
_BATCH = 32
_TRIES = 4
"""Times the number wanted that are read at most, where many cannot be."""
_BAD_SHARE, _BAD_COUNT = 0.01, 3
"""Unreadable pictures are worth a warning when both are reached."""
_SHOWN = 3

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Calibration:
    """What a tower's activations are measured on."""

    pixels: Pixels
    """uint8 [N, S, S, 3], preprocessed, in the order in which they were drawn."""
    ids: Ids | None
    """int32 [M, C], all different; None where there is no text, or no text tower."""
    spec: CalibrationSpec
    skipped: tuple[Skipped, ...] = ()
    """What could not be read; others took their places."""
    warnings: tuple[str, ...] = ()
    """What makes it poorer than it should be; one line each."""


@dataclass(frozen=True)
class _Drawn:
    """What was read."""

    pixels: Pixels
    texts: tuple[str, ...]
    """What is said of the pictures, all different."""
    skipped: tuple[Skipped, ...]


def collect(
    path: Path,
    preprocess: Preprocess,
    tokenizer: Tokenizer | None,
    *,
    count: int = COUNT,
    seed: int = 0,
    cache: bool = True,
    texts: Path | None = None,
    minimum: int = MINIMUM,
) -> Calibration:
    """Draw pictures from all that lies at a path, and texts that belong to them.

    A text is one of a picture's captions, or a prompt with its class's name. Drawing is the same for the same seed.

    Args:
        path: as `samples.find_samples` takes it.
        tokenizer: of the model; None where it has no text tower.
        count: pictures wanted, and texts at most.
        cache: keep the pixels in the user's cache directory, and take them from there where nothing has changed.
        texts: a file with one text a line, instead of those that belong to the pictures.
        minimum: pictures, different and with contrast, that there must be.

    Raises:
        DataError: there are no pictures, none can be read, none has contrast, or too few differ.
        UsageError: `count` or `minimum` makes no sense, texts for a model that takes none, or a file of another kind.
    """
    _check(count, minimum, tokenizer, texts)
    given = _read_texts(texts, count, seed, minimum) if texts is not None else None
    samples = find_samples(path)
    drawn = _drawn(samples, preprocess, count, seed, minimum, cache)
    ids = _tokenized(tokenizer, drawn.texts if given is None else given)
    warnings = [*_warn_of_pictures(drawn, count), *_warn_of_texts(ids, minimum)]
    spec = CalibrationSpec(
        source=samples.name,
        images=len(drawn.pixels),
        texts=0 if ids is None else len(ids),
        seed=seed,
        sha256=_digest(drawn.pixels, ids),
    )
    return Calibration(drawn.pixels, ids, spec, drawn.skipped, tuple(warnings))


def has_contrast(pixels: Pixels) -> NDArray[np.bool_]:
    """bool [N]: which of uint8 [N, S, S, 3] are not of one colour all over."""
    flat = pixels.reshape(len(pixels), -1, 3)
    return np.asarray((flat.max(axis=1) - flat.min(axis=1)).max(axis=1) >= CONTRAST)


def different(rows: NDArray[np.uint8] | Ids) -> NDArray[np.int64]:
    """int64, ascending: the first of each kind of equal rows."""
    seen: dict[bytes, int] = {}
    for index, row in enumerate(rows):
        seen.setdefault(hashlib.sha256(np.ascontiguousarray(row).data).digest(), index)
    return np.array(list(seen.values()), np.int64)


def _check(count: int, minimum: int, tokenizer: Tokenizer | None, texts: Path | None) -> None:
    if minimum < 1:
        raise UsageError(f"a minimum of {minimum} pictures", hint="at least 1")
    if count < minimum:
        raise UsageError(
            f"{count} pictures to calibrate on, at least {minimum} are needed",
            hint=f"ranges of activations from so few are noise; the default is {COUNT}",
        )
    if texts is not None and tokenizer is None:
        raise UsageError(f"{texts}: texts to calibrate on, and the model has no text tower")


def _read_texts(file: Path, count: int, seed: int, minimum: int) -> tuple[str, ...]:
    lines = list(dict.fromkeys(read_lines(file)))
    if len(lines) < minimum:
        raise DataError(
            f"{file}: {len(lines)} different texts, at least {minimum} are needed",
            hint="one a line; ranges of activations from so few are noise",
        )
    order = np.random.default_rng(seed).permutation(len(lines))[:count]
    return tuple(lines[i] for i in order)


def _drawn(samples: Samples, preprocess: Preprocess, count: int, seed: int, minimum: int, cache: bool) -> _Drawn:
    """From the cache or from the samples themselves."""
    name = f"calibration/{_fingerprint(samples, preprocess, count, seed)}.safetensors"
    kept = _from_bytes(disk.read(name), preprocess) if cache else None
    drawn = kept or _draw(samples, preprocess, count, seed)
    _judge(samples, drawn, minimum)
    if cache and kept is None:
        disk.write(name, _to_bytes(drawn))
    return drawn


def _draw(samples: Samples, preprocess: Preprocess, count: int, seed: int) -> _Drawn:
    """Read in the order of a permutation of all entries, and go on to the next where one cannot be read."""
    entries = samples.entries
    order = np.random.default_rng(seed).permutation(len(entries))[: _TRIES * count].tolist()
    found: dict[int, tuple[Pixels, Sample]] = {}
    skipped: list[Skipped] = []
    tried = 0
    while len(found) < count and tried < len(order):
        part = order[tried : tried + count - len(found)]
        tried += len(part)
        feed = _Feed(entries, sorted(part))  # as they lie in their tars
        found |= feed.decoded(preprocess)
        skipped += feed.skipped
    rows = [index for index in order if index in found]
    pixels = np.empty((len(rows), preprocess.size, preprocess.size, 3), np.uint8)
    for row, index in enumerate(rows):
        pixels[row] = found[index][0]
    said = _said([(found[index][1], entries[index].templates) for index in rows], seed)
    return _Drawn(pixels, said, tuple(skipped))


class _Feed:
    """Encoded images of some entries, for the decoder, which runs ahead on threads; none is held."""

    def __init__(self, entries: Sequence[Entry], chosen: Sequence[int]) -> None:
        self._entries = entries
        self._chosen = chosen
        self._given: list[tuple[int, str, Sample]] = []
        """Index, what the decoder calls the image, and what is said of it."""
        self.skipped: list[Skipped] = []

    def __iter__(self) -> Iterator[images.Image]:
        with SampleReader() as reader:
            for index in self._chosen:
                entry = self._entries[index]
                try:
                    sample = reader.read(entry)
                except DataError as exc:
                    self.skipped.append(Skipped(index, entry.key, exc.message.removeprefix(f"{entry.key}: ")))
                    continue
                self._given.append((index, images.name_of(sample.image), replace(sample, image=b"")))
                yield sample.image

    def decoded(self, preprocess: Preprocess) -> dict[int, tuple[Pixels, Sample]]:
        """By index, the pixels of those that can be read; the others are in `skipped` then."""
        found = {}
        for batch in batches(iter(self), preprocess, _BATCH, "skip"):
            for place, pixels in zip(batch.indices, batch.pixels, strict=True):
                index, _, sample = self._given[place]
                found[index] = pixels, sample
            for one in batch.skipped:
                index, name, sample = self._given[one.index]
                self.skipped.append(Skipped(index, sample.key, one.reason.removeprefix(f"{name}: ")))
        return found


def _said(samples: Sequence[tuple[Sample, tuple[str, ...]]], seed: int) -> tuple[str, ...]:
    """A text for each sample of which something is said, with its set's templates; each text once."""
    rng = np.random.default_rng([seed, 1])
    texts = []
    for sample, prompts in samples:
        if sample.captions:
            texts.append(_any(rng, sample.captions))
        elif sample.names:
            texts += templates.fill([_any(rng, prompts or templates.general)], _any(rng, sample.names))
    return tuple(dict.fromkeys(texts))


def _any(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _tokenized(tokenizer: Tokenizer | None, texts: Sequence[str]) -> Ids | None:
    """int32 [M, C], all different: texts may begin alike, and be cut."""
    if tokenizer is None or not texts:
        return None
    ids = tokenizer(texts)
    return ids[different(ids)]


def _judge(samples: Samples, drawn: _Drawn, minimum: int) -> None:
    """
    Raises:
        DataError: ranges of activations from these pictures would be wrong.
    """
    pictures = len(drawn.pixels)
    if not pictures:
        first = drawn.skipped[0]
        raise DataError(
            f"{samples.path}: none of {len(drawn.skipped)} pictures can be read: {first.source}: {first.reason}"
        )
    usable = _usable(drawn.pixels)
    if not has_contrast(drawn.pixels).any():
        raise DataError(
            f"{samples.path}: no picture has any contrast: each of {pictures} is of one colour",
            hint="pictures of the kind that the device will see",
        )
    if usable < minimum:
        raise DataError(
            f"{samples.path}: {usable} of {pictures} pictures differ and have contrast, at least {minimum} are needed",
            hint=f"ranges of activations from so few are noise; {COUNT} pictures that the device might see do",
        )


def _usable(pixels: Pixels) -> int:
    """Pictures with contrast that differ."""
    return len(different(pixels[has_contrast(pixels)]))


def _warn_of_pictures(drawn: _Drawn, count: int) -> Iterator[str]:
    pictures, bad, usable = len(drawn.pixels), len(drawn.skipped), _usable(drawn.pixels)
    tried = pictures + bad
    if bad >= _BAD_COUNT and bad > _BAD_SHARE * tried:
        some = "; ".join(f"{one.source}: {one.reason}" for one in drawn.skipped[:_SHOWN])
        yield f"{bad} of {tried} pictures cannot be read: {some}"
    if pictures < count:
        yield f"{pictures} pictures to calibrate on, {count} were wanted"
    if usable < pictures / 2:
        yield f"only {usable} of {pictures} pictures differ and have contrast"


def _warn_of_texts(ids: Ids | None, minimum: int) -> Iterator[str]:
    if ids is not None and len(ids) < minimum:
        yield f"{len(ids)} different texts to calibrate on: ranges of activations from fewer than {minimum} are noise"


def _digest(pixels: Pixels, ids: Ids | None) -> str:
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    if ids is not None:
        digest.update(str(ids.shape).encode())
        digest.update(np.ascontiguousarray(ids, "<i4").data)
    return digest.hexdigest()


def _fingerprint(samples: Samples, preprocess: Preprocess, count: int, seed: int) -> str:
    """What is drawn depends on these. Texts are kept as they are, so that the tokenizer does not matter."""
    return disk.fingerprint(
        _VERSION, samples.path.resolve(), samples.kind, samples.state(), msgspec.json.encode(preprocess), count, seed
    )


class _Facts(msgspec.Struct, array_like=True):
    """What is kept beside the pixels."""

    texts: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def _to_bytes(drawn: _Drawn) -> bytes:
    facts = msgspec.json.encode(_Facts(drawn.texts, drawn.skipped))
    return bytes(save({"pixels": drawn.pixels, "facts": np.frombuffer(facts, np.uint8)}))


def _from_bytes(data: bytes | None, preprocess: Preprocess) -> _Drawn | None:
    """What was kept, or None where it is not what it should be."""
    if data is None:
        return None
    try:
        tensors = load(data)
        facts = msgspec.json.decode(tensors["facts"].tobytes(), type=_Facts)
        pixels = tensors["pixels"]
    except (SafetensorError, KeyError, ValueError, msgspec.DecodeError):
        return None
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (preprocess.size, preprocess.size, 3):
        return None
    return _Drawn(pixels, facts.texts, facts.skipped)
