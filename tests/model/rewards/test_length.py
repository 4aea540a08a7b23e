"""Length is a measurement: characters in the score, tokens in the detail, no threshold."""

from __future__ import annotations

from model.records import Status
from model.rewards.length import judge_length


def test_length_is_measured_not_judged() -> None:
    judgement = judge_length("abcde", 2)
    assert (judgement.verdict, judgement.reason, judgement.score) == (Status.PASS, "measured", 5.0)
    assert judgement.detail == "2 tokens"


def test_blank_text_fails() -> None:
    assert [judge_length(text, 0).reason for text in ("", " \n")] == ["empty", "empty"]
