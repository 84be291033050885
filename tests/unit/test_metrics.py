"""Metrics against scikit-learn's, their intervals against repeated draws, and their losses against plain differences."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from edgeclip.benchmarks.metrics import CaptionShare, ClassRecall, MeanPrecision, Share

RNG = np.random.default_rng(0)


def answers(n: int = 400, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Labels of unequal classes, and guesses of which some are right."""
    labels = np.minimum(RNG.geometric(0.3, n) - 1, classes - 1)
    return labels, np.where(RNG.random(n) < 0.9 - 0.1 * labels, labels, RNG.integers(0, classes, n))


def test_mean_per_class_recall_is_balanced_accuracy() -> None:
    labels, guesses = answers()
    found = ClassRecall(guesses == labels, labels)
    assert found.value == pytest.approx(balanced_accuracy_score(labels, guesses), abs=1e-12)
    assert found.value != pytest.approx(Share(guesses == labels).value, abs=0.01)
    assert found.interval().low < found.value < found.interval().high


def test_classes_that_do_not_occur_do_not_count() -> None:
    assert ClassRecall(np.array([True, False, True]), np.array([0, 0, 5])).value == 0.75


def test_mean_average_precision_is_that_of_scikit_learn() -> None:
    similarity = RNG.normal(size=(300, 5)).astype(np.float32)
    truth = RNG.random((300, 5)) < np.array([0.05, 0.1, 0.3, 0.5, 0.8])
    found = MeanPrecision(similarity, truth)
    wanted = np.mean([average_precision_score(truth[:, k], similarity[:, k]) for k in range(5)])
    assert found.value == pytest.approx(float(wanted), abs=1e-9)
    assert found.interval().low < found.value < found.interval().high


def test_a_class_that_no_image_has_counts_as_nothing() -> None:
    similarity = RNG.normal(size=(6, 2)).astype(np.float32)
    truth = np.zeros((6, 2), bool)
    truth[similarity[:, 0].argmax(), 0] = True
    assert MeanPrecision(similarity, truth).value == 0.5


def test_the_bootstrap_covers_what_is_true() -> None:
    """Captions of one image are all right or all wrong: intervals that took them for independent would be too narrow."""
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        owners = np.arange(80).repeat(5)
        found = CaptionShare((rng.random(80) < 0.3)[owners], owners).interval()
        covered += found.low <= 0.3 <= found.high
    assert covered >= 50


def test_intervals_are_the_same_every_time() -> None:
    labels, guesses = answers()
    found = ClassRecall(guesses == labels, labels)
    assert found.interval() == found.interval()


def test_losses_are_paired() -> None:
    """Two models that differ on two images: the loss is known far more closely than either score."""
    labels, guesses = answers()
    reference = guesses == labels
    worse = reference.copy()
    worse[np.flatnonzero(reference)[:2]] = False
    for before, after in (
        (Share(reference), Share(worse)),
        (ClassRecall(reference, labels), ClassRecall(worse, labels)),
        (CaptionShare(reference, np.arange(400) // 2), CaptionShare(worse, np.arange(400) // 2)),
    ):
        loss = after.loss(before)  # type: ignore[arg-type]
        assert loss.drop_pt == pytest.approx(100 * (before.value - after.value))
        assert loss.low_pt <= loss.drop_pt <= loss.high_pt
        assert loss.high_pt - loss.low_pt < 100 * (before.interval().high - before.interval().low) / 2


def test_the_loss_of_mean_average_precision_is_paired() -> None:
    similarity = RNG.normal(size=(200, 3)).astype(np.float32)
    truth = RNG.random((200, 3)) < 0.3
    noisy = similarity + 0.01 * RNG.normal(size=similarity.shape).astype(np.float32)
    before, after = MeanPrecision(similarity, truth), MeanPrecision(noisy, truth)
    loss = after.loss(before)
    assert loss.drop_pt == pytest.approx(100 * (before.value - after.value))
    assert loss.high_pt - loss.low_pt < 100 * (before.interval().high - before.interval().low) / 4
