"""Scores against cases known by hand, and the reading of test sets."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgeclip.errors import DataError, UsageError
from edgeclip.train.checkpoints import save_checkpoint
from edgeclip.train.data.testset import list_test_sets, read_test_set
from edgeclip.train.data.text import Texts, open_tokenizer
from edgeclip.train.evaluate import Evaluator, classifier, evaluate_checkpoint, evaluating, retrieval, score
from edgeclip.train.models.clip import Clip
from tests import tiny, training


def toy(folder: Path) -> tuple[Clip, Texts]:
    torch.manual_seed(0)
    config = training.toy_config()
    return Clip(config), Texts(open_tokenizer(tiny.tokenizer_file(folder).read_bytes(), config.text, "tokenizer.json"))


def test_wilsons_interval_by_hand() -> None:
    half = score("x", "top1", 0.5, 100)
    assert (half.low, half.high) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    none = score("x", "top1", 0.0, 50)
    assert none.low == 0.0 and none.high == pytest.approx(0.07135, abs=1e-5)


def recalls(images: Tensor, captions: Tensor, owners: list[int]) -> dict[str, float]:
    return {s.metric: s.value for s in retrieval("x", images, captions, torch.tensor(owners))}


def test_recall_by_hand() -> None:
    # Image 0 finds its second caption first; image 1 finds a caption of image 0 before its own.
    images = torch.eye(2)
    captions = torch.tensor([[0.1, 0.9], [0.9, 0.1], [0.2, 0.8]])
    found = recalls(images, captions, [0, 0, 1])
    assert found["image_to_text_r1"] == 0.5 and found["image_to_text_r5"] == 1.0
    assert found["text_to_image_r1"] == pytest.approx(2 / 3) and found["text_to_image_r10"] == 1.0


def test_recall_is_that_of_plain_sorting() -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(40, 6, generator=generator), dim=-1)
    owners = torch.arange(40).repeat_interleave(3)
    captions = F.normalize(images[owners] + 0.8 * torch.randn(120, 6, generator=generator), dim=-1)
    order = (images @ captions.T).argsort(1, descending=True)
    found = recalls(images, captions, owners.tolist())
    for rank in (1, 5, 10):
        hits = (owners[order[:, :rank]] == torch.arange(40)[:, None]).any(1).float().mean().item()
        assert found[f"image_to_text_r{rank}"] == pytest.approx(hits)


def test_a_classifier_is_the_mean_of_normalised_prompts(tmp_path: Path) -> None:
    clip, texts = toy(tmp_path)
    with evaluating(clip):
        made = classifier(clip, texts, ["cat", "dog"], ["a {}", "the {}"])
        prompts = F.normalize(clip.encode_text(texts(["a dog", "the dog"])), dim=-1)
        torch.testing.assert_close(made[1], F.normalize(prompts.mean(0), dim=-1))
    assert clip.training


def test_a_test_set_is_read(tmp_path: Path) -> None:
    data = read_test_set(training.test_set(tmp_path / "colours"), training.preprocess(), limit=6)
    assert data.labels is not None and data.labels.tolist() == [0, 1, 2, 3, 0, 1]
    assert data.pixels.shape == (6, 16, 16, 3) and data.templates == ("a {} thing.", "all {}")


def test_a_class_that_is_not_one_is_an_error(tmp_path: Path) -> None:
    folder = training.test_set(tmp_path / "colours")
    (folder / "classnames.txt").write_text("red\ngreen\n")
    with pytest.raises(DataError, match="colours/002: class '2' is not one of 2"):
        read_test_set(folder, training.preprocess())


def test_a_torn_test_set_is_an_error(tmp_path: Path) -> None:
    tar = training.test_set(tmp_path / "colours") / "test" / "0.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"0\.tar: cannot be read to its end"):
        read_test_set(tmp_path / "colours", training.preprocess())


def test_an_unknown_set_lists_those_that_are_there(tmp_path: Path) -> None:
    training.test_set(tmp_path / "sets" / "colours")
    clip, texts = toy(tmp_path)
    with pytest.raises(UsageError, match=r"no test set 'colors' in .*known: colours"):
        Evaluator(tmp_path / "sets", training.preprocess(), texts, ("colors",))(clip)


def test_a_folder_without_sets_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no test sets"):
        list_test_sets(tmp_path)


def test_a_checkpoint_is_scored(tmp_path: Path) -> None:
    training.test_set(tmp_path / "sets" / "colours")
    clip, _ = toy(tmp_path)
    save_checkpoint(clip, tmp_path / "model", training.preprocess(), tmp_path / "tokenizer.json")
    (found,) = evaluate_checkpoint(tmp_path / "model", tmp_path / "sets")
    assert (found.data, found.metric, found.n) == ("colours", "top1", 12)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0 and math.isfinite(found.value)


def test_the_real_sets_are_read(data_dir: Path) -> None:
    spec = training.preprocess()
    assert len(list_test_sets(data_dir / "eval")) == 8
    retrieval_set = read_test_set(data_dir / "eval" / "wds_flickr8k", spec, limit=5)
    assert [len(captions) for captions in retrieval_set.captions] == [5] * 5
    photos = read_test_set(data_dir / "eval" / "wds_cifar10", spec, limit=5)
    assert len(photos.classes) == 10 and photos.labels is not None
