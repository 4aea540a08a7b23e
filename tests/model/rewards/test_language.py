"""Language share: whole chains, mixed ones, the question's own language, and texts too short to tell."""

from __future__ import annotations

import pytest

from model.errors import CheckError
from model.records import Status
from model.rewards.check import Scored
from model.rewards.language import LanguageCheck, judge_language, language_share, question_language
from model.rewards.settings import CheckSettings, LanguageSettings

ENGLISH = "First I add the two numbers, and then I divide the sum by three to find the mean of them."
CHINESE = "首先我们把这两个数加起来，然后除以三得到平均值。"
JAPANESE = "まず二つの数を足して、それから三で割って平均を求めます。"
SPANISH = "Primero sumamos los dos números y luego dividimos la suma por tres para hallar la media."
RUSSIAN = "Сначала мы складываем два числа, а затем делим сумму на три и находим среднее."
GERMAN = "Zuerst addieren wir die beiden Zahlen und teilen die Summe dann durch drei."


@pytest.mark.parametrize(
    ("text", "language"),
    [(ENGLISH, "en"), (CHINESE, "zh"), (JAPANESE, "ja"), (SPANISH, "es"), (RUSSIAN, "ru"), (GERMAN, "de")],
)
def test_a_chain_in_the_target_language_passes_and_others_fail(text: str, language: str) -> None:
    assert judge_language(text, language).reason == "target_language"
    assert judge_language(text, language).score == 1.0
    for other in {"en", "zh", "es", "ru"} - {language}:
        judgement = judge_language(text, other)
        assert (judgement.verdict, judgement.reason, judgement.score) == (Status.FAIL, "other_language", 0.0)


def test_a_mixed_chain_scores_its_share_and_keeps_the_foreign_span() -> None:
    found = language_share(f"{ENGLISH} {CHINESE} {ENGLISH}", "en")
    # 20 words each time, of which `I` (twice, a single letter) is left out, and 22 characters.
    assert (found.target_words, found.foreign_words) == (2 * 18, 22)
    assert found.share == 36 / 58
    assert found.foreign_span == "首先我们把这两个数加起来，然后除以三得到平均值"
    assert judge_language(f"{ENGLISH}\n{SPANISH}", "en").detail == f"not en: {SPANISH[:-1]}"
    assert judge_language(f"{ENGLISH}\n{SPANISH}", "en").verdict is Status.FAIL


@pytest.mark.parametrize(
    "text",
    ["", "3 + 4 = 7", "$$\\int_0^1 f(x) dx$$", "so x is 3", "```\nprint('hello world')\n```", "\ud800\0"],
)
def test_too_little_text_is_unscorable(text: str) -> None:
    assert judge_language(text).verdict is Status.UNSCORABLE
    assert judge_language(text).reason == "too_little_text"


@pytest.mark.parametrize(("prompt", "language"), [
    ("What is the sum of three and four?", "en"), (GERMAN, "de"), ("¿Cuál es la suma de tres y cuatro?", "es"),
    ("三加四等于多少？", "zh"), ("3 + 4 = ?", "en"), ("", "en"), ("Combien font $3 + 4$ dans ce cas ?", "fr"),
])  # fmt: skip
def test_the_question_has_a_language_or_counts_as_english(prompt: str, language: str) -> None:
    assert question_language(prompt) == language


def test_the_target_is_the_questions_language_unless_the_settings_name_one() -> None:
    check = LanguageCheck(CheckSettings())
    assert check(Scored(text=GERMAN, prompt="Wie groß ist die Summe der beiden Zahlen?")).verdict is Status.PASS
    assert check(Scored(text=GERMAN, prompt="How large is the sum of the two numbers?")).verdict is Status.FAIL
    english = LanguageCheck(CheckSettings(language=LanguageSettings("en")))
    assert english(Scored(text=GERMAN, prompt="Wie groß ist die Summe der beiden Zahlen?")).verdict is Status.FAIL


def test_the_check_looks_at_the_reasoning_first() -> None:
    check = LanguageCheck(CheckSettings())
    assert check(Scored(text=CHINESE, reasoning=ENGLISH)).verdict is Status.PASS
    assert check(Scored(text=ENGLISH, reasoning=None)).verdict is Status.PASS


def test_target_and_threshold_are_part_of_the_version() -> None:
    versions = {LanguageCheck(CheckSettings(language=LanguageSettings(code, share))).version for code, share in
                [("", 0.9), ("en", 0.8), ("zh", 0.9)]}  # fmt: skip
    assert len(versions) == 3
    assert "2" in versions


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(CheckError, match="did you mean 'en'"):
        LanguageCheck(CheckSettings(language=LanguageSettings("eng")))
