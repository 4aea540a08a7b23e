"""r = accuracy + λ·format + α·language, by hand."""

from __future__ import annotations

import math

import pytest

from model.rewards.check import Judgement, errored, failed, passed, unscorable
from model.rewards.reward import accuracy, reward

RIGHT, WRONG = passed("equal_number"), failed("not_equal")
FULL, PARTIAL, NONE = passed("full"), failed("empty_reasoning", score=0.5), failed("missing_think")


@pytest.mark.parametrize(
    ("judgements", "expected"),
    [
        ({"math": RIGHT, "format": FULL}, 1.2),
        ({"math": RIGHT, "format": PARTIAL}, 1.1),
        ({"math": RIGHT, "format": NONE}, 1.0),
        ({"math": WRONG, "format": FULL}, 0.2),
        ({"math": WRONG, "format": NONE}, 0.0),
        ({"math": RIGHT}, 1.0),
        ({"math": unscorable("no_gold"), "code": RIGHT, "format": FULL}, 1.2),
    ],
)
def test_reward_by_hand(judgements: dict[str, Judgement], expected: float) -> None:
    assert reward(judgements, format_weight=0.2) == pytest.approx(expected)


def test_language_adds_its_share() -> None:
    judgements = {"math": RIGHT, "language": failed("other_language", score=0.25)}
    assert reward(judgements, 0.2, language_weight=0.4) == pytest.approx(1.1)


def test_an_error_is_never_a_wrong_answer() -> None:
    judgements = {"math": errored("timed_out"), "format": FULL}
    assert accuracy(judgements) is None
    assert reward(judgements, 0.2) == 0.0
    assert math.isnan(reward(judgements, 0.2, unscored=math.nan))
