"""What is right is what `edgeclip.scores` counts; and where nothing is labelled, what fp32 says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgeclip
from edgeclip import scores, zeroshot
from edgeclip.backends.base import Embeddings
from edgeclip.errors import DataError, ImageDecodeError, UsageError
from edgeclip.manifest import CalibrationSpec
from edgeclip.preprocess import preprocess
from edgeclip.quantize import evaluation
from edgeclip.quantize.calibration import Calibration
from edgeclip.quantize.evaluation import Evaluation, agreement, is_nearest, open_evaluation
from edgeclip.testset import read_test_set
from tests import pictures, training
from tests.unit.test_testset import captioned

SPEC = training.preprocess()
NOBODY = (None, None)


def opened(path: Path, limit: int = 0) -> Evaluation:
    return open_evaluation(path, SPEC, pictures.tokenizer(), limit=limit)


def unit(rng: np.random.Generator, n: int, dim: int = 6) -> Embeddings:
    rows = rng.normal(size=(n, dim)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def labelled(answers: list[int], metric: str = "top1", classes: int = 0) -> Evaluation:
    return Evaluation("x", metric, np.zeros((1, 2, 2, 3), np.uint8), None, np.array(answers), classes)  # type: ignore[arg-type]


def calibrated(images: int, texts: int | None) -> Calibration:
    """Pictures and token ids that differ."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, 4, 4, 3), np.uint8)
    ids = None if texts is None else np.arange(texts * 3, dtype=np.int32).reshape(texts, 3)
    return Calibration(
        pixels, ids, CalibrationSpec(source="photos", images=images, texts=texts or 0, seed=0, sha256="0" * 64)
    )


def test_top1_is_that_of_scores() -> None:
    rng = np.random.default_rng(0)
    images, prompts, labels = unit(rng, 400), unit(rng, 5 * 3), rng.integers(0, 5, 400)
    right = labelled(labels.tolist(), classes=5).right(images, prompts, NOBODY)
    assert float(right.mean()) == scores.top1("x", images, zeroshot.ensemble(prompts, 5), labels).value


