"""Tars of samples: listed without being read, read by place, and refused where they are cut, gzipped or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeclip.errors import DataError
from edgeclip.tars import Piece, Reader, count_tar, index_tar, read_tar
from tests import training

MEMBERS = {"a/1.JPG": b"one", "a/1.seg.png": b"mask", "a/1.txt": b"said", "a/2.jpg": b"two" * 4000, "a/2.txt": b""}


@pytest.fixture(params=["s.tar", "s.tar.gz"])
def shard(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return training.shard(tmp_path / request.param, MEMBERS)


def test_files_of_a_sample_come_together(shard: Path) -> None:
    first, second = read_tar(shard)
    assert first == {"": b"a/1", "jpg": b"one", "seg.png": b"mask", "txt": b"said"}
    assert second[""] == b"a/2" and second["jpg"] == b"two" * 4000


def test_an_index_tells_where_they_lie(shard: Path) -> None:
    index = dict(index_tar(shard))
    assert list(index) == ["a/1", "a/2"] and count_tar(shard) == 2
    with Reader() as reader:
        assert reader.read(index["a/2"]["jpg"]) == b"two" * 4000
        assert reader.read(index["a/1"]["jpg"]) == b"one"
        assert reader.read(index["a/2"]["txt"]) == b""


def test_a_reader_goes_from_tar_to_tar(tmp_path: Path) -> None:
    tars = [training.shard(tmp_path / f"{i}.tar", {"k.txt": f"in {i}".encode()}) for i in range(2)]
    pieces = [dict(index_tar(tar))["k"]["txt"] for tar in tars]
    with Reader() as reader:
        assert [reader.read(piece) for piece in (*pieces, pieces[0])] == [b"in 0", b"in 1", b"in 0"]


@pytest.mark.parametrize("kept", [0.2, 0.6])
def test_a_cut_tar_is_not_listed(shard: Path, kept: float) -> None:
    data = shard.read_bytes()
    shard.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError, match=rf"{shard.name}: cannot be read"):
        list(index_tar(shard))


def test_a_tar_that_is_no_tar_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"text" * 300)
    with pytest.raises(DataError, match=r"x\.tar: cannot be read"):
        list(read_tar(tmp_path / "x.tar"))


def test_a_tar_that_became_shorter_is_an_error(shard: Path) -> None:
    piece = Piece(shard, 1 << 20, 10)
    with (
        Reader() as reader,
        pytest.raises(DataError, match="cannot be read to its end: shorter than when it was listed"),
    ):
        reader.read(piece)


def test_a_tar_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with Reader() as reader, pytest.raises(DataError, match=r"gone\.tar: cannot be read to its end: .*No such file"):
        reader.read(Piece(tmp_path / "gone.tar", 0, 1))
