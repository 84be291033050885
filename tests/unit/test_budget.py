"""The search for the fewest layers that must stay in floating point."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgeclip.paired import Drop, drop
from edgeclip.quantize.budget import Found, search

LAYERS = [f"layer {i}" for i in range(20)]
N = 1000


def lossy(culprits: set[str]) -> Callable[[frozenset[str]], tuple[str, Drop]]:
    """Each culprit that is quantized costs 3 points."""

    def attempt(keep: frozenset[str]) -> tuple[str, Drop]:
        wrong = 30 * len(culprits - keep)
        right = np.arange(N) >= wrong
        return f"{len(keep)} kept", drop(np.ones(N, bool), right)

    return attempt


def found(culprits: set[str], max_drop_pt: float = 0.5) -> Found[str]:
    return search(len(LAYERS), lambda: LAYERS, lossy(culprits), max_drop_pt)


def test_nothing_is_kept_or_even_ranked_where_quantizing_it_all_fits() -> None:
    def never() -> list[str]:
        raise AssertionError("ranked")

    result = search(len(LAYERS), never, lossy(set()), 0.5)
    assert result.fits
    assert (result.best.kept, len(result.steps)) == (0, 1)


@pytest.mark.parametrize("last", [0, 1, 2, 4, 6, 9, 15, 19])
def test_the_fewest_layers_are_kept(last: int) -> None:
    result = found({LAYERS[0], LAYERS[last]})
    assert result.fits
    assert result.best.kept == last + 1
    assert result.best.made == f"{last + 1} kept"
    assert len(result.steps) <= 10


def test_steps_are_in_the_order_tried_and_say_what_each_lost() -> None:
    result = found({LAYERS[0], LAYERS[5]})
    assert [step.kept for step in result.steps] == [0, 1, 2, 4, 8, 6, 5]
    assert [step.fits for step in result.steps] == [False, False, False, False, True, True, False]
    assert result.steps[0].drop_pt == pytest.approx(6.0)
    assert result.steps[0].high_pt > 6.0


def test_a_budget_that_cannot_be_met_gives_the_least_loss_and_says_so() -> None:
    result = found({"another layer", LAYERS[0]})
    assert not result.fits
    assert result.best.drop.drop_pt == pytest.approx(3.0)
    assert [step.kept for step in result.steps] == [0, 1, 2, 4, 8, 16, 20]


def test_the_bound_counts_not_the_estimate() -> None:
    """No sample is lost, and yet so few of them cannot show that less than half a point is."""
    few = np.ones(50, bool)
    result = search(0, list, lambda keep: ("", drop(few, few)), 0.5)
    assert result.best.drop.drop_pt == 0
    assert not result.fits
