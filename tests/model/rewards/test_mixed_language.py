"""Changes of language: whole paragraphs, single words of a foreign script, and what is no fault."""

from __future__ import annotations

import pytest

from model.records import Status
from model.rewards.check import Scored
from model.rewards.language import LanguageCheck, read_chain
from model.rewards.mixed_language import MixedLanguageCheck, judge_mixed_language, mixture
from model.rewards.settings import CheckSettings, MixedLanguageSettings

ENGLISH = "First we add the two numbers, and then we divide the sum by three to find the mean."
SPANISH = "Primero sumamos los dos números y luego dividimos la suma por tres para hallar la media."
CHINESE = "首先我们把这两个数加起来，然后除以三得到平均值。"


@pytest.mark.parametrize("text", [
    ENGLISH, SPANISH, CHINESE, f"{ENGLISH}\n\n{ENGLISH}",
    f"{ENGLISH} The angle is αβ and π times ω.", f"{CHINESE} 用 Python 和 Alice 计算 sin(ab)。",
    f"{ENGLISH} $\\text{{所以}}$ `因此`",
])  # fmt: skip
def test_a_chain_in_one_language_passes(text: str) -> None:
    assert judge_mixed_language(text).reason == "one_language"
    assert judge_mixed_language(text).score == 1.0


@pytest.mark.parametrize(("text", "reason"), [
    (f"{ENGLISH}\n{SPANISH}", "mixed_languages"), (f"{ENGLISH}\n{CHINESE}", "mixed_languages"),
    (f"{CHINESE}\n{CHINESE}\n{ENGLISH}", "mixed_languages"),
    (f"{ENGLISH} Therefore the 答案 is seven.", "foreign_words"), (f"{ENGLISH} Это seven.", "foreign_words"),
])  # fmt: skip
def test_a_change_fails_with_its_place(text: str, reason: str) -> None:
    judgement = judge_mixed_language(text)
    assert (judgement.verdict, judgement.reason) == (Status.FAIL, reason)


def test_paragraphs_and_words_are_counted() -> None:
    found = mixture("\n".join([ENGLISH] * 3 + [SPANISH] + [f"{ENGLISH} 所以"]))
    assert found is not None
    assert (found.main, found.paragraphs, found.mixed, found.words) == ("en", 5, 1, 2)
    assert found.share == 0.2
    assert found.span == SPANISH[:-1]


def test_limits_are_inclusive() -> None:
    text = "\n".join([ENGLISH] * 3 + [SPANISH] + [f"{ENGLISH} 所以"])
    assert judge_mixed_language(text, most_paragraphs=0.2, most_words=2).verdict is Status.PASS
    assert judge_mixed_language(text, most_paragraphs=0.2, most_words=1).reason == "foreign_words"
    assert judge_mixed_language(text, most_paragraphs=0.19, most_words=2).reason == "mixed_languages"


def test_what_the_question_says_may_be_quoted() -> None:
    chain = f"{ENGLISH} The character 数 means number."
    assert judge_mixed_language(chain).reason == "foreign_words"
    assert judge_mixed_language(chain, prompt="What does 数 mean?").reason == "one_language"


def test_short_texts_are_unscorable_and_the_settings_make_the_version() -> None:
    assert judge_mixed_language("所以 yes").reason == "too_little_text"
    check = MixedLanguageCheck(CheckSettings(mixed_language=MixedLanguageSettings(most_words=5)))
    assert check.version.startswith("1+")
    assert check(Scored(text="", reasoning=f"{ENGLISH} 所以")).verdict is Status.PASS


def test_a_chain_is_read_once_for_both_checks_of_language() -> None:
    checks = [LanguageCheck(CheckSettings()), MixedLanguageCheck(CheckSettings())]
    read_chain.cache_clear()
    for chain in (ENGLISH, SPANISH, ENGLISH):
        read_before = read_chain.cache_info().misses
        assert all(check(Scored(text=chain)).score is not None for check in checks)
        assert read_chain.cache_info().misses == read_before + 1
    assert read_chain.cache_info().maxsize == 1  # one sample's: the cache does not grow
