"""The linear probe: its search, its splits, and its fit beside scikit-learn's on the whole grid."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from edgeclip.benchmarks import probe
from edgeclip.errors import DataError


@pytest.mark.parametrize("best", [0, 1, 13, 37, 48, 95, 96])
def test_the_search_finds_the_peak_on_the_fine_grid(best: int) -> None:
    grid = list(probe.strengths())
    tried: list[float] = []

    def accuracy(strength: float) -> float:
        tried.append(strength)
        return -abs(np.log10(strength) - np.log10(grid[best]))

    assert probe.search(accuracy) == grid[best]
    assert len(tried) == len(set(tried)) <= 15 and (grid[0], grid[-1]) == (1e-6, 1e6) and len(grid) == 97


def test_of_equal_strengths_the_strongest_is_taken() -> None:
    assert probe.search(lambda strength: 1.0) == 1e6


def test_a_split_holds_out_of_every_class() -> None:
    labels = np.repeat([0, 1, 2, 3], [50, 10, 2, 1])
    held = probe.split(labels, 0.2)
    assert [int(held[labels == k].sum()) for k in range(4)] == [10, 2, 1, 0]
    assert (probe.split(labels, 0.2) == held).all()


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    rows = np.random.default_rng(9).normal(size=(3, 16))[labels] + 2 * rng.normal(size=(n, 16))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def test_the_probe_is_scikit_learns_at_the_strength_that_was_found() -> None:
    images, labels = drawn(300, 0)
    tested, wanted = drawn(200, 1)
    found = probe.fit(images, labels)
    other = LogisticRegression(C=1 / found.strength, max_iter=1000).fit(images.astype(np.float64), labels)
    assert (found.predict(tested) == other.predict(tested)).all()
    held = probe.split(labels, probe.HELD_OUT)
    every = [
        LogisticRegression(C=1 / s, max_iter=1000)
        .fit(images[~held].astype(np.float64), labels[~held])
        .score(images[held], labels[held])
        for s in list(probe.strengths())[::8]
    ]
    mine = LogisticRegression(C=1 / found.strength, max_iter=1000).fit(images[~held].astype(np.float64), labels[~held])
    assert mine.score(images[held], labels[held]) >= max(every) - 1 / held.sum()
    assert (found.predict(tested) == wanted).mean() > 0.6 and found.trained_on == 300


def test_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="at least two classes"):
        probe.fit(np.ones((4, 2), np.float32), np.zeros(4, np.int64))
