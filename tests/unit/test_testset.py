"""Test sets as they lie on disk: read one sample at a time, and refused where they are incomplete."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeclip.errors import DataError, UsageError
from edgeclip.testset import choose_test_sets, count_samples, list_test_sets, open_test_set, read_test_set
from tests import training


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    return training.test_set(tmp_path / "colours")


def captioned(folder: Path, members: dict[str, bytes]) -> Path:
    """A retrieval set."""
    (folder / "test").mkdir(parents=True)
    training.shard(folder / "test" / "0.tar", members)
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "dataset_type.txt").write_text("retrieval\n")
    return folder


def test_a_test_set_is_read(colours: Path) -> None:
    data = read_test_set(colours, training.preprocess(), limit=6)
    assert data.labels is not None and data.labels.tolist() == [0, 1, 2, 3, 0, 1]
    assert data.pixels.shape == (6, 16, 16, 3) and data.templates == ("a {} thing.", "all {}")


def test_samples_come_encoded_and_may_be_read_again(colours: Path) -> None:
    data = open_test_set(colours)
    first, second = list(data), list(data)
    assert first == second and len(first) == 12
    assert first[1].key == "colours/001" and first[1].label == 1 and first[1].image.startswith(b"\xff\xd8\xff")


def test_samples_are_counted_up_to_the_limit(colours: Path) -> None:
    assert count_samples(colours) == 12 and count_samples(colours, limit=5) == 5


def test_captions_are_the_lines_of_the_text(tmp_path: Path) -> None:
    folder = captioned(tmp_path / "c", {"a.b.jpg": b"", "x/1.PNG": b"png", "x/1.txt": b"one\n\n two \n"})
    with pytest.raises(DataError, match="c/a: no image"):
        list(open_test_set(folder))
    (folder / "test" / "0.tar").unlink()
    training.shard(folder / "test" / "0.tar", {"x/1.PNG": b"png", "x/1.txt": b"one\n\n two \n"})
    (sample,) = open_test_set(folder)
    assert (sample.key, sample.image, sample.label, sample.captions) == ("c/x/1", b"png", None, ("one", "two"))


def test_an_image_without_a_caption_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="c/1: no caption"):
        list(open_test_set(captioned(tmp_path / "c", {"1.png": b"png", "1.txt": b"\n"})))


def test_a_class_that_is_not_one_is_an_error(colours: Path) -> None:
    (colours / "classnames.txt").write_text("red\ngreen\n")
    with pytest.raises(DataError, match="colours/002: class '2' is not one of 2"):
        read_test_set(colours, training.preprocess())


def test_a_set_without_class_names_is_an_error(colours: Path) -> None:
    (colours / "classnames.txt").write_text("\n")
    with pytest.raises(DataError, match="colours: no class names"):
        open_test_set(colours)


def test_a_set_without_samples_is_an_error(colours: Path) -> None:
    (colours / "test" / "nshards.txt").write_text("0")
    with pytest.raises(DataError, match="colours: no samples"):
        list(open_test_set(colours))


def test_a_shard_count_that_is_no_number_is_an_error(colours: Path) -> None:
    (colours / "test" / "nshards.txt").write_text("one")
    with pytest.raises(DataError, match=r"nshards\.txt: 'one' is not a number of shards"):
        list(open_test_set(colours))


def test_a_missing_shard_is_an_error(colours: Path) -> None:
    (colours / "test" / "nshards.txt").write_text("2")
    with pytest.raises(DataError, match=r"1\.tar: cannot be read: No such file"):
        list(open_test_set(colours))


@pytest.mark.parametrize("size", [600, 1024 + 512, 3000])
def test_a_torn_shard_is_an_error(colours: Path, size: int) -> None:
    tar = colours / "test" / "0.tar"
    tar.write_bytes(tar.read_bytes()[:size])
    with pytest.raises(DataError, match=r"0\.tar: cannot be read"):
        read_test_set(colours, training.preprocess())


def test_a_shard_that_ends_between_two_files_is_an_error(tmp_path: Path) -> None:
    folder = captioned(tmp_path / "c", {"1.png": b"png", "1.txt": b"one"})
    tar = folder / "test" / "0.tar"
    tar.write_bytes(tar.read_bytes()[:2048])
    with pytest.raises(DataError, match=r"0\.tar: cannot be read to its end: ends without a tar's end mark"):
        list(open_test_set(folder))


def test_an_unknown_set_lists_those_that_are_there(colours: Path) -> None:
    with pytest.raises(UsageError, match=r"no test set 'colors' in .*known: colours"):
        choose_test_sets(colours.parent, ["colors"])
    assert choose_test_sets(colours.parent) == ["colours"]


def test_a_folder_without_sets_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no test sets"):
        list_test_sets(tmp_path)
    with pytest.raises(DataError, match="absent: no such folder"):
        list_test_sets(tmp_path / "absent")


def test_the_real_sets_are_read(data_dir: Path) -> None:
    spec = training.preprocess()
    assert len(list_test_sets(data_dir / "eval")) == 8
    retrieval_set = read_test_set(data_dir / "eval" / "wds_flickr8k", spec, limit=5)
    assert [len(captions) for captions in retrieval_set.captions] == [5] * 5
    photos = read_test_set(data_dir / "eval" / "wds_cifar10", spec, limit=5)
    assert len(photos.classes) == 10 and photos.labels is not None
    assert count_samples(data_dir / "eval" / "wds_flickr8k") == 1000


def test_an_empty_class_name_between_others_counts(colours: Path) -> None:
    """CLEVR's distances have one."""
    (colours / "classnames.txt").write_text("near\n\nfar\nvery far\n\n")
    assert open_test_set(colours).classes == ("near", "", "far", "very far")
