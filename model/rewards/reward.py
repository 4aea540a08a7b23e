"""From verdicts to the number that reinforcement learning maximises: r = accuracy + λ·format (+ α·language).

The same verdicts serve rejection, GRPO and evaluation; only this file turns them into a reward.
Source: R1's rule rewards (arXiv 2501.12948, DeepSeek-R1-Zero "Reward Modeling" and the language-consistency
reward).
"""

from __future__ import annotations

from collections.abc import Mapping

from model.records import Status
from model.rewards.check import Judgement

# The first of these that could be scored gives the accuracy; a problem has one or the other.
ACCURACY_CHECKS = ("math", "code")


def accuracy(judgements: Mapping[str, Judgement]) -> float | None:
    """1.0 or 0.0; None where no accuracy check could be carried out (an error is never a wrong answer)."""
    for name in ACCURACY_CHECKS:
        judgement = judgements.get(name)
        if judgement is not None and judgement.verdict in (Status.PASS, Status.FAIL):
            return 1.0 if judgement.verdict is Status.PASS else 0.0
    return None


def reward(
    judgements: Mapping[str, Judgement],
    format_weight: float,
    *,
    language_weight: float = 0.0,
    unscored: float = 0.0,
) -> float:
    """r = accuracy + λ·format + α·language of one sample, by check name.

    λ is `format_weight`, α `language_weight`; format is the graded score (1, R_partial, 0), language the
    share of target-language words. A check that was not run or could not be scored adds 0. Where the accuracy
    is unknown the whole reward is `unscored`: pass `math.nan` to find such samples and leave them out of
    their group.
    """
    right = accuracy(judgements)
    if right is None:
        return unscored
    return right + format_weight * _score(judgements, "format") + language_weight * _score(judgements, "language")


def _score(judgements: Mapping[str, Judgement], name: str) -> float:
    judgement = judgements.get(name)
    return 0.0 if judgement is None or judgement.score is None else judgement.score
