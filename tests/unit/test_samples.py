"""What lies at a path: every layout is recognised, listed without reading pictures, and named where it is not usable."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edgeclip.errors import DataError, UsageError
from edgeclip.samples import Sample, SampleReader, Samples, find_samples
from tests import pictures, training


def read_all(samples: Samples) -> list[Sample]:
    with SampleReader() as reader:
        return [reader.read(entry) for entry in samples.entries]


def test_photographs_are_found_in_folders_below_and_hidden_ones_left_out(tmp_path: Path) -> None:
    pictures.folder(tmp_path / "2024" / "05", 2)
    pictures.folder(tmp_path, 1, first=7)
    (tmp_path / "._0007.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("x")
    pictures.folder(tmp_path / ".thumbnails", 1)
    found = find_samples(tmp_path)
    assert found.kind == "pictures" and [e.key for e in found.entries] == [
        "0007.png",
        "2024/05/0000.png",
        "2024/05/0001.png",
    ]
    assert read_all(found)[0] == Sample("0007.png", tmp_path / "0007.png")


def test_class_folders_give_their_names(tmp_path: Path) -> None:
    found = find_samples(pictures.class_folders(tmp_path, each=1))
    assert found.kind == "class folders"
    assert [(s.key, s.names) for s in read_all(found)] == [
        ("cat/0001.png", ("cat",)),
        ("red_fox/0000.png", ("red fox",)),
    ]


def test_names_beside_class_folders_are_taken(tmp_path: Path) -> None:
    pictures.class_folders(tmp_path, ("n01", "n02"), each=1)
    assert find_samples(tmp_path).kind == "pictures"
    (tmp_path / "classnames.txt").write_text("goldfish\nbullfrog\n")
    assert [s.names for s in read_all(find_samples(tmp_path))] == [("goldfish",), ("bullfrog",)]


def test_names_that_do_not_match_the_folders_are_an_error(tmp_path: Path) -> None:
    pictures.class_folders(tmp_path, each=1)
    (tmp_path / "classnames.txt").write_text("goldfish\n")
    with pytest.raises(DataError, match=r"classnames\.txt: 1 names for 2 class folders"):
        find_samples(tmp_path)


def test_a_test_set_gives_class_names_and_templates(tmp_path: Path) -> None:
    found = find_samples(training.test_set(tmp_path / "colours"))
    assert found.kind == "test sets" and len(found.entries) == 12
    assert found.entries[0].templates == ("a {} thing.", "all {}")
    assert read_all(found)[1].names == ("green",)


def test_a_folder_of_test_sets_is_all_of_them(tmp_path: Path) -> None:
    training.test_set(tmp_path / "one")
    training.test_set(tmp_path / "two", count=3)
    assert [e.key for e in find_samples(tmp_path).entries][-4:] == ["one/011", "two/000", "two/001", "two/002"]


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz", "S.TGZ"])
def test_a_shard_gives_captions_names_and_texts(tmp_path: Path, name: str) -> None:
    found = read_all(find_samples(pictures.tar(tmp_path / name, 3)))
    assert [s.image for s in found] == [pictures.encoded(i) for i in range(3)]
    assert [s.names for s in found] == [("name 0", "other 0"), (), ()]
    assert [s.captions for s in found] == [(), ("caption 1",), ("text 2", "again 2")]


def test_a_folder_of_shards_and_patterns_of_them(tmp_path: Path) -> None:
    for i in range(3):
        pictures.tar(tmp_path / f"x-{i:03d}.tar", 2)
    assert len(find_samples(tmp_path).entries) == 6
    assert [e.key for e in find_samples(tmp_path / "x-{001..002}.tar").entries[::2]] == ["x-001/0000", "x-002/0000"]
    assert len(find_samples(tmp_path / "x-*.tar").entries) == 6


def test_a_shard_that_a_range_names_must_be_there(tmp_path: Path) -> None:
    pictures.tar(tmp_path / "x-0.tar", 1)
    with pytest.raises(DataError, match=r"x-1\.tar: no such shard"):
        find_samples(tmp_path / "x-{0..1}.tar")


def test_a_pattern_names_tars(tmp_path: Path) -> None:
    pictures.folder(tmp_path, 1)
    with pytest.raises(UsageError, match=r"0000\.png: matches \*\.png, and is no tar"):
        find_samples(tmp_path / "*.png")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_a_table_gives_each_picture_its_captions(tmp_path: Path, name: str) -> None:
    found = read_all(find_samples(pictures.table(tmp_path / name, 2)))
    image = tmp_path / "pictures" / "0001.png"
    assert found[1] == Sample("pictures/0001.png", image, ("caption 0 of 1", "caption 1 of 1"))


def test_a_table_without_its_columns_says_which(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,licence\na.png,x\n")
    with pytest.raises(UsageError, match=r"t\.csv: no column caption or text or title \(it has: image, licence\)"):
        find_samples(tmp_path / "t.csv")


def test_a_table_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"image,caption\na.png,caf\xe9\n")
    with pytest.raises(DataError, match=r"t\.csv: not UTF-8"):
        find_samples(tmp_path / "t.csv")


def test_nothing_there_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent: no such file or folder \(expected: a folder of pictures"):
        find_samples(tmp_path / "absent")
    with pytest.raises(DataError, match=r"no pictures in this folder \(expected: a folder of pictures"):
        find_samples(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match=r"model\.onnx: neither a table, nor a tar, nor a picture by its name"):
        find_samples(tmp_path / "model.onnx")


def test_a_name_that_no_file_can_have_is_that_of_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nnn: no such file or folder"):
        find_samples(tmp_path / ("n" * 5000))


def test_a_table_may_name_what_no_file_can_be_called(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,caption\na\0.png,x\n")
    if sys.version_info < (3, 11):
        with pytest.raises(DataError, match=r"t\.csv: not a table: line contains NUL"):
            find_samples(tmp_path / "t.csv")
    else:
        assert find_samples(tmp_path / "t.csv").state()[1][1:] == (-1, -1)


def test_a_shard_without_pictures_is_an_error(tmp_path: Path) -> None:
    training.shard(tmp_path / "s.tar", {"1.txt": b"alone"})
    with pytest.raises(DataError, match=r"s\.tar: no pictures in these shards"):
        _ = find_samples(tmp_path / "s.tar").entries


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"[1]", "its JSON is no object"),
        (b'{"captions": [3]}', "captions and names are lists of strings"),
        (rb'{"caption": "\ud800"}', "surrogates not allowed"),
    ],
)
def test_texts_that_are_none_are_an_error_of_their_sample(tmp_path: Path, said: bytes, reason: str) -> None:
    training.shard(tmp_path / "s.tar", {"1.png": b"png", "1.json": said})
    with pytest.raises(DataError, match=f"s/1: its text cannot be used: .*{reason}"):
        read_all(find_samples(tmp_path / "s.tar"))


def test_a_single_caption_will_do(tmp_path: Path) -> None:
    training.shard(
        tmp_path / "s.tar", {"1.png": b"", "1.json": json.dumps({"caption": " a cat "}).encode(), "1.txt": b"x"}
    )
    assert read_all(find_samples(tmp_path / "s.tar"))[0].captions == ("a cat",)


def test_a_class_beyond_those_of_its_set_is_an_error(tmp_path: Path) -> None:
    folder = training.test_set(tmp_path / "colours")
    (folder / "classnames.txt").write_text("red\n")
    with pytest.raises(DataError, match="colours/001: its text cannot be used: class '1' is not one of 1"):
        read_all(find_samples(folder))


def test_any_change_of_the_files_shows(tmp_path: Path) -> None:
    found = find_samples(pictures.folder(tmp_path, 2))
    before = found.state()
    assert found.state() == before
    (tmp_path / "0001.png").write_bytes(b"changed")
    assert found.state() != before
    (tmp_path / "0001.png").unlink()
    assert found.state()[1][1:] == (-1, -1)


def test_real_shards_are_listed(data_dir: Path) -> None:
    found = find_samples(data_dir / "train" / "flickr8k-000.tar.gz")
    assert len(found.entries) == 7000
    with SampleReader() as reader:
        assert len(reader.read(found.entries[0]).captions) == 5
