"""Finish reasons become verdicts; a refused request is no fail of the model's."""

from __future__ import annotations

import pytest

from model.rewards.check import Scored
from model.rewards.finish import FinishCheck
from model.rewards.settings import CheckSettings


@pytest.mark.parametrize(
    ("finish_reason", "verdict", "reason"),
    [
        ("stop", "pass", "stopped"),
        ("length", "fail", "truncated"),
        ("refused", "error", "refused"),
        ("abort", "error", "unknown_finish_reason"),
    ],
)
def test_finish(finish_reason: str, verdict: str, reason: str) -> None:
    judgement = FinishCheck(CheckSettings())(Scored(text="a", finish_reason=finish_reason))
    assert (judgement.verdict, judgement.reason) == (verdict, reason)
