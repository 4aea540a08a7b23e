"""Which problems and samples are twins, and above all which are not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from model.records import Problem, problem_id
from model.rewards import duplicate
from model.rewards.check import Judgement, Scored
from model.rewards.duplicate import (
    Earlier,
    Twin,
    TwinSearch,
    golds_agree,
    judge_samples,
    turning_points,
    version,
)
from model.rewards.settings import DuplicateSettings
from model.rewards.texts.shingles import tokens
from tasks.builtin_problems import BUILTIN_SETS, builtin_rows

SETTINGS = DuplicateSettings()
STORY = (
    "Tom has 12 apples and buys 7 more at the market. He gives 5 of them to his sister and shares what is left "
    "between himself and two friends. How many apples does Tom have at the end of the day?"
)


def problem(prompt: str, gold: str | None = None, split: str = "train", domain: str = "math") -> Problem:
    return Problem(problem_id(domain, prompt, gold), domain, "made", prompt, gold, split=split)


def search(problems: Sequence[Problem], settings: DuplicateSettings = SETTINGS, batch: int = 1000) -> dict[str, Twin]:
    """All twins by id, as the task finds them: everything shown once, then the candidates again."""
    found = TwinSearch(settings)
    for start in range(0, len(problems), batch):
        found.learn([one.prompt for one in problems[start : start + batch]])
    places = found.settle().tolist()
    found.recall(places, [problems[place] for place in places])
    return dict(found.twins())


def reason(first: Problem, second: Problem) -> str | None:
    """What is said of the second beside the first."""
    twin = search([first, second]).get(second.problem_id)
    return twin.reason if twin else None


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((STORY, "4"), (STORY.replace(" ", "\n", 3), "4"), "same_text"),
        ((STORY, "4"), (STORY.replace(" ", "  "), "5"), "same_text_other_gold"),
        ((STORY, None), (STORY.replace(" ", "  "), "5"), "same_text"),
        ((STORY, "4"), (STORY.replace("apples", "pears", 1), "4"), "near_duplicate"),
        ((STORY, "4"), (STORY.upper(), "4.0"), "near_duplicate"),
        ((STORY, None), (STORY + " Explain.", "4"), "near_duplicate"),
        ((STORY, "4"), (STORY.replace("12", "twelve"), "4"), "near_duplicate"),
        # The same words with something else that counts.
        ((STORY, None), (STORY.replace("7", "8"), None), None),
        ((STORY, "4"), (STORY.replace("two", "three"), "4"), None),
        ((STORY, "4"), (STORY.replace("12", "5").replace("gives 5", "gives 12"), "4"), None),
        ((STORY, "4"), (STORY.replace("Tom", "Ann", 1), "5"), None),
        ((STORY, None), (STORY.replace("many", "few", 1).replace("more", "less"), None), None),
    ],
)
def test_twins_of_a_story(first: tuple[str, str], second: tuple[str, str], expected: str | None) -> None:
    assert reason(problem(*first), problem(*second)) == expected


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Calculate 3 + 4.", "Calculate 3 + 5."),
        ("Calculate 3 + 4.", "Calculate 4 + 3."),
        ("Calculate 3 + 4.", "Calculate 3 - 4."),
        ("Calculate 3 + 4.", "Calculate 3 * 4."),
        (r"Find $\sin x$ where x is an angle of the triangle.", r"Find $\cos x$ where x is an angle of the triangle."),
        ("What is the largest value of x² for x in the set?", "What is the smallest value of x² for x in the set?"),
        (
            "Solve x² + x = 6 for x, and give all of the solutions.",
            "Solve x³ + x = 6 for x, and give all of the solutions.",
        ),
    ],
)
def test_short_problems_without_golds_that_are_no_twins(first: str, second: str) -> None:
    assert reason(problem(first), problem(second)) is None


def test_none_of_the_demos_problems_is_a_twin() -> None:
    """All sums of one shape: nine words, of which only numbers and signs differ."""
    rows = [row for name in BUILTIN_SETS for row in itertools.islice(builtin_rows(name), 400)]
    problems = {problem_id("math", row["prompt"], row["gold"]): problem(row["prompt"]) for row in rows}
    assert len(problems) > 500
    assert search(list(problems.values())) == {}


def test_a_template_filled_with_other_numbers_makes_no_twins() -> None:
    filled = [STORY.replace("12 ", f"{a} ").replace("7 more", f"{b} more") for a in range(10, 30) for b in range(6, 26)]
    assert search([problem(text) for text in filled]) == {}


def test_the_first_is_kept_and_every_twin_names_one_that_is() -> None:
    variants = [STORY, STORY + " Explain.", STORY.replace("sister", "brother"), STORY + " Explain it."]
    problems = [problem(text) for text in variants]
    found = search(problems)
    assert problems[0].problem_id not in found
    assert {found[one.problem_id].problem_id for one in problems[1:]} == {problems[0].problem_id}
    assert all(0.8 <= twin.similarity < 1.0 for twin in found.values())


def test_batches_change_nothing() -> None:
    problems = [problem(STORY.replace("market", word) + end) for word in ("shop", "fair") for end in ("", " So?", "?")]
    assert search(problems, batch=1) == search(problems, batch=4) != {}


def test_of_many_that_are_somewhat_alike_the_twin_is_among_the_few_that_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Long boilerplate and no numbers: every problem shares a bucket with most others, its twin the most of them."""
    monkeypatch.setattr(duplicate, "MOST_COMPARED", 1)
    rules = "Read what follows with care, think about it step by step, and then write down nothing but what is asked."
    topics = ["the wind that shakes the old barn", "a cat which nobody ever saw", "ships made out of folded letters"]
    poems = [problem(f"{rules} Compose a poem on {topic}, in the voice of its only witness.") for topic in topics]
    again = problem(poems[1].prompt + " Please.")
    assert {name: twin.problem_id for name, twin in search([*poems, again]).items()} == {
        again.problem_id: poems[1].problem_id
    }


