"""Files of embeddings: what is in them, and that they appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeclip.backends.base import Array, Embeddings
from edgeclip.cli import writers
from edgeclip.cli.writers import Columns, Rows, open_writer
from edgeclip.errors import ResourceError, TargetUnavailableError, UsageError

PROVENANCE = {"bundle": "sha256:abc", "compute": "f32"}
DIM = 5
FLOATS = Columns(DIM)


def rows(n: int = 3, seed: int = 0) -> Embeddings:
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)


def write(path: Path) -> Embeddings:
    """Two batches of images and one text."""
    with open_writer(path, PROVENANCE, FLOATS) as put:
        put(Rows("image", ["a.jpg", "é.jpg"], rows(2)))
        put(Rows("image", ["b.jpg"], rows(1, 1)))
        put(Rows("text", ["a cat"], rows(1, 2)))
    return np.concatenate([rows(2), rows(1, 1), rows(1, 2)])


SOURCES = ["a.jpg", "é.jpg", "b.jpg", "a cat"]
KINDS = ["image", "image", "image", "text"]


def test_npy_has_the_matrix_and_the_rest_beside_it(tmp_path: Path) -> None:
    expected = write(tmp_path / "x.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)
    beside = json.loads((tmp_path / "x.npy.json").read_text("utf-8"))
    assert beside == {"provenance": PROVENANCE, "kinds": KINDS, "sources": SOURCES}


def test_npz_has_everything(tmp_path: Path) -> None:
    expected = write(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["embeddings"], expected)
        assert found["sources"].tolist() == SOURCES and found["kinds"].tolist() == KINDS
        assert json.loads(str(found["provenance"])) == PROVENANCE


def test_jsonl_begins_with_the_provenance_and_keeps_every_bit(tmp_path: Path) -> None:
    expected = write(tmp_path / "x.jsonl")
    first, *rest = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text("utf-8").splitlines()]
    assert first == {"provenance": PROVENANCE}
    np.testing.assert_array_equal(np.array([line["embedding"] for line in rest], np.float32), expected)
    assert [line["source"] for line in rest] == SOURCES


def test_parquet_has_the_provenance_in_its_schema(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    expected = write(tmp_path / "x.parquet")
    table = parquet.read_table(tmp_path / "x.parquet")
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), expected)
    assert table["source"].to_pylist() == SOURCES and table["kind"].to_pylist() == KINDS
    assert json.loads(table.schema.metadata[b"provenance"]) == PROVENANCE


@pytest.mark.parametrize("suffix", writers.WRITERS)
def test_no_rows_make_a_valid_file(tmp_path: Path, suffix: str) -> None:
    with open_writer(tmp_path / f"x{suffix}", PROVENANCE, FLOATS):
        pass
    assert (tmp_path / f"x{suffix}").stat().st_size > 0
    if suffix == ".npy":
        assert np.load(tmp_path / "x.npy").shape == (0, DIM)


@pytest.mark.parametrize("suffix", writers.WRITERS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, suffix: str, error: type[BaseException]) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_text("old")
    with pytest.raises(error), open_writer(path, PROVENANCE, FLOATS) as put:
        put(Rows("image", ["a"], rows(1)))
        raise error
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "old"


def test_a_full_disk_is_a_resource_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"x.npy: the disk is full"), open_writer(tmp_path / "x.npy", {}, FLOATS):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_the_header_has_room_for_any_number_of_rows() -> None:
    lengths = {len(writers._header(n, Columns(512))) for n in (0, 1, 10**6, 10**12)}
    assert len(lengths) == 1


def test_a_directory_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "x.npy").mkdir()
    with pytest.raises(UsageError, match=r"x.npy: is a directory"):
        writers.check_path(tmp_path / "x.npy")


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(TargetUnavailableError, match=r"needs pyarrow.*pip install 'edgeclip\[parquet\]'"):
        writers.check_path(tmp_path / "x.parquet")


def test_sources_that_npz_would_pad_beyond_reason_are_refused(tmp_path: Path) -> None:
    long = ["x" * 60_000] + ["y"] * 5_000
    writers.check_sources(tmp_path / "x.jsonl", long)
    with pytest.raises(UsageError, match=r"would take \d+ bytes in .npz.*use .parquet or .jsonl"):
        writers.check_sources(tmp_path / "x.npz", long)


SMALL = {"float16": "<f2", "int8": "i1", "binary": "u1"}


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("suffix", writers.WRITERS)
def test_small_dtypes_come_back_as_they_were(tmp_path: Path, suffix: str, dtype: str) -> None:
    columns = Columns(DIM, np.dtype(SMALL[dtype]))
    expected = np.frombuffer(np.random.default_rng(0).bytes(4 * DIM * columns.dtype.itemsize), columns.dtype)
    expected = np.where(np.isfinite(expected), expected, columns.dtype.type(1)).reshape(4, DIM)
    path = tmp_path / f"x{suffix}"
    with open_writer(path, PROVENANCE, columns) as put:
        put(Rows("image", ["a", "b", "c"], expected[:3]))
        put(Rows("text", ["d"], expected[3:]))
    found = stored(path, columns)
    assert found.dtype == columns.dtype
    np.testing.assert_array_equal(found, expected)


def stored(path: Path, columns: Columns) -> Array:
    """The matrix of a file; of JSON lines, in the dtype that the reader must know."""
    if path.suffix == ".npy":
        return np.asarray(np.load(path))
    if path.suffix == ".npz":
        with np.load(path) as found:
            return np.asarray(found["embeddings"])
    if path.suffix == ".jsonl":
        lines = path.read_text("utf-8").splitlines()[1:]
        return np.array([json.loads(line)["embedding"] for line in lines], columns.dtype)
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    column = parquet.read_table(path)["embedding"].combine_chunks()
    return np.asarray(column.flatten().to_numpy().reshape(-1, columns.count))


def test_every_float16_keeps_its_bits_in_json() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)][None, :]
    (line,) = writers.described(Rows("image", ["a"], finite))
    written = np.array(json.loads(json.dumps(line["embedding"])), np.float16)
    np.testing.assert_array_equal(written.view(np.uint16), finite[0].view(np.uint16))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet"])
def test_rows_of_another_dtype_are_not_cast(tmp_path: Path, suffix: str) -> None:
    columns = Columns(DIM, np.dtype("i1"))
    with (
        pytest.raises(TypeError, match="Cannot cast"),
        open_writer(tmp_path / f"x{suffix}", PROVENANCE, columns) as put,
    ):
        put(Rows("image", ["a"], rows(1)))
    assert list(tmp_path.iterdir()) == []