@pytest.mark.parametrize("chunk", [1 << 24, 700])
def test_retrieval_is_that_of_scores(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(evaluation, "_CHUNK", chunk)
    rng = np.random.default_rng(1)
    images, owners = unit(rng, 60), np.arange(60).repeat(5)
    captions = np.asarray(images[owners] + rng.normal(size=(300, 6)) / 2, np.float32)
    found = labelled(owners.tolist(), "text_to_image_r1")
    expected = {s.metric: s.value for s in scores.retrieval("x", images, captions, owners)}
    assert float(found.right(images, captions, NOBODY).mean()) == expected["text_to_image_r1"]
    assert found.groups is not None and found.groups.tolist() == owners.tolist()


@pytest.mark.parametrize("value", [1.0, 0.0, np.nan])
def test_a_model_that_says_the_same_of_everything_gets_nothing_right(value: float) -> None:
    same = np.full((20, 4), value, np.float32)
    assert not is_nearest(same, same, np.arange(20)).any()
    assert not is_nearest(same, same, (np.arange(20) + 1) % 20, same=True).any()


def test_what_is_not_a_number_is_not_near_even_without_a_rival() -> None:
    assert not is_nearest(np.full((1, 2), np.nan, np.float32), np.ones((1, 2), np.float32), np.array([0])).any()


def test_a_tower_that_was_left_alone_is_the_references() -> None:
    rng = np.random.default_rng(2)
    images, prompts, labels = unit(rng, 50), unit(rng, 4), rng.integers(0, 4, 50)
    data = labelled(labels.tolist(), classes=4)
    both = data.right(images, prompts, NOBODY)
    assert np.array_equal(data.right(images, None, (None, prompts)), both)
    assert np.array_equal(data.right(None, prompts, (images, None)), both)


def test_labels_need_both_towers() -> None:
    with pytest.raises(UsageError, match="x: top1 needs both towers"):
        labelled([0], classes=1).right(np.ones((1, 2), np.float32), None, NOBODY)


@pytest.mark.parametrize(("with_images", "with_texts"), [(True, True), (True, False), (False, True)])
def test_the_reference_agrees_with_itself(with_images: bool, with_texts: bool) -> None:
    rng = np.random.default_rng(3)
    reference = unit(rng, 40) if with_images else None, unit(rng, 30) if with_texts else None
    right = agreement(calibrated(40, 30)).right(*reference, reference)
    assert right.all() and len(right) == (40 if with_images else 30)


def test_agreement_is_lost_where_the_nearest_text_is_another() -> None:
    texts = np.eye(3, dtype=np.float32)
    reference, candidate = texts.copy(), texts.copy()
    candidate[1] = [0.8, 0.6, 0.0]
    right = agreement(calibrated(3, 3)).right(candidate, texts, (reference, texts))
    assert right.tolist() == [True, False, True]


def test_agreement_without_texts_is_of_the_nearest_other_image() -> None:
    reference = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
    moved = reference.copy()
    moved[2] = [1, 0.05]
    data = agreement(calibrated(4, None))
    assert data.ids is None and data.metric == "agreement" and data.data == "photos"
    assert data.right(moved, None, (reference, None)).tolist() == [False, False, False, False]
    moved[2] = [0.05, 1]
    assert data.right(moved, None, (reference, None)).all()


def test_agreement_takes_equal_pictures_once() -> None:
    whole = calibrated(6, None)
    doubled = Calibration(np.concatenate([whole.pixels, whole.pixels]), None, whole.spec)
    assert np.array_equal(agreement(doubled).pixels, whole.pixels)


def test_agreement_needs_something_to_choose_among() -> None:
    with pytest.raises(
        DataError, match="photos: too little to measure agreement on: each picture has 1 to choose among"
    ):
        agreement(calibrated(20, 1))


def test_a_test_set_of_classes(tmp_path: Path) -> None:
    data = opened(training.test_set(tmp_path / "colours"), limit=7)
    assert (data.data, data.metric, data.classes, len(data.pixels)) == ("colours", "top1", 4, 7)
    assert data.answers is not None and data.answers.tolist() == [0, 1, 2, 3, 0, 1, 2] and data.groups is None
    assert data.ids is not None and np.array_equal(data.ids[2:4], pictures.tokenizer()(["a green thing.", "all green"]))


def test_a_test_set_of_captions(tmp_path: Path) -> None:
    members = {
        f"{i}.{s}": d
        for i in range(3)
        for s, d in (("png", pictures.encoded(i)), ("txt", b"one\ntwo" if i else b"one"))
    }
    data = opened(captioned(tmp_path / "c", members))
    assert data.metric == "text_to_image_r1" and data.answers is not None and data.answers.tolist() == [0, 1, 1, 2, 2]
    assert data.ids is not None and len(data.ids) == 5


def test_class_folders(tmp_path: Path) -> None:
    data = opened(pictures.class_folders(tmp_path / "animals", each=4), limit=5)
    assert (data.metric, data.classes, data.data) == ("top1", 2, "animals")
    assert data.answers is not None and 0 < data.answers.sum() < 5
    for row, answer in zip(data.pixels, data.answers, strict=True):
        seeds = range(4) if answer == 1 else range(4, 8)  # cat, then red fox
        assert any(np.array_equal(row, preprocess(pictures.encoded(seed), SPEC)) for seed in seeds)
    assert data.ids is not None and len(data.ids) == 2 * len(edgeclip.templates.general)


def test_a_table_of_captions(tmp_path: Path) -> None:
    data = opened(pictures.table(tmp_path / "t.csv", 4))
    assert data.metric == "text_to_image_r1" and data.answers is not None
    assert data.answers.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert data.ids is not None and np.array_equal(data.ids[3:4], pictures.tokenizer()(["caption 1 of 1"]))


def test_shards_with_names_have_the_classes_of_all_samples(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for i in range(6):
        members |= {f"{i}.png": pictures.encoded(i), f"{i}.json": f'{{"names": ["kind {i % 3}", "x"]}}'.encode()}
    data = opened(training.shard(tmp_path / "s.tar.gz", members), limit=2)
    assert data.metric == "top1" and data.classes == 3 and len(data.pixels) == 2


def test_pictures_without_labels_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 of 3 pictures have neither a class nor a caption .*classnames"):
        opened(pictures.folder(tmp_path, 3))


def test_classes_and_captions_mixed_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="some pictures have a class and others a caption"):
        opened(pictures.tar(tmp_path / "s.tar", 4))


def test_a_folder_of_test_sets_lists_them(tmp_path: Path) -> None:
    training.test_set(tmp_path / "one")
    training.test_set(tmp_path / "two")
    with pytest.raises(UsageError, match=r"a folder of test sets \(name one: one, two\)"):
        opened(tmp_path)


def test_an_image_that_cannot_be_read_is_not_left_out(tmp_path: Path) -> None:
    pictures.class_folders(tmp_path, each=2)
    (tmp_path / "cat" / "0003.png").write_bytes(b"no picture")
    with pytest.raises(ImageDecodeError, match=r"cat/0003\.png: .*not an image that can be decoded"):
        opened(tmp_path)


def test_labels_need_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="labelled data needs the text tower, which the model lacks"):
        open_evaluation(tmp_path, SPEC, None)


@pytest.mark.parametrize(("name", "chance"), [("wds_cifar10", 1 / 10), ("wds_flickr8k", 1 / 60)])
def test_the_built_in_model_scores_the_same_by_both_ways(data_dir: Path, name: str, chance: float) -> None:
    folder = data_dir / "eval" / name
    with edgeclip.load(backend="onnxruntime") as model:
        spec = model.bundle.manifest.preprocess
        data = open_evaluation(folder, spec, pictures.tokenizer(), limit=60)
        test_set = read_test_set(folder, spec, limit=60)
        images = model.encode_pixels(data.pixels)
        if test_set.labels is None:
            texts = model.encode_text([caption for of_image in test_set.captions for caption in of_image])
            (expected,) = [
                s.value
                for s in scores.retrieval(name, images, texts, np.arange(60).repeat(5))
                if s.metric == data.metric
            ]
        else:
            texts = model.encode_text(zeroshot.prompts(test_set.classes, test_set.templates))
            weights = zeroshot.ensemble(texts, len(test_set.classes))
            expected = scores.top1(name, images, weights, test_set.labels).value
    assert float(data.right(images, texts, NOBODY).mean()) == expected > chance
