"""Numbers of an evaluation: pass@k, cons@N, and intervals that respect what was drawn at random, the problems.

All functions are pure and take plain numbers; which answers are right was decided by the checks before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased chance that at least one of k samples is right, from n samples of which c are.

    1 − C(n−c, k) / C(n, k), written as 1 − Π_{i<k} (n−c−i) / (n−i) (Chen et al. 2021, arXiv:2107.03374), which
    neither overflows nor cancels.

    Raises:
        ValueError: unless 0 ≤ correct ≤ samples and 1 ≤ k ≤ samples.
    """
    if not 0 <= correct <= samples:
        raise ValueError(f"{correct} correct of {samples} samples is impossible")
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, got {samples}")
    all_wrong = 1.0
    for i in range(k):
        all_wrong *= max(samples - correct - i, 0) / (samples - i)
    return 1.0 - all_wrong


def cons_at_n(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    """Is the majority answer of one problem's N samples right? 0 or 1; a tie counts as the tied answers' mean.

    Samples without an answer (None) do not vote. Answers that mean the same must be spelt the same; an answer is right
    if one of the samples that give it was (another may have given it in the wrong format).

    Raises:
        ValueError: the two sequences differ in length.
    """
    right = {answer for answer, is_right in zip(answers, correct, strict=True) if is_right}
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    return sum(answer in right for answer in winners) / len(winners)


def answer_metrics(
    problems: Sequence[Sequence[tuple[bool, str | None]]], k: Sequence[int], samples: int
) -> dict[str, list[float]]:
    """pass@k for each k, and cons@N where N = `samples` is above 1: every metric's value for each problem.

    Args:
        problems: of each problem its judged answers: (is it right?, the answer). One with fewer than k is left out of
            pass@k.
    """
    counts = [(len(answers), sum(right for right, _ in answers)) for answers in problems]
    metrics = {f"pass@{each}": [pass_at_k(n, right, each) for n, right in counts if n >= each] for each in k}
    if samples > 1:
        metrics[f"cons@{samples}"] = [
            cons_at_n([answer for _, answer in answers], [right for right, _ in answers]) for answers in problems
        ]
    return metrics


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of per-problem values in [0, 1], resampling problems.

    Problems, not samples, are drawn anew: samples of one problem are not independent. Where all values are 0 or all
    are 1, resampling would claim certainty; the exact binomial (Clopper-Pearson) bound is given instead.

    Raises:
        ValueError: no values.
    """
    values_P = np.asarray(values, dtype=np.float64)
    problems = len(values_P)
    if problems == 0:
        raise ValueError("an interval needs at least one problem")
    tail = (1 - confidence) / 2
    if values_P.max() == 0:
        return 0.0, 1 - float(tail ** (1 / problems))
    if values_P.min() == 1:
        return float(tail ** (1 / problems)), 1.0
    generator = np.random.default_rng(seed)
    means = np.array([values_P[generator.integers(problems, size=problems)].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
