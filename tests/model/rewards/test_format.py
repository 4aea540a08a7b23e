"""R1's grading: basic structure first, then full, partial or none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.records import Status
from model.rewards.check import Scored
from model.rewards.format import FormatCheck, judge_format
from model.rewards.settings import CheckSettings, FormatSettings

GRADES = [
    ("<think>\na\n</think>\n<answer>b</answer>\n", "full", 1.0),
    ("<think>a</think><answer>b</answer>", "full", 1.0),
    # the structure holds, part of the specification does not
    ("Sure! <think>a</think><answer>b</answer>", "text_outside_tags", 0.5),
    ("<think>a</think> so <answer>b</answer>", "text_outside_tags", 0.5),
    ("<think>a</think><answer>b</answer> bye", "text_outside_tags", 0.5),
    ("<think> </think><answer>b</answer>", "empty_reasoning", 0.5),
    ("<think>a</think><answer></answer>", "empty_answer", 0.5),
    ("<think>a<think>a</think><answer>b</answer>", "repeated_tag", 0.5),
    ("<think>a</think><answer>b</answer><answer>c</answer>", "repeated_tag", 0.5),
    # the structure does not hold
    ("a", "missing_think", 0.0),
    ("", "missing_think", 0.0),
    ("<think>a", "unclosed_think", 0.0),
    ("<think>a</think>b", "missing_answer", 0.0),
    ("<think>a</think><answer>b", "unclosed_answer", 0.0),
    ("<answer>b</answer><think>a</think>", "wrong_order", 0.0),
    ("<think>a<answer>b</answer></think>", "wrong_order", 0.0),
    ("</think>a<think><answer>b</answer>", "wrong_order", 0.0),
]


@pytest.mark.parametrize(("text", "reason", "score"), GRADES)
def test_grades(text: str, reason: str, score: float) -> None:
    judgement = judge_format(text)
    assert (judgement.reason, judgement.score) == (reason, score)
    assert judgement.verdict is (Status.PASS if reason == "full" else Status.FAIL)


def test_a_structure_that_meets_no_requirement_scores_nothing() -> None:
    judgement = judge_format("<think> </think><answer></answer><think>")
    assert judgement.score == 0.0
    assert judgement.detail == "repeated_tag, text_outside_tags, empty_reasoning, empty_answer"


def test_without_an_answer_tag_the_rest_is_the_answer() -> None:
    assert judge_format("<think>a</think> It is \\boxed{7}.", ("think",)).reason == "full"
    assert judge_format("<think>a</think> ", ("think",)).reason == "empty_answer"


@given(
    st.text(alphabet="ab <>/", min_size=1).filter(str.strip),
    st.text(alphabet="ab <>/", min_size=1).filter(str.strip),
)
def test_whatever_stands_in_the_sections_is_not_looked_at(reasoning: str, answer: str) -> None:
    assert judge_format(f"<think>{reasoning}</think><answer>{answer}</answer>").reason == "full"


def test_settings_change_score_and_version() -> None:
    strict = FormatCheck(CheckSettings(format=FormatSettings(partial=0.0)))
    item = Scored(text="hi <think>a</think><answer>b</answer>")
    assert (FormatCheck(CheckSettings())(item).score, strict(item).score) == (0.5, 0.0)
    assert FormatCheck(CheckSettings()).version == "1"
    assert strict.version.startswith("1+")
    assert len(strict.version) == 8


@pytest.mark.parametrize(("wrong", "said"), [({"partial": 1.5}, "partial is 1.5"), ({"tags": ("solution",)}, "tags")])
def test_settings_out_of_bounds_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FormatSettings(**wrong)
