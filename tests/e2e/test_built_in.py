"""The model that comes with edgeclip: small, whole, and as good as its card says."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import edgeclip
from edgeclip import zeroshot
from edgeclip.bundle import Bundle
from edgeclip.card import read_card
from edgeclip.loading import BUILT_IN
from edgeclip.scores import top1
from edgeclip.testset import open_test_set
from tests import cli

TESTED = 1000


def test_it_is_small_whole_and_says_where_it_comes_from() -> None:
    bundle = Bundle.open(BUILT_IN)
    bundle.verify_files()
    assert BUILT_IN.stat().st_size <= 12_000_000
    origin = bundle.manifest.provenance
    assert origin.licence == "MIT" and "Tiny ImageNet" in origin.data and origin.recipe.startswith("student")
    assert not bundle.manifest.model.random_weights


def test_its_card_is_of_the_artifacts_that_it_holds() -> None:
    bundle = Bundle.open(BUILT_IN)
    card = read_card(bundle)
    assert card is not None and not card.is_stale(bundle.manifest)
    measured = {(score.data, score.metric) for score in card.scores}
    assert {("wds_tinyimagenet", "top1"), ("wds_cifar10", "top1"), ("wds_flickr8k", "text_to_image_r1")} <= measured


def test_load_without_a_path_gives_it() -> None:
    with edgeclip.load() as model:
        images = model.encode_image([np.zeros((64, 80, 3), np.uint8), np.full((30, 30, 3), 255, np.uint8)])
        texts = model.encode_text(["a photo of a cat", "two dogs run"])
    assert images.shape == texts.shape == (2, 256)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([images, texts]), axis=1), 1.0, atol=1e-5)


def test_every_backend_verifies_it() -> None:
    assert cli.edgeclip("verify", BUILT_IN, "--backend", "all").returncode == 0


def test_it_is_as_good_as_its_card_says(data_dir: Path) -> None:
    card = read_card(Bundle.open(BUILT_IN))
    assert card is not None
    (claimed,) = [score.value for score in card.scores if score.data == "wds_tinyimagenet"]
    data = open_test_set(data_dir / "eval" / "wds_tinyimagenet", limit=TESTED)
    samples = list(itertools.islice(data, TESTED))
    with edgeclip.load() as model:
        images = model.encode_image([sample.image for sample in samples])
        prompts = model.encode_text(zeroshot.prompts(data.classes, data.templates))
    weights = zeroshot.ensemble(prompts, len(data.classes))
    found = top1("wds_tinyimagenet", images, weights, np.array([sample.label for sample in samples]))
    spread = (found.high - found.low) / 2
    assert found.value == pytest.approx(claimed, abs=2 * spread)


def test_its_teacher_is_in_the_repository_and_can_be_read() -> None:
    from edgeclip.train.checkpoints import read_checkpoint

    folder = Path(__file__).resolve().parents[2] / "models" / "edge-t"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 25_000_000
    teacher = read_checkpoint(folder)
    assert teacher.origin.recipe.startswith("teacher")
    assert teacher.tokenizer is not None
    assert teacher.config.embed_dim == Bundle.open(BUILT_IN).manifest.model.embed_dim
