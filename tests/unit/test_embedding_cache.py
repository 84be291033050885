"""Embeddings that are kept: by content alone, whole or not at all, and never for another artifact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edgeclip
from edgeclip.benchmarks import embedding_cache
from edgeclip.benchmarks.embedded_images import embed_set
from edgeclip.benchmarks.embedding_cache import EmbeddingCache, chunks, tower_key
from edgeclip.errors import ImageDecodeError
from edgeclip.model import Model
from edgeclip.testset import open_test_set
from tests import training


@pytest.fixture
def model() -> Iterator[Model]:
    with edgeclip.load(text_cache=False) as opened:
        yield opened


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_cache, "CHUNK", 4)


def kept(cache_dir: Path) -> list[Path]:
    return sorted((cache_dir / "eval").iterdir())


def test_what_was_embedded_is_found(model: Model, tmp_path: Path, private_cache: Path) -> None:
    data = open_test_set(training.test_set(tmp_path / "t"))
    first, again = EmbeddingCache(model), EmbeddingCache(model)
    embedded = embed_set(model, data, cache=first)
    assert (first.computed, first.found, len(kept(private_cache))) == (12, 0, 3)
    assert (embed_set(model, data, cache=again).images == embedded.images).all()
    assert (again.computed, again.found) == (0, 12)
    np.testing.assert_allclose(embedded.images, model.encode_image([one.image for one in data]), atol=1e-5)


def test_a_run_that_stopped_goes_on_where_it_was(model: Model, tmp_path: Path) -> None:
    data = open_test_set(training.test_set(tmp_path / "t"))

    def stop(amount: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_set(model, data, stop, EmbeddingCache(model))
    again = EmbeddingCache(model)
    embed_set(model, data, cache=again)
    assert (again.computed, again.found) == (8, 4)


def test_other_pictures_are_embedded(model: Model, tmp_path: Path) -> None:
    folder = training.test_set(tmp_path / "t")
    embed_set(model, open_test_set(folder), cache=EmbeddingCache(model))
    pairs: dict[str, bytes] = {}
    for i in range(12):
        pairs |= {f"{i}.jpg": training.picture((i, 9 * i, 20 * i), np.random.default_rng(i)), f"{i}.cls": b"0"}
    training.shard(folder / "test" / "0.tar", pairs)
    again = EmbeddingCache(model)
    embed_set(model, open_test_set(folder), cache=again)
    assert (again.computed, again.found) == (12, 0)


def test_what_was_damaged_is_embedded_again(model: Model, tmp_path: Path, private_cache: Path) -> None:
    data = open_test_set(training.test_set(tmp_path / "t"))
    embedded = embed_set(model, data, cache=EmbeddingCache(model))
    damaged, shortened, _ = kept(private_cache)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    shortened.write_bytes(shortened.read_bytes()[:100])
    again = EmbeddingCache(model)
    assert (embed_set(model, data, cache=again).images == embedded.images).all()
    assert (again.computed, again.found) == (8, 4)


def test_another_engine_has_another_key(model: Model, tiny_bundle: Path) -> None:
    keys = {tower_key(model, "image"), tower_key(model, "text")}
    with edgeclip.load(backend="openvino") as other:
        keys |= {tower_key(other, "image"), tower_key(other, "text")}
    for precision in ("fp32", "fp16"):
        with edgeclip.load(tiny_bundle, backend="onnxruntime", precision=precision) as other:  # type: ignore[arg-type]
            keys |= {tower_key(other, "image"), tower_key(other, "text")}
    assert len(keys) == 8
    with edgeclip.load(text_cache=False, threads=1) as same:
        assert tower_key(same, "image") in keys


def test_without_a_cache_nothing_is_kept(model: Model, tmp_path: Path, private_cache: Path) -> None:
    data = open_test_set(training.test_set(tmp_path / "t"))
    embed_set(model, data, cache=EmbeddingCache(model, enabled=False))
    assert not (private_cache / "eval").exists()


def test_texts_are_kept_too(model: Model, private_cache: Path) -> None:
    texts = [f"a photo of {i} cats" for i in range(10)]
    rows = EmbeddingCache(model).texts(texts)
    assert len(kept(private_cache)) == 3 and (EmbeddingCache(model).texts(texts) == rows).all()
    np.testing.assert_allclose(rows, model.encode_text(texts), atol=1e-5)


def test_chunks_end_where_they_are_large() -> None:
    assert list(chunks([1, 2, 3, 4, 5, 6], lambda size: size)) == [[1, 2, 3, 4], [5, 6]]
    assert list(chunks([3, 1 << 26, 2], lambda size: size)) == [[3, 1 << 26], [2]]


def test_an_image_that_cannot_be_decoded_is_named(model: Model, tmp_path: Path) -> None:
    folder = training.test_set(tmp_path / "colours")
    training.shard(folder / "test" / "0.tar", {"x/7.jpg": b"no image", "x/7.cls": b"0"})
    with pytest.raises(ImageDecodeError, match="colours/x/7: .*not an image that can be decoded"):
        embed_set(model, open_test_set(folder))
