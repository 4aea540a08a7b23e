"""Which characters of a completion are its answer: a case per rule of the stated order, then hostile ones."""

from __future__ import annotations

import time

import pytest

from model.rewards.answers.extraction import MAX_ANSWER, Extracted, extract_answer, last_boxes

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
    # boxes that belong together
    ("\\boxed{1} and \\boxed{2}", ("1, 2", "boxed")),
    ("\\[\\boxed{x = 1} \\quad \\text{or} \\quad \\boxed{x = 2}\\]", ("x = 1, x = 2", "boxed")),
    ("\\boxed{(1, 2)}, \\boxed{(3, 4)}", ("(1, 2), (3, 4)", "boxed")),
    ("\\boxed{1} papers and \\boxed{2} bins", ("1, 2", "boxed")),
    ("\\boxed{5}, or once more \\boxed{5}", ("5", "boxed")),
    ("\\boxed{5}, and \\boxed{5}", ("5", "boxed")),
    ("\\boxed{1}. And \\boxed{2}", ("2", "boxed")),
    ("\\boxed{1} so \\boxed{2}", ("2", "boxed")),
    ("\\boxed{12 $ and $13}", ("12  and 13", "boxed")),
    # 3. what is said to be the answer
    ("The answer is 18. Check: 9 * 2 = 18 in 1 step.", ("18", "said")),
    ("**Answer:** $x=5$, for n = 2.", ("x=5", "said")),
    ("The final answer is \\(\\frac{1}{2}\\). I hope it is correct in all 3 parts.", ("\\frac{1}{2}", "said")),
    ("The answer is (C). It has 3 sides.", ("(C)", "said")),
    ("The answer is 3 + 4 = 7.", ("7", "said")),
    ("The answer is 3. No, the answer is 4, not 5.", ("4", "said")),
    ("The answer is odd, since 3 is.", ("3", "last_number")),
    # 4. the last formula or number of the final part
    ("<think>4 5 6</think>It is 3, no, -1,234.5 apples.", ("-1,234.5", "last_number")),
    ("the ratio is 3/4.", ("3/4", "last_number")),
    ("it is 5-3", ("3", "last_number")),
    ("we get $2\\sqrt{3}$.", ("2\\sqrt{3}", "formula")),
    ("we get $2\\sqrt{3}$, about 3.46", ("3.46", "last_number")),
    ("so \\[ x \\le 2 \\]", ("x \\le 2", "formula")),
    ("so $$x < 2$$ holds", ("x < 2", "formula")),
    ("She pays $5 and gets $3 back.", ("3", "last_number")),
    ("She pays $5 for all the tea she drinks and $ 3", ("3", "last_number")),
    ("at 2:30 p.m.", ("2:30 p.m.", "last_number")),
    ("up by 12.5%", ("12.5%", "last_number")),
    ("\\frac{10}{9}", ("\\frac{10}{9}", "last_number")),
    ("it costs 2,74 $", ("2,74", "last_number")),
    ("in all 1 000 of them", ("1 000", "last_number")),
    ("答案是18个", ("18", "last_number")),
    ("the part AB2", None),
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
    assert last_boxes("\\boxed{" + "1" * MAX_ANSWER + "}") is None
    assert last_boxes("\\boxed{" + "1" * (MAX_ANSWER - 1) + "}") == "1" * (MAX_ANSWER - 1)


HOSTILE = [
    *("<think>", "</think>", "<answer>", "\\boxed{", "1,", "-", "\\", "{", "1/", "$", "\\(", "\\[", "$$", "answer is "),
    *("\\boxed{1} and ", "answer", "1 ", "1:", "\\boxed", "$1 "),
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_time_is_linear_in_hostile_texts(unit: str) -> None:
    def seconds(repeats: int) -> float:
        text = unit * repeats
        started = time.perf_counter()
        extract_answer(text)
        return time.perf_counter() - started

    # A quadratic scan of a million repeats would take minutes; the bound leaves room for a busy machine.
    assert seconds(1_000_000) < 5.0
