"""Scores against cases known by hand, and against plain sorting."""

from __future__ import annotations

import numpy as np
import pytest

from edgeclip import scores
from edgeclip.backends.base import Embeddings
from edgeclip.scores import retrieval, score, top1


def test_wilsons_interval_by_hand() -> None:
    half = score("x", "top1", 0.5, 100)
    assert (half.low, half.high) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    none = score("x", "top1", 0.0, 50)
    assert none.low == 0.0 and none.high == pytest.approx(0.07135, abs=1e-5)
    every = score("x", "top1", 1.0, 50)
    assert every.high == 1.0 and every.low == pytest.approx(0.92865, abs=1e-5)


def test_top1_is_the_share_of_right_classes() -> None:
    images = np.eye(3, dtype=np.float32)
    found = top1("x", images, images, np.array([0, 1, 0]))
    assert found.value == pytest.approx(2 / 3) and found.n == 3


def recalls(images: Embeddings, captions: Embeddings, owners: list[int]) -> dict[str, float]:
    return {s.metric: s.value for s in retrieval("x", images, captions, np.array(owners))}


def drawn(n: int, captions_each: int) -> tuple[Embeddings, Embeddings, list[int]]:
    """Images, and captions that are near theirs."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(n, 6)).astype(np.float32)
    owners = np.arange(n).repeat(captions_each)
    captions = images[owners] + rng.normal(size=(len(owners), 6)).astype(np.float32)
    return images, captions, owners.tolist()


def test_recall_by_hand() -> None:
    # Image 0 finds its second caption first; image 1 finds a caption of image 0 before its own.
    captions = np.array([[0.1, 0.9], [0.9, 0.1], [0.2, 0.8]], np.float32)
    found = recalls(np.eye(2, dtype=np.float32), captions, [0, 0, 1])
    assert found["image_to_text_r1"] == 0.5 and found["image_to_text_r5"] == 1.0
    assert found["text_to_image_r1"] == pytest.approx(2 / 3) and found["text_to_image_r10"] == 1.0


def test_recall_is_that_of_plain_sorting() -> None:
    images, captions, owners = drawn(40, 3)
    owned = np.array(owners)
    to_text, to_image = (-images @ captions.T).argsort(axis=1), (-captions @ images.T).argsort(axis=1)
    found = recalls(images, captions, owners)
    for rank in (1, 5, 10):
        hits = (owned[to_text[:, :rank]] == np.arange(40)[:, None]).any(axis=1).mean()
        assert found[f"image_to_text_r{rank}"] == pytest.approx(hits)
        hits = (to_image[:, :rank] == owned[:, None]).any(axis=1).mean()
        assert found[f"text_to_image_r{rank}"] == pytest.approx(hits)


def test_recall_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    data = drawn(30, 2)
    whole = recalls(*data)
    monkeypatch.setattr(scores, "_CHUNK", 7 * 60)
    assert recalls(*data) == whole


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_model_that_says_the_same_of_everything_finds_nothing(value: float) -> None:
    same = np.full((20, 4), value, np.float32)
    assert set(recalls(same, same, list(range(20))).values()) == {0.0}


def test_two_classes_of_one_name_share_their_images() -> None:
    """The first gets them, as with argmax; the second comes right after it."""
    weights = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    images = np.array([[0, 1], [0, 1], [1, 0]], np.float32)
    labels = np.array([1, 2, 0])
    assert scores.classes_before(images, weights, labels).tolist() == [0, 1, 0]
    assert top1("x", images, weights, labels).value == ((images @ weights.T).argmax(axis=1) == labels).mean()


def test_not_a_number_is_never_right() -> None:
    images = np.full((4, 2), np.nan, np.float32)
    assert top1("x", images, np.eye(2, dtype=np.float32), np.array([0, 0, 1, 1])).value == 0.0


def test_ranks_of_classes_are_those_of_sorting() -> None:
    rng = np.random.default_rng(0)
    images, weights = rng.normal(size=(50, 6)).astype(np.float32), rng.normal(size=(9, 6)).astype(np.float32)
    labels = rng.integers(0, 9, 50)
    order = (-images @ weights.T).argsort(axis=1, kind="stable")
    assert (scores.classes_before(images, weights, labels) == (order == labels[:, None]).argmax(axis=1)).all()
