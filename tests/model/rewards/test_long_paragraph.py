"""The longest paragraph, maths and code aside, against the threshold."""

from __future__ import annotations

from model.records import Status
from model.rewards.check import Scored
from model.rewards.long_paragraph import LongParagraphCheck, judge_long_paragraph
from model.rewards.settings import CheckSettings, LongParagraphSettings


def test_the_threshold_is_inclusive_and_per_line() -> None:
    assert judge_long_paragraph("a" * 4000 + "\n" + "b" * 4000).reason == "short_paragraphs"
    judgement = judge_long_paragraph("a" * 4001)
    assert (judgement.verdict, judgement.reason) == (Status.FAIL, "long_paragraph")
    assert judgement.score == 4000 / 4001
    assert judgement.detail == "4001 characters: " + "a" * 160


def test_maths_code_and_spaces_do_not_count() -> None:
    text = "one $x + 1$ two" + " " * 5000 + "\\[" + "y" * 5000 + "\\] three ```" + "z" * 5000 + "``` four"
    assert judge_long_paragraph(text).detail == f"{len('one two three four')} characters"


def test_nothing_is_short() -> None:
    assert judge_long_paragraph("").detail == "0 characters"


def test_the_settings_hold() -> None:
    check = LongParagraphCheck(CheckSettings(long_paragraph=LongParagraphSettings(3)))
    assert check(Scored(text="ab", reasoning="abcd")).verdict is Status.FAIL
    assert check.version.startswith("1+")
