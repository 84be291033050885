"""Paired losses: worked by hand, and right as often as they claim."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeclip.backends.base import Embeddings
from edgeclip.errors import NonFiniteError
from edgeclip.paired import Drop, Right, cosines, drop, samples_needed

DRAWS = 400
Z_TWO, Z_ONE = 1.959964, 1.644854


def pair(n: int, lost: int, won: int, both: int = 0) -> tuple[Right, Right]:
    """Correctness of a reference and a candidate."""
    reference, candidate = np.zeros(n, bool), np.zeros(n, bool)
    reference[: lost + both] = True
    candidate[lost : lost + both] = True
    candidate[lost + both : lost + both + won] = True
    return reference, candidate


def dropped(n: int, lost: int, won: int) -> Drop:
    return drop(*pair(n, lost, won, both=n - lost - won))


def test_a_loss_is_what_the_reference_alone_gets_right_less_what_the_candidate_alone_does() -> None:
    found = drop(*pair(200, lost=7, won=3, both=100))
    assert (found.n, found.lost, found.won) == (200, 7, 3)
    assert found.drop_pt == pytest.approx(2.0)


def test_the_published_example_is_met() -> None:
    # 21 children, hyper-responsive after but not before: 7, the other way: 1 (Fagerland et al. 2014).
    found = dropped(21, lost=1, won=7)
    assert (found.low_pt, found.high_pt) == pytest.approx((-51.7, -2.6), abs=0.05)


@pytest.mark.parametrize("loss", [0.1, 0.5, 3.0])
def test_as_many_samples_as_are_needed_show_it_and_one_fewer_do_not(loss: float) -> None:
    needed = samples_needed(loss)
    bounds = [drop(np.ones(n, bool), np.ones(n, bool)).high_one_sided_pt for n in (needed, needed - 1)]
    assert bounds[0] <= loss < bounds[1]


@pytest.mark.parametrize("n", [50, 1000])
def test_no_flips_leave_the_width_that_so_many_samples_allow(n: int) -> None:
    found = dropped(n, 0, 0)
    assert found.drop_pt == 0.0
    assert found.high_pt == pytest.approx(100 * Z_TWO**2 / (n + Z_TWO**2))
    assert found.low_pt == pytest.approx(-found.high_pt)
    assert found.high_one_sided_pt == pytest.approx(100 * Z_ONE**2 / (n + Z_ONE**2))


@pytest.mark.parametrize(("lost", "won"), [(30, 10), (12, 12), (3, 0), (0, 5)])
def test_a_bound_is_where_the_score_test_turns(lost: int, won: int) -> None:
    n, bound = 300, dropped(300, lost, won).high_pt / 100
    shares = np.linspace(max(0, -bound), (1 - bound) / 2, 200_001)[
        1:-1
    ]  # of won samples; its likeliest is found by search
    likelihood = lost * np.log(shares + bound) + (n - lost - won) * np.log(1 - bound - 2 * shares)
    share = shares[np.argmax(likelihood + (won * np.log(shares) if won else 0))]
    error = math.sqrt(n * (2 * share + bound * (1 - bound)))
    assert (n * bound - (lost - won)) / error == pytest.approx(Z_TWO, abs=1e-3)


def test_bounds_are_ordered_and_mirrored() -> None:
    found, mirrored = dropped(500, 20, 8), dropped(500, 8, 20)
    assert found.low_pt < found.drop_pt < found.high_one_sided_pt < found.high_pt
    assert (mirrored.low_pt, mirrored.high_pt) == pytest.approx((-found.high_pt, -found.low_pt))


def test_everything_lost_stays_within_a_hundred_points() -> None:
    found = dropped(40, 40, 0)
    assert found.drop_pt == 100.0 and found.high_pt == pytest.approx(100.0) and 80 < found.low_pt < 100


def test_vectors_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match=r"correctness of \[3\] and \[4\] samples"):
        drop(np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(ValueError, match=r"correctness of \[0\] and \[0\]"):
        drop(np.ones(0, bool), np.ones(0, bool))


@pytest.mark.parametrize(("lost", "won"), [(0.01, 0.01), (0.05, 0.03), (0.02, 0.0)])
def test_intervals_hold_the_true_loss_as_often_as_they_say(lost: float, won: float) -> None:
    rng = np.random.default_rng(0)
    counts = rng.multinomial(1000, [lost, won, 1 - lost - won], DRAWS)
    found = [dropped(1000, int(a), int(b)) for a, b, _ in counts]
    truth = 100 * (lost - won)
    two = np.mean([one.low_pt <= truth <= one.high_pt for one in found])
    above = np.mean([truth <= one.high_one_sided_pt for one in found])
    assert 0.92 <= two <= 0.98 and 0.92 <= above <= 0.985  # four standard errors of 400 draws


def test_a_rare_loss_without_gains_is_covered_where_adjusted_wald_is_not() -> None:
    n, share = 1000, 0.002
    chance = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(12)]
    ours = [dropped(n, k, 0).high_one_sided_pt / 100 for k in range(12)]
    wald = [(k + Z_ONE * math.sqrt(k + 1 - k**2 / (n + 2))) / (n + 2) for k in range(12)]
    assert sum(p for p, bound in zip(chance, ours, strict=True) if bound >= share) > 0.95
    assert sum(p for p, bound in zip(chance, wald, strict=True) if bound >= share) < 0.87


def test_captions_of_one_image_that_flip_together_count_as_fewer() -> None:
    groups = np.arange(200).repeat(5)
    together, apart = np.ones(1000, bool), np.ones(1000, bool)
    together[:50] = False
    apart[::20] = False
    reference = np.ones(1000, bool)
    spread, lumped = drop(reference, apart, groups=groups), drop(reference, together, groups=groups)
    assert spread.drop_pt == lumped.drop_pt == 5.0
    assert lumped.high_pt - 5 > 1.8 * (spread.high_pt - 5)
    assert spread.high_pt == pytest.approx(drop(reference, apart).high_pt, rel=0.1)


def test_groups_of_one_change_nothing() -> None:
    reference, candidate = pair(300, 9, 4, both=200)
    assert drop(reference, candidate, groups=np.arange(300)) == drop(reference, candidate)


def test_no_flips_in_groups_say_no_more_than_the_groups() -> None:
    right = np.ones(1000, bool)
    found = drop(right, right, groups=np.arange(200).repeat(5))
    assert found.high_pt == pytest.approx(dropped(200, 0, 0).high_pt) and found.n == 1000


def test_intervals_of_grouped_samples_hold_the_true_loss() -> None:
    rng = np.random.default_rng(1)
    groups, size = np.arange(200).repeat(5), 5
    inside = 0
    for _ in range(DRAWS):
        lost = (rng.random(200) < 0.04).repeat(size) & (rng.random(1000) < 0.75)
        found = drop(np.ones(1000, bool), ~lost, groups=groups)
        inside += found.low_pt <= 3.0 <= found.high_pt
    assert inside / DRAWS >= 0.92


def rows(*values: tuple[float, float]) -> Embeddings:
    return np.array(values, np.float32)


def test_cosines_of_rows() -> None:
    found = cosines(rows((2, 0), (0, 1), (1, 1)), rows((1, 0), (1, 0), (1, 1)))
    assert (found.mean, found.min) == pytest.approx((2 / 3, 0.0))
    assert found.p1 == pytest.approx(0.02)


def test_cosines_of_what_is_not_finite_are_refused() -> None:
    with pytest.raises(NonFiniteError, match="1 of 2 embeddings have NaN or infinity"):
        cosines(rows((1, 0), (math.nan, 0)), rows((1, 0), (0, 1)))