def test_a_held_out_problem_comes_first_wherever_it_was_loaded() -> None:
    train, held_out = problem(STORY, "4"), problem(STORY + " Explain.", "4", split="held_out")
    found = search([train, held_out])
    assert found == {
        train.problem_id: Twin(held_out.problem_id, found[train.problem_id].similarity, "twin_of_held_out")
    }


def test_held_out_twins_are_told_and_both_still_guard() -> None:
    """The third is a twin of the second alone."""
    first, second = problem(STORY, split="held_out"), problem(STORY + " Give a reason for it.", split="held_out")
    train = problem(STORY + " Give a reason for it, please, in words.")
    settings = DuplicateSettings(threshold=0.87)
    found = search([first, second, train], settings)
    assert found[second.problem_id].reason == "near_duplicate"
    assert (found[train.problem_id].problem_id, found[train.problem_id].reason) == (
        second.problem_id,
        "twin_of_held_out",
    )


def test_golds_are_compared_in_maths_alone_and_as_values() -> None:
    half, decimal, other = problem("p", r"\frac{1}{2}"), problem("p", "0.5"), problem("p", "0.25")
    assert golds_agree(half, decimal)
    assert not golds_agree(half, other)
    assert golds_agree(half, problem("p"))
    assert not golds_agree(problem("p", "x + 1"), problem("p", "x + 2"))  # what cannot be told apart here may differ
    assert golds_agree(problem("p", "a = 1", domain="code"), problem("p", "b = 1", domain="code"))


def test_what_makes_another_question_of_the_same_words() -> None:
    assert turning_points(tokens("Find the least odd x with x² > 7 and three roots.")) == "least odd x² > 7 3"
    assert turning_points(tokens("Tell me about it.")) == ""


def test_another_setting_is_another_version() -> None:
    assert version(SETTINGS) == "1"
    assert version(DuplicateSettings(shingle=4)).startswith("1+")


# --- samples ---------------------------------------------------------------------------------------

CHAIN = " ".join(f"Step {number} adds {number} to the sum, which is then {number * 7}." for number in range(40))


def sample(text: str, name: str = "s", domain: str = "math") -> Scored:
    return Scored(text, sample_id=name, problem_id="p", domain=domain)


def answered(chain: str, answer: str) -> str:
    return f"<think>{chain}</think><answer>{answer}</answer>"


def told(items: list[Scored], earlier: Sequence[Earlier] = ()) -> list[tuple[str, str]]:
    return [(str(one.verdict), one.reason) for one in judge_samples(items, earlier, SETTINGS)]


def test_samples_are_compared_with_those_before_them() -> None:
    other = " ".join(f"Line {number} says nothing of the kind." for number in range(40))
    items = [
        sample(answered(CHAIN, "7"), "first"),
        sample(answered(CHAIN, "7").replace(" ", "  ", 1), "equal"),
        sample(answered(CHAIN + " Done.", "7"), "near"),
        sample(answered(CHAIN, "8"), "other answer"),
        sample(answered(other, "7"), "other chain"),
        sample(" ", "blank"),
    ]
    judged = judge_samples(items, [], SETTINGS)
    assert [one.reason for one in judged] == [
        "first_made",
        "same_text",
        "near_duplicate",
        "unlike",  # a right chain beside an equal one that answers otherwise
        "unlike",
        "no_words",
    ]
    assert judged[1].detail == "first (1.00)"
    assert judged[2].detail is not None
    assert judged[2].detail.startswith("first (0.9")
    assert [str(one.verdict) for one in judged] == ["pass", "fail", "fail", "pass", "pass", "unscorable"]


def test_the_score_is_one_less_the_similarity_to_the_most_alike_earlier_sample() -> None:
    items = [sample("a b c d"), sample("v w x y"), sample("a b c e")]
    first, second, third = judge_samples(items, [], SETTINGS)
    assert (first.score, second.score) == (1.0, 1.0)
    assert third.score == pytest.approx(1 - 1 / 3)  # abc of abc, bcd, bce


def test_earlier_samples_count_and_get_no_word_of_their_own() -> None:
    earlier = [Earlier("before", answered(CHAIN, "7"))]
    (judged,) = judge_samples([sample(answered(CHAIN, "7"))], earlier, SETTINGS)
    assert (judged.reason, judged.detail) == ("same_text", "before (1.00)")
    assert judge_samples([], earlier, SETTINGS) == []


def test_outside_maths_the_answer_does_not_tell_samples_apart() -> None:
    items = [sample(answered(CHAIN, "print(1)"), domain="code"), sample(answered(CHAIN, "print(2)"), domain="code")]
    assert told(items)[1] == ("fail", "near_duplicate")


@pytest.mark.parametrize("text", ["\x00" * 50, "+" * 3_000_000, "a " * 700_000, "\u202e\u202dabc", "ﷺ" * 9])
def test_poison_is_judged_like_any_other_text(text: str) -> None:
    judged: list[Judgement] = judge_samples([sample(text), sample("all is well"), sample("all is well")], [], SETTINGS)
    assert judged[2].reason == "same_text"
