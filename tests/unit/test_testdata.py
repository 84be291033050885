"""Data to evaluate on: every layout that is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeclip import templates
from edgeclip.benchmarks.suite_plan import Request, plan
from edgeclip.benchmarks.testdata import DataSpec, LooseSet, count, find_data, open_data, training_split
from edgeclip.errors import DataError, UsageError
from edgeclip.testset import TestSet, read_test_set
from tests import labelled, training


def one(place: Path) -> DataSpec:
    (spec,) = find_data([str(place)])
    return spec


def test_a_folder_of_test_sets_is_one_spec_each(tmp_path: Path) -> None:
    training.test_set(tmp_path / "wds_b")
    labelled.retrieval(tmp_path / "wds_a")
    (tmp_path / "notes").mkdir()
    found = find_data([str(tmp_path)])
    assert [spec.name for spec in found] == ["wds_a", "wds_b"] and [count(spec) for spec in found] == [24, 12]
    assert [open_data(spec).is_retrieval for spec in found] == [True, False]
    assert [spec.name for spec in find_data([str(tmp_path)], ["wds_b"])] == ["wds_b"]
    with pytest.raises(UsageError, match=r"no data set 'c' \(known: wds_a, wds_b\)"):
        find_data([str(tmp_path)], ["c"])


def test_every_shard_is_read_in_order(tmp_path: Path) -> None:
    data = list(open_data(one(labelled.retrieval(tmp_path / "r", captions=3))))
    assert [sample.key for sample in data] == [f"r/{i:03d}" for i in range(24)]
    assert data[1].captions == tuple(f"green thing number 1 seen {k} times" for k in range(3))


def test_several_classes_an_image(tmp_path: Path) -> None:
    data = open_data(one(labelled.multilabel(tmp_path / "m")))
    assert isinstance(data, TestSet) and data.is_multilabel and not data.is_retrieval
    assert [sample.applying for sample in data][:4] == [(0,), (1,), (0, 2), (1, 3)]
    with pytest.raises(DataError, match="m: several classes may apply to an image"):
        read_test_set(data.folder, training.preprocess())


def test_marks_that_are_none_are_refused(tmp_path: Path) -> None:
    folder = labelled.multilabel(tmp_path / "m")
    (folder / "classnames.txt").write_text("red\ngreen\n")
    with pytest.raises(DataError, match=r"m/000: uint8 \[4\] is not a 0 or 1 for each of 2 classes"):
        list(open_data(one(folder)))
    training.shard(folder / "test" / "0.tar", {"0.jpg": b"", "0.npy": b"no array"})
    with pytest.raises(DataError, match="m/0: its classes cannot be read"):
        list(open_data(one(folder)))


def test_class_folders_have_our_prompts_or_those_beside_them(tmp_path: Path) -> None:
    folder = labelled.class_folders(tmp_path / "colours")
    data = open_data(one(folder))
    assert isinstance(data, LooseSet) and data.templates == templates.general
    assert data.classes == ("blue", "green", "red", "white")
    assert [(sample.key, sample.label) for sample in data][4:6] == [("green/0.jpg", 1), ("green/1.jpg", 1)]
    (folder / "zeroshot_classification_templates.txt").write_text("the {c} one\n")
    assert open_data(one(folder)).templates == ("the {} one",)


def test_class_folders_may_have_a_training_split(tmp_path: Path) -> None:
    labelled.class_folders(tmp_path / "c" / "val", each=2)
    labelled.class_folders(tmp_path / "c" / "train", each=5, seed=6)
    spec = one(tmp_path / "c")
    train = training_split(spec)
    assert train is not None and (count(spec), count(train)) == (8, 20)
    assert [sample.label for sample in open_data(train)] == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    (tmp_path / "c" / "train" / "red").rename(tmp_path / "c" / "train" / "pink")
    with pytest.raises(DataError, match=r"pink/0\.jpg: class 'pink' does not occur in the test split"):
        list(open_data(train))


def test_test_sets_may_have_a_training_split(tmp_path: Path) -> None:
    spec = one(labelled.with_training(tmp_path / "w"))
    train = training_split(spec)
    assert train is not None and (count(spec), count(train)) == (12, 40)
    assert training_split(one(training.test_set(tmp_path / "plain"))) is None


def test_a_table_has_labels_or_captions(tmp_path: Path) -> None:
    rows = [f"{{}},{labelled.NAMES[i % 4]}" for i in range(8)]
    data = open_data(one(labelled.table(tmp_path / "l" / "t.csv", "image,label", rows)))
    assert data.name == "t" and [sample.label for sample in data] == [2, 1, 0, 3] * 2
    captions = open_data(one(labelled.table(tmp_path / "c" / "t.csv", "image,caption", ["{},a\n{},b", "{},c"])))
    assert captions.is_retrieval and [sample.captions for sample in captions] == [("a", "b"), ("c",)]


def test_an_image_with_two_classes_is_refused(tmp_path: Path) -> None:
    path = labelled.table(tmp_path / "t.csv", "image,label", ["{},red\n{},blue"])
    with pytest.raises(DataError, match=r"t\.csv: 0\.png has 2 classes: red, blue"):
        open_data(one(path))


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = labelled.table(tmp_path / "t.csv", "image,label", ["{},red", "{},blue"])
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png: cannot be read: No such file or directory"):
        list(open_data(one(path)))


def test_pictures_without_a_class_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="p: 1 of 1 pictures have neither a class nor a caption"):
        open_data(one(tmp_path / "p"))


def test_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    places = [str(training.test_set(tmp_path / name / "x")) for name in "ab"]
    with pytest.raises(UsageError, match="two data sets are called 'x'"):
        find_data(places)


def test_a_limit_draws_from_folders_and_takes_the_first_of_test_sets(tmp_path: Path) -> None:
    (folders,) = find_data([str(labelled.class_folders(tmp_path / "c"))], limit=8)
    labels = [sample.label for sample in open_data(folders)]
    assert len(labels) == 8 and len(set(labels)) > 2
    (tars,) = find_data([str(training.test_set(tmp_path / "t"))], limit=3)
    assert [sample.label for sample in open_data(tars)] == [0, 1, 2]


# The hub


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The hub's library, whose cache is a folder of ours, and which may not ask the network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    return tmp_path / "home"


def test_a_data_set_of_the_hub_is_read_from_its_cache(offline: Path, tmp_path: Path) -> None:
    labelled.hub_cache(offline, "clip-benchmark/wds_toy", labelled.with_training(tmp_path / "src"))
    (spec,) = find_data(["hf-hub:clip-benchmark/wds_toy"], train=True)
    train = training_split(spec)
    assert spec.name == "wds_toy" and train is not None and (count(spec), count(train)) == (12, 40)
    assert [sample.label for sample in open_data(spec)] == [0, 1, 2, 3] * 3


def test_a_hub_that_has_no_such_data_set(offline: Path) -> None:
    with pytest.raises(
        DataError, match=r"hf-hub:clip-benchmark/absent: .*check the name, the revision and the network"
    ):
        find_data(["hf-hub:clip-benchmark/absent"])


def test_another_kind_of_data_set_is_refused(offline: Path, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "README.txt").write_text("rows")
    labelled.hub_cache(offline, "org/rows", tmp_path / "src")
    with pytest.raises(DataError, match=r"hf-hub:org/rows: not in CLIP_benchmark's layout: no test/nshards\.txt"):
        find_data(["hf-hub:org/rows"])


# What a suite takes


def planned(suite: str, *places: Path, **asked: object) -> object:
    return plan(Request(suite=suite, places=tuple(map(str, places)), **asked))  # type: ignore[arg-type]


def test_a_suite_takes_what_it_can_score_and_names_the_rest(tmp_path: Path) -> None:
    training.test_set(tmp_path / "classes")
    labelled.retrieval(tmp_path / "captions")
    suite = plan(Request(suite="retrieval", places=(str(tmp_path),)))
    assert [spec.name for spec in suite.sets] == ["captions"]
    assert suite.remarks == ("left out, without captions: classes",)
    with pytest.raises(UsageError, match="no data set with captions among: classes"):
        planned("retrieval", tmp_path / "classes")


def test_a_probe_needs_training_images(tmp_path: Path) -> None:
    training.test_set(tmp_path / "plain")
    with pytest.raises(UsageError, match=r"no training split in: plain .*--split-test"):
        planned("linear-probe", tmp_path / "plain")
    labelled.with_training(tmp_path / "split")
    suite = plan(Request(suite="linear-probe", places=(str(tmp_path),)))
    assert [(spec.name, spec.split, spec.texts) for spec in suite.sets] == [
        ("split", "test", False),
        ("split", "train", False),
    ]
    assert suite.remarks == ("left out, without a training split: plain",)
    every = plan(Request(suite="linear-probe", places=(str(tmp_path),), split_test=True))
    assert [(spec.name, spec.split) for spec in every.sets] == [
        ("plain", "test"),
        ("split", "test"),
        ("split", "train"),
    ]


def test_shifts_are_known_or_named(tmp_path: Path) -> None:
    for name in ("wds_pacs_photo", "wds_pacs_sketch", "wds_cifar10"):
        training.test_set(tmp_path / name)
    suite = plan(Request(suite="robustness", places=(str(tmp_path),)))
    assert [spec.name for spec in suite.sets] == ["wds_pacs_photo", "wds_pacs_sketch"]
    assert "no effective robustness of wds_pacs_sketch" in suite.remarks[0]
    named = plan(Request(suite="robustness", places=(str(tmp_path),), original="cifar10"))
    assert [spec.name for spec in named.sets] == ["wds_cifar10", "wds_pacs_photo", "wds_pacs_sketch"]
    with pytest.raises(UsageError, match="no data set whose shifts are known"):
        planned("robustness", tmp_path / "wds_cifar10")
