"""Embeddings kept in the user's cache, keyed by what was embedded and by what decides an embedding's bits.

A key is made of contents, so that neither changed data nor another artifact can ever be answered from it, and what one
run has embedded the next one finds, however it ended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np

from edgeclip import __version__, cache
from edgeclip.backends.base import Embeddings
from edgeclip.card import depends_on
from edgeclip.errors import ImageDecodeError
from edgeclip.manifest import Tower
from edgeclip.testset import Sample

if TYPE_CHECKING:
    from edgeclip.model import Model

T = TypeVar("T")
CHUNK = 256
"""Images or texts that are kept together, and lost together when a run is killed."""
CHUNK_BYTES = 64 << 20
"""A chunk of large images ends here."""
BATCH = 64


class EmbeddingCache:
    """Embeds with a model what was not embedded before."""

    def __init__(self, model: Model, *, enabled: bool = True) -> None:
        self._model = model
        self._enabled = enabled
        self.computed = 0
        """Images that were embedded."""
        self.found = 0
        """Images whose embeddings were known."""

    def images(self, chunk: Sequence[Sample]) -> Embeddings:
        """Embeddings of images, float32 [N, D].

        Raises:
            ImageDecodeError: naming the first image that cannot be used.
        """
        rows, known = self._get("image", [one.image for one in chunk], lambda: self._encode_images(chunk))
        self.found += len(chunk) if known else 0
        self.computed += 0 if known else len(chunk)
        return rows

    def texts(self, texts: Sequence[str]) -> Embeddings:
        """Embeddings of texts, float32 [N, D]. Raises as `Model.encode_text`."""
        parts = []
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            encoded = [text.encode("utf-8", errors="surrogatepass") for text in chunk]
            parts.append(self._get("text", encoded, partial(self._model.encode_text, chunk))[0])
        return np.concatenate(parts)

    def _encode_images(self, chunk: Sequence[Sample]) -> Embeddings:
        parts = []
        images = [one.image for one in chunk]
        for batch in self._model.stream_image(images, batch_size=BATCH, on_error="skip"):
            for one in batch.skipped:
                raise ImageDecodeError(f"{chunk[one.index].key}: {one.reason}", hint="get it again, or take it out")
            parts.append(batch.embeddings)
        return np.asarray(np.concatenate(parts), np.float32)

    def _get(
        self, tower: Tower, contents: Sequence[bytes], encode: Callable[[], Embeddings]
    ) -> tuple[Embeddings, bool]:
        """The rows, and whether they were known."""
        if not self._enabled:
            return encode(), False
        name = f"eval/{tower_key(self._model, tower)}-{_digest(contents)}"
        kept = cache.read(name)
        shape = len(contents), self._model.info.embed_dim
        if kept is not None and len(kept) == 4 * shape[0] * shape[1]:
            return np.frombuffer(kept, "<f4").reshape(shape).astype(np.float32), True
        rows = encode()
        cache.write(name, np.ascontiguousarray(rows, "<f4").tobytes())
        return rows, False


def tower_key(model: Model, tower: Tower) -> str:
    """A short name for what decides the bits of a tower's embeddings."""
    info, manifest = model.info, model.bundle.manifest
    artifacts = [artifact for artifact in manifest.artifacts if artifact.file == info.artifacts[tower]]
    files = [(entry.path, entry.sha256) for entry in depends_on(manifest, artifacts)]
    spec = msgspec.json.encode(manifest.preprocess) if tower == "image" else b""
    engine = info.backend, info.engine_version, info.device, info.compute
    return cache.fingerprint(__version__, tower, files, spec, *engine)


def chunks(samples: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Neighbours that are kept together; where they are cut depends on them alone."""
    chunk: list[T] = []
    total = 0
    for sample in samples:
        chunk.append(sample)
        total += size(sample)
        if len(chunk) == CHUNK or total >= CHUNK_BYTES:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def _digest(contents: Iterable[bytes]) -> str:
    """Of some byte strings in order; their lengths count, too."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()[:32]
