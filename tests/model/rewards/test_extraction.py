"""Which characters of a completion are its answer: a case per rule of the stated order, then hostile ones."""

from __future__ import annotations

import time

import pytest

from model.rewards.extraction import MAX_ANSWER, Extracted, extract_answer, last_boxed

CASES = [
    # 1. the answer section after the last </think>
    ("<think>3+4</think><answer> 7 </answer>", ("7", "answer_tag")),
    ("<think>\\boxed{6}</think> so \\boxed{5} <answer>7</answer>", ("7", "answer_tag")),
    ("<think><answer>6</answer></think><answer>7</answer>", ("7", "answer_tag")),
    ("<think>a</think><answer>6</answer><answer>7</answer>", ("7", "answer_tag")),
    ("<think>a</think><answer>7", ("7", "answer_tag")),
    ("<think>never closed <answer>7</answer>", ("7", "answer_tag")),
    # 2. the last box, inside a section too
    ("<think>a</think><answer>It is \\boxed{7}.</answer>", ("7", "boxed")),
    ("<think>\\boxed{6}</think>So \\boxed{\\frac{1}{2}} and that is all.", ("\\frac{1}{2}", "boxed")),
    ("a \\boxed{6} b \\boxed{7} c 8", ("7", "boxed")),
    ("\\boxed {7}", ("7", "boxed")),
    ("\\boxed{7} or \\boxed{8", ("7", "boxed")),
    ("\\boxed{\\{1,2\\}}", ("\\{1,2\\}", "boxed")),
    # 3. the last number of the final part
    ("<think>4 5 6</think>It is 3, no, -1,234.5 apples.", ("-1,234.5", "last_number")),
    ("the ratio is 3/4", ("3/4", "last_number")),
    ("it is 5-3", ("3", "last_number")),
    # none
    ("<think>so far 3 and \\boxed{4}", None),
    ("<think>a</think><answer>  </answer> 7", None),
    ("no number here", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_extraction_keeps_to_the_stated_order(text: str, expected: tuple[str, str] | None) -> None:
    found = extract_answer(text)
    assert (found and (found.text, found.source)) == expected


def test_only_what_follows_the_last_thought_counts() -> None:
    assert extract_answer("<think>a</think> \\boxed{1} <think>b</think> 2") == Extracted("2", "last_number")


def test_a_box_without_an_end_in_reach_is_none() -> None:
    assert last_boxed("\\boxed{" + "1" * MAX_ANSWER + "}") is None
    assert last_boxed("\\boxed{" + "1" * (MAX_ANSWER - 1) + "}") == "1" * (MAX_ANSWER - 1)


@pytest.mark.parametrize("unit", ["<think>", "</think>", "<answer>", "\\boxed{", "1,", "-", "\\", "{", "1/"])
def test_time_is_linear_in_hostile_texts(unit: str) -> None:
    def seconds(repeats: int) -> float:
        text = unit * repeats
        started = time.perf_counter()
        extract_answer(text)
        return time.perf_counter() - started

    # A quadratic scan of a million repeats would take minutes; the bound leaves room for a busy machine.
    assert seconds(1_000_000) < 5.0
