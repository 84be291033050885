"""`Model`: images and texts to embeddings, on whichever engine was chosen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from edgeclip import cache as disk
from edgeclip import inflight, quantized, zeroshot
from edgeclip import templates as named
from edgeclip.backends.base import Array, Embeddings, Session
from edgeclip.bundle import Bundle
from edgeclip.errors import ForkedModelError, ModelClosedError, NonFiniteError, UsageError
from edgeclip.form import Form, choose_form
from edgeclip.manifest import Compute, Precision, Tower
from edgeclip.pixels import PixelBatch, Skipped, batches
from edgeclip.quantized import Dtype
from edgeclip.request import Request
from edgeclip.textcache import TextCache, key
from edgeclip.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgeclip.preprocess import Image

BATCH_SIZE = 32
_WHO_IS_AT_FAULT = "`edgeclip verify` tells whether the artifact or the device is at fault"


@dataclass(frozen=True)
class ModelInfo:
    """What runs, where, how, and why it was chosen."""

    name: str
    bundle: str
    """Digest of the bundle, `sha256:…`."""
    embed_dim: int
    logit_scale: float
    random_weights: bool
    backend: str
    engine_version: str
    device: str
    precision: Precision
    compute: Compute
    threads: int
    artifacts: dict[Tower, str]
    reason: str
    batch: int = BATCH_SIZE
    """Images per run of the engine, unless the call says otherwise."""

    @property
    def fingerprint(self) -> str:
        """A short name for what decides an embedding's bits: bundle, artifact, engine, device, arithmetic."""
        return disk.fingerprint(
            self.bundle, self.backend, self.engine_version, self.device, self.precision, self.compute
        )

    def provenance(self) -> dict[str, Any]:
        """What must be kept beside stored embeddings, so that only like is compared with like."""
        kept = (
            "name",
            "bundle",
            "backend",
            "engine_version",
            "device",
            "precision",
            "compute",
            "artifacts",
            "embed_dim",
        )
        return {name: value for name, value in asdict(self).items() if name in kept}


@dataclass(frozen=True)
class EmbeddedBatch:
    """One batch of a stream of images."""

    indices: list[int]
    """Positions in the input of the rows of `embeddings`."""
    embeddings: Array
    """[B, D] float32, L2-normalised; or of the dtype and dimensions that were asked for."""
    skipped: list[Skipped]


