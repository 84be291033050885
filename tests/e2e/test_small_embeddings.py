"""Small embeddings from a model that runs, and from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

import edgeclip
from edgeclip import quantized
from edgeclip.bundle import Bundle, write_bundle
from edgeclip.errors import NonFiniteError, UsageError
from edgeclip.form import truncated
from edgeclip.loading import BUILT_IN
from edgeclip.quantized import Dtype
from tests import cli

TEXTS = ["a photo of a cat", "two dogs run", "a red bicycle"]
CONVERTED = {
    "float32": lambda rows: rows,
    "float16": np.float16,
    "int8": quantized.to_int8,
    "binary": quantized.to_binary,
}
DTYPES: list[Dtype] = ["float32", "float16", "int8", "binary"]


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in bundle, said to be trained for fewer dimensions, too."""
    bundle = Bundle.open(BUILT_IN)
    model = msgspec.structs.replace(bundle.manifest.model, matryoshka=(64, 128))
    files = {entry.path: bundle.read(entry.path) for entry in bundle.manifest.files}
    path = tmp_path_factory.mktemp("nested") / "nested.edgeclip"
    write_bundle(path, msgspec.structs.replace(bundle.manifest, model=model), files, replace=False)
    return path


@pytest.fixture(scope="module")
def model(nested: Path) -> Iterator[edgeclip.Model]:
    with edgeclip.load(nested, threads=1) as loaded:
        yield loaded


def pictures(n: int) -> list[np.ndarray]:  # type: ignore[type-arg]
    return list(np.random.default_rng(0).integers(0, 256, (n, 40, 50, 3), dtype=np.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [None, 64, 256])
def test_each_dtype_is_that_of_the_floats(model: edgeclip.Model, dtype: Dtype, dim: int | None) -> None:
    for small, floats in (
        (model.encode_image(pictures(3), dtype=dtype, dim=dim), model.encode_image(pictures(3))),
        (model.encode_text(TEXTS, dtype=dtype, dim=dim), model.encode_text(TEXTS)),
    ):
        expected = CONVERTED[dtype](truncated(floats, dim) if dim == 64 else floats)
        assert small.dtype == expected.dtype
        np.testing.assert_array_equal(small, expected)


def test_batches_and_skipping_are_as_ever(model: edgeclip.Model) -> None:
    images = [*pictures(3), b"no image", *pictures(2)]
    small, skipped = model.encode_image(images, batch_size=2, on_error="skip", dtype="int8", dim=128)
    assert [one.index for one in skipped] == [3]
    assert (small.shape, small.dtype) == ((5, 128), np.int8)
    np.testing.assert_allclose(small[3:].astype(int), small[:2].astype(int), atol=1)
    parts = [b.embeddings for b in model.stream_image(images, batch_size=2, on_error="skip", dtype="int8", dim=128)]
    np.testing.assert_array_equal(np.concatenate(parts), small)


@pytest.mark.parametrize(("dtype", "columns"), [("float32", 256), ("int8", 256), ("binary", 32)])
def test_nothing_gives_no_rows_of_the_dtype(model: edgeclip.Model, dtype: Dtype, columns: int) -> None:
    for none in (model.encode_image([], dtype=dtype), model.encode_text([], dtype=dtype)):
        assert none.shape == (0, columns) and none.dtype == model.encode_text("x", dtype=dtype).dtype


def test_the_cache_keeps_floats_whatever_was_asked_for(model: edgeclip.Model) -> None:
    first = model.encode_text(TEXTS, cache=True, dtype="binary", dim=64)
    floats = model.encode_text(TEXTS, cache=True)
    np.testing.assert_allclose(floats, model.encode_text(TEXTS), atol=1e-6)
    np.testing.assert_array_equal(model.encode_text(TEXTS, cache=True, dtype="binary", dim=64), first)


def test_similarity_takes_every_dtype_but_no_two(model: edgeclip.Model) -> None:
    exact = model.similarity(model.encode_image(pictures(2)), model.encode_text(TEXTS)) / model.info.logit_scale
    for dtype, bound in (("float16", 1e-3), ("int8", 0.02), ("binary", 0.3)):
        images = model.encode_image(pictures(2), dtype=dtype)
        found = model.similarity(images, model.encode_text(TEXTS, dtype=dtype)) / model.info.logit_scale
        assert found.dtype == np.float32 and np.abs(found - exact).max() < bound
    with pytest.raises(UsageError, match="the first is binary, the second is floating"):
        model.similarity(images, model.encode_text(TEXTS))


@pytest.mark.parametrize("call", ["encode_image", "encode_text"])
def test_dimensions_that_mean_nothing_are_refused_before_any_work(model: edgeclip.Model, call: str) -> None:
    with pytest.raises(UsageError, match=r"no embeddings of 100 dimensions from .* \(dim can be: 64, 128, 256\)"):
        getattr(model, call)(["absent.jpg"], dim=100)
    with pytest.raises(UsageError, match="no dtype 'int4'"):
        getattr(model, call)(["absent.jpg"], dtype="int4")


def test_a_row_of_zeros_is_an_error(nested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with edgeclip.load(nested, threads=1) as one:

        class Silent:
            engine = one._sessions["image"].engine

            def run(self, inputs: object) -> np.ndarray:  # type: ignore[type-arg]
                return np.eye(2, 256, -1, dtype=np.float32)

            def close(self) -> None: ...

        monkeypatch.setitem(one._sessions, "image", Silent())
        for dtype in DTYPES:
            with pytest.raises(NonFiniteError, match="the image tower returned a row of zeros"):
                one.encode_image(pictures(2), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_command_writes_what_the_library_gives(nested: Path, photos: Path, tmp_path: Path, dtype: Dtype) -> None:
    arguments = ("--text", "a cat", "--dtype", dtype, "--dim", "128", "--threads", "1", "-o", tmp_path / "x.npz")
    done = cli.edgeclip("embed", nested, photos / "a.jpg", *arguments)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "x.npz") as found, edgeclip.load(nested, threads=1) as model:
        images = model.encode_image(photos / "a.jpg", dtype=dtype, dim=128)
        np.testing.assert_array_equal(found["embeddings"], [*images, *model.encode_text("a cat", dtype=dtype, dim=128)])
        assert found["embeddings"].dtype == images.dtype
        kept = json.loads(str(found["provenance"]))
    assert (kept["dtype"], kept["dim"], kept["embed_dim"]) == (dtype, 128, 256)
    assert kept.get("scale") == (quantized.scale(128) if dtype == "int8" else None)
    assert kept.get("bit_order") == ("big" if dtype == "binary" else None)


def test_json_lines_hold_integers_where_rows_do(nested: Path) -> None:
    done = cli.edgeclip("embed", nested, "--text", "a cat", "--dtype", "binary", "--threads", "1")
    first, row = [json.loads(line) for line in done.stdout.splitlines()]
    assert first["provenance"]["bit_order"] == "big"
    assert len(row["embedding"]) == 32 and all(type(byte) is int and 0 <= byte < 256 for byte in row["embedding"])


def test_the_command_refuses_other_dimensions_and_leaves_no_output(nested: Path, tmp_path: Path) -> None:
    done = cli.edgeclip("embed", nested, "--text", "a cat", "--dim", "100", "-o", tmp_path / "x.npy")
    assert done.returncode == 2 and "hint: dim can be: 64, 128, 256" in done.stderr
    assert list(tmp_path.iterdir()) == []
