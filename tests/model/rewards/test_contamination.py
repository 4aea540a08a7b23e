"""Shared stretches of words, whole questions, boilerplate, and the two uses: problems and samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import CheckError
from model.records import Problem, Status
from model.rewards.check import Scored
from model.rewards.contamination import HELD_OUT, ContaminationCheck, ContaminationIndex, judge_problem
from model.rewards.settings import CheckSettings, ContaminationSettings
from model.rewards.texts.benchmark_files import BenchmarkItem

STORY = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
PROOF = "Suppose that n is even; then its square is divisible by four, and the claim follows at once."
BENCH = [BenchmarkItem("bench:1", STORY, PROOF), BenchmarkItem("bench:2", "What is 2 + 3?", "5")]


@pytest.fixture(scope="module")
def index() -> ContaminationIndex:
    return ContaminationIndex.build(BENCH)


@pytest.mark.parametrize(("text", "words"), [
    (STORY, 20), (STORY.upper(), 20), (f"Now: {STORY}", 20),
    ("NATALIA SOLD clips -- to 48\n of her; friends, in April!", 10),
    ("natalia sold clips to $48$ of her~friends in\\,April", 10), (f"So {PROOF[13:60]} for every such n", 10),
])  # fmt: skip
def test_a_shared_stretch_is_found_and_shown(index: ContaminationIndex, text: str, words: int) -> None:
    found = index.match(text)
    assert found is not None
    assert (found.item, found.words, len(found.span.split())) == ("bench:1", words, words)


@pytest.mark.parametrize("text", [
    "", "Natalia sold clips to 48 of her friends in", "Natalia sold clips to 49 of her friends in April",
    "What is 2 - 3?", "What is 2 + 3 + 4?", "5",
])  # fmt: skip
def test_less_than_that_is_no_hit(index: ContaminationIndex, text: str) -> None:
    assert index.match(text) is None


def test_a_short_question_is_found_as_a_whole(index: ContaminationIndex) -> None:
    found = index.match("what is $2+3$")
    assert found is not None
    assert (found.item, found.words) == ("bench:2", 4)
    assert index.match("Tell me: what is 2 + 3? Then add one.") is None


def test_boilerplate_says_nothing_whatever_its_numbers() -> None:
    ask = "Answer the following question with one number in digits and nothing else please"
    end = "is the name of this very case only, so it is said once"
    names = enumerate(["Ada", "Bob", "Cyd", "Dan"])
    items = [BenchmarkItem(f"b:{n}", f"{ask}, take {n} and {n * n}. {name} {end}") for n, name in names]
    index = ContaminationIndex.build(items, boilerplate=0.5)
    assert index.match(f"{ask}, take 2 and 4.") is None
    assert index.match(end) is None
    found = index.match(f"Cyd {end}")
    assert found is not None
    assert (found.item, found.words) == ("b:2", 14)
    assert ContaminationIndex.build(items, boilerplate=1.0).match(f"{ask}, take 2 and 4.") is not None
    two = ContaminationIndex.build(items[:2], boilerplate=0.0)
    assert two.match(f"{ask}, take 1 and 1.") is not None, "what stands in two items only is no boilerplate"


def test_numbers_alone_say_nothing() -> None:
    primes = "2 3 5 7 11 13 17 19 23 29 31 37"
    index = ContaminationIndex.build([BenchmarkItem("b", f"Primes: {primes} and then what comes next?")])
    assert index.match(f"They are {primes}.") is None


def test_scripts_without_spaces_need_twice_as_many_characters() -> None:
    question = "求所有满足条件的正整数使得它们的平方和等于一百二十五的倍数。"
    index = ContaminationIndex.build([BenchmarkItem("zh:1", question)])
    assert index.match(question[:15]) is None
    found = index.match("已知：" + question[:22])
    assert found is not None
    assert found.words == 22


@given(st.text(alphabet="ab1 .", max_size=40), st.text(alphabet="ab1 .", max_size=40), st.integers(2, 4))
def test_hits_agree_with_comparing_all_stretches(ours: str, theirs: str, ngram: int) -> None:
    index = ContaminationIndex.build([BenchmarkItem("t", "a unique question", theirs)], ngram, 1.0)
    grams = [{tuple(w[i : i + ngram]) for i in range(len(w) - ngram + 1)} for w in _plain(ours, theirs)]
    telling = {gram for gram in grams[0] & grams[1] if 2 * sum(w[0] != "1" for w in gram) >= ngram}
    assert (index.match(ours) is not None) == bool(telling)


def _plain(*texts: str) -> list[list[str]]:
    return [text.replace(".", " ").split() for text in texts]


def test_problems_are_judged_by_prompt_and_by_gold(index: ContaminationIndex) -> None:
    clean = Problem("p", "math", "s", "How many legs have three dogs and two birds together?", "16")
    assert judge_problem(clean, index).reason == "no_overlap"
    asked = judge_problem(Problem("p", "math", "s", f"{STORY} How many?", "72"), index)
    assert (asked.verdict, asked.reason) == (Status.FAIL, "prompt_overlap")
    assert asked.detail == "bench:1: " + STORY.lower().replace(",", "").replace(".", "")
    assert judge_problem(Problem("p", "math", "s", clean.prompt, PROOF), index).reason == "gold_overlap"
    assert judge_problem(clean, ContaminationIndex.build([])).reason == "no_benchmark"


def test_the_check_of_samples_reads_its_files(tmp_path: Path) -> None:
    file = tmp_path / "bench.jsonl"
    file.write_text(json.dumps({"question": STORY}))
    check = ContaminationCheck(CheckSettings(contamination=ContaminationSettings(files=(str(file), HELD_OUT))))
    assert check(Scored(text=f"<think>As in: {STORY}</think>")).reason == "overlap"
    assert check(Scored(text="Something else entirely.")).reason == "no_overlap"
    before = check.version
    file.write_text(json.dumps({"question": PROOF}))
    assert ContaminationCheck(CheckSettings(contamination=check.settings)).version != before
    alone = ContaminationCheck(CheckSettings(contamination=ContaminationSettings(files=(HELD_OUT,))))
    assert alone(Scored(text=STORY)).reason == "no_benchmark"
    with pytest.raises(CheckError, match=r"none\.jsonl"):
        ContaminationCheck(CheckSettings(contamination=ContaminationSettings(files=("none.jsonl",))))