class Model:
    """A CLIP model from a bundle. Safe to use from many threads; not across a fork. Made by `edgeclip.load`."""

    def __init__(
        self,
        request: Request,
        reopen: Callable[[Request], Model],
        bundle: Bundle,
        info: ModelInfo,
        sessions: dict[Tower, Session],
        tokenizer: Tokenizer | None,
        text_cache: TextCache | None,
    ) -> None:
        self.bundle = bundle
        self.info = info
        self._request = request
        self._reopen = reopen
        self._sessions = sessions
        self._tokenizer = tokenizer
        self._text_cache = text_cache
        self._pid = os.getpid()
        self._closed = False

    @overload
    def encode_image(
        self,
        images: Image | Iterable[Image],
        *,
        batch_size: int | None = ...,
        on_error: Literal["raise"] = ...,
        dtype: Literal["float32"] = ...,
        dim: int | None = ...,
    ) -> Embeddings: ...

    @overload
    def encode_image(
        self,
        images: Image | Iterable[Image],
        *,
        batch_size: int | None = ...,
        on_error: Literal["raise"] = ...,
        dtype: Dtype,
        dim: int | None = ...,
    ) -> Array: ...

    @overload
    def encode_image(
        self,
        images: Image | Iterable[Image],
        *,
        batch_size: int | None = ...,
        on_error: Literal["skip"],
        dtype: Dtype = ...,
        dim: int | None = ...,
    ) -> tuple[Array, list[Skipped]]: ...

    def encode_image(
        self,
        images: Image | Iterable[Image],
        *,
        batch_size: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        dtype: Dtype = "float32",
        dim: int | None = None,
    ) -> Array | tuple[Array, list[Skipped]]:
        """Embed images. Returns [N, D] float32, each row L2-normalised, in the order given; [0, D] for none.

        Args:
            images: one image or an iterable of them: path, encoded bytes, PIL image, or array (uint8 [H, W, 3] in
                [0, 255], or float in [0, 1]; [N, H, W, 3] counts as N images).
            batch_size: images per run of the engine; decoding the next batch overlaps with it. None takes that of
                `info.batch`.
            on_error: `skip` leaves out images that cannot be read and returns (embeddings, skipped).
            dtype: `float16`, `int8` [N, D], or `binary`, which is uint8 [N, D / 8]: see `edgeclip.quantized`.
            dim: only the first coordinates, normalised again; a number that the model was trained for.

        Raises:
            ImageDecodeError, ImageTooLargeError, InputShapeError: naming the image's position and source.
            UsageError: the model cannot give this dtype or number of dimensions.
        """
        rows: list[Array] = []
        skipped: list[Skipped] = []
        for batch in self.stream_image(images, batch_size=batch_size, on_error=on_error, dtype=dtype, dim=dim):
            rows.append(batch.embeddings)
            skipped += batch.skipped
        embeddings = np.concatenate(rows) if rows else self._form(dtype, dim).none()
        return (embeddings, skipped) if on_error == "skip" else embeddings

    def stream_image(
        self,
        images: Image | Iterable[Image],
        *,
        batch_size: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        dtype: Dtype = "float32",
        dim: int | None = None,
    ) -> Iterator[EmbeddedBatch]:
        """As `encode_image`, batch by batch; memory stays flat however long the input is."""
        batch_size = self.info.batch if batch_size is None else batch_size
        _check_batch_size(batch_size)
        if on_error not in ("raise", "skip"):
            raise UsageError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        form = self._form(dtype, dim)
        self._session("image")
        for batch in batches(images, self.bundle.manifest.preprocess, batch_size, on_error):
            yield self._embed(batch, form)

    @overload
    def encode_text(
        self,
        texts: str | Iterable[str],
        *,
        batch_size: int = ...,
        cache: bool = ...,
        allow_special: bool = ...,
        dtype: Literal["float32"] = ...,
        dim: int | None = ...,
    ) -> Embeddings: ...

    @overload
    def encode_text(
        self,
        texts: str | Iterable[str],
        *,
        batch_size: int = ...,
        cache: bool = ...,
        allow_special: bool = ...,
        dtype: Dtype,
        dim: int | None = ...,
    ) -> Array: ...

    def encode_text(
        self,
        texts: str | Iterable[str],
        *,
        batch_size: int = 256,
        cache: bool = False,
        allow_special: bool = True,
        dtype: Dtype = "float32",
        dim: int | None = None,
    ) -> Array:
        """Embed texts. Returns [N, D] float32, each row L2-normalised, in the order given; [0, D] for none.

        Texts longer than the context are cut; the end-of-text token stays.

        Args:
            cache: look in, and add to, the embeddings kept on disk.
            allow_special: read `<|endoftext|>` in a text as the token, as the reference tokenizer does.
            dtype, dim: as in `encode_image`.

        Raises:
            TextInputError: naming the text's position.
            UsageError: the model cannot give this dtype or number of dimensions.
        """
        session = self._session("text")
        _check_batch_size(batch_size)
        form = self._form(dtype, dim)
        ids = self.tokenize([texts] if isinstance(texts, str) else list(texts), allow_special=allow_special)
        if cache and self._text_cache is not None:
            return form.apply(self._encode_cached(session, ids, batch_size, self._text_cache))
        return form.apply(self._encode_ids(session, ids, batch_size))

    def encode_pixels(self, pixels: Array) -> Embeddings:
        """Embed pixels that are preprocessed already, uint8 [N, S, S, 3]. Returns [N, D] float32, L2-normalised."""
        session = self._session("image")
        parts = [pixels[i : i + BATCH_SIZE] for i in range(0, len(pixels), BATCH_SIZE)]
        return np.concatenate([self._run(session, "image", part) for part in parts]) if parts else self._none()

    def encode_ids(self, ids: Array) -> Embeddings:
        """Embed texts that are tokenized already, int32 [N, C]. Returns [N, D] float32, L2-normalised."""
        return self._encode_ids(self._session("text"), ids, BATCH_SIZE)

    def tokenize(self, texts: Sequence[str], *, allow_special: bool = True) -> Array:
        """Token ids, int32 [N, C], cut and padded to the context length.

        Raises:
            TextInputError: naming the text's position.
        """
        if self._tokenizer is None:
            raise UsageError("the text tower is not loaded", hint="load it with tower='text' or tower=None")
        return self._tokenizer(texts, allow_special=allow_special)

    def similarity(self, images: Array, texts: Array) -> Embeddings:
        """exp(t)-scaled cosines of embeddings [N, D] and [M, D] of one dtype. Returns [N, M] float32.

        Of binary embeddings the cosine is an estimate: see `edgeclip.quantized.similarity`, which it raises as.
        """
        return np.asarray(self.info.logit_scale * quantized.similarity(images, texts), np.float32)

    def classifier(self, labels: Sequence[str], templates: Sequence[str] = named.photo) -> zeroshot.Classifier:
        """A zero-shot classifier. Its prompts' embeddings come from the cache on disk where they are known.

        Args:
            labels: names of the classes, each once.
            templates: prompts with `{}` for the label; several are averaged in embedding space.
        """
        prompts = zeroshot.prompts(labels, templates)
        weights = zeroshot.ensemble(self.encode_text(prompts, cache=True), len(labels))
        return zeroshot.Classifier(labels, weights, self.info.logit_scale, self.encode_image)

    def close(self) -> None:
        """Free the engine. A second call does nothing; any other call afterwards raises ModelClosedError."""
        self._closed = True
        for session in self._sessions.values():
            session.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Pickles as the recipe that loads it again: path, digest and options; never weights."""
        return self._reopen, (replace(self._request, expect_digest=self.bundle.digest),)

    def __repr__(self) -> str:
        i = self.info
        return f"<edgeclip.Model {i.name}: {i.backend} {i.engine_version}, {i.device}, {i.precision}/{i.compute}>"

    def _session(self, tower: Tower) -> Session:
        if self._closed:
            raise ModelClosedError("this model is closed", hint="load it again")
        if os.getpid() != self._pid:
            raise ForkedModelError(
                "this model was loaded before the process forked; engines do not survive a fork",
                hint="load it in the child, or start children with the spawn method",
            )
        if tower not in self._sessions:
            raise UsageError(f"the {tower} tower is not loaded", hint=f"load it with tower={tower!r} or tower=None")
        return self._sessions[tower]

    def _run(self, session: Session, tower: Tower, inputs: Array) -> Embeddings:
        with inflight.call():
            embeddings = session.run(inputs)
        if not np.isfinite(embeddings).all():
            raise NonFiniteError(
                f"the {tower} tower returned NaN or infinity ({self.info.artifacts[tower]}, {self.info.backend}, "
                f"{self.info.compute})",
                hint=_WHO_IS_AT_FAULT,
            )
        if not embeddings.any(axis=1).all():
            raise NonFiniteError(
                f"the {tower} tower returned a row of zeros, which points nowhere ({self.info.artifacts[tower]}, "
                f"{self.info.backend}, {self.info.compute})",
                hint=_WHO_IS_AT_FAULT,
            )
        return embeddings

    def _form(self, dtype: Dtype, dim: int | None) -> Form:
        return choose_form(self.bundle.manifest.model, dtype, dim)

    def _embed(self, batch: PixelBatch, form: Form) -> EmbeddedBatch:
        session = self._session("image")
        rows = self._run(session, "image", batch.pixels) if batch.indices else self._none()
        return EmbeddedBatch(batch.indices, form.apply(rows), batch.skipped)

    def _encode_ids(self, session: Session, ids: Array, batch_size: int) -> Embeddings:
        """Short texts first, so that a batch is cut to the length of its longest text."""
        if len(ids) == 0:
            return self._none()
        tokenizer = self._tokenizer
        assert tokenizer is not None
        order = np.argsort(tokenizer.lengths(ids), kind="stable")
        out = np.empty((len(ids), self.info.embed_dim), np.float32)
        for start in range(0, len(ids), batch_size):
            rows = order[start : start + batch_size]
            out[rows] = self._run(session, "text", tokenizer.trim(ids[rows]))
        return out

    def _encode_cached(self, session: Session, ids: Array, batch_size: int, cache: TextCache) -> Embeddings:
        known = cache.get(ids)
        missing = [i for i, row in enumerate(ids) if key(row) not in known]
        fresh = self._encode_ids(session, ids[missing], batch_size)
        if missing:
            cache.put((key(ids[i]), row) for i, row in zip(missing, fresh, strict=True))
        known |= {key(ids[i]): row for i, row in zip(missing, fresh, strict=True)}
        return np.stack([known[key(row)] for row in ids]) if len(ids) else self._none()

    def _none(self) -> Embeddings:
        return np.empty((0, self.info.embed_dim), np.float32)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}")
