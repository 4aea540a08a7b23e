from __future__ import annotations

from itertools import combinations
from math import comb

import pytest

from model.metrics import bootstrap_interval, cons_at_n, pass_at_k


@pytest.mark.parametrize(
    ("samples", "correct", "k"), [(4, 1, 1), (4, 1, 2), (5, 2, 3), (6, 0, 4), (6, 6, 1), (5, 3, 3)]
)
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(samples: int, correct: int, k: int) -> None:
    right = [True] * correct + [False] * (samples - correct)
    hits = sum(any(subset) for subset in combinations(right, k))
    assert pass_at_k(samples, correct, k) == pytest.approx(hits / comb(samples, k))


def test_pass_at_k_does_not_overflow() -> None:
    assert pass_at_k(100_000, 10, 64) == pytest.approx(1 - (1 - 10 / 100_000) ** 64, rel=1e-2)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_impossible_counts_are_refused(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="samples"):
        pass_at_k(samples, correct, k)


def test_cons_at_n_takes_the_majority_and_shares_a_tie() -> None:
    assert cons_at_n(["7", "8", "7"], [True, False, True]) == 1.0
    assert cons_at_n(["7", "8", "8"], [True, False, False]) == 0.0
    assert cons_at_n(["7", "8"], [True, False]) == 0.5
    assert cons_at_n([None, None, "7"], [False, False, True]) == 1.0
    assert cons_at_n([None, None], [False, False]) == 0.0


def test_the_interval_is_near_the_normal_one() -> None:
    low, high = bootstrap_interval([1.0] * 30 + [0.0] * 70)
    assert low == pytest.approx(0.3 - 1.96 * 0.0458, abs=0.015)
    assert high == pytest.approx(0.3 + 1.96 * 0.0458, abs=0.015)
    assert bootstrap_interval([1.0] * 30 + [0.0] * 70) == (low, high)


def test_all_wrong_is_not_certainty() -> None:
    assert bootstrap_interval([0.0] * 100) == (0.0, pytest.approx(1 - 0.025**0.01))
    assert bootstrap_interval([1.0] * 100) == (pytest.approx(0.025**0.01), 1.0)


def test_no_problems_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        bootstrap_interval([])
