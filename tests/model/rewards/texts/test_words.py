"""Words as numbers are the words that the pattern finds; equal words have equal numbers, others other ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.rewards.texts.words import WordNumbers, code_points, rolling

NUMBERS = WordNumbers(r"[\u3040-\u30ff\u4e00-\u9fff]", r"[^\W_\u3040-\u30ff\u4e00-\u9fff]")
AWKWARD = [*"abZ7²é\u0301_ \n-中文ひ・𝑥\ud800\0", "x" * 63]


def spelt(text: str) -> list[str]:
    return NUMBERS.pattern.findall(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" -_- ", []),
        ("one, two", ["one", "two"]),
        ("中文ab中", ["中", "文", "ab", "中"]),
        ("a" * 64, ["a" * 64]),
        ("a" * 130, ["a" * 64, "a" * 64, "aa"]),
        ("中" + "a" * 65 + "文" * 70, ["中", "a" * 64, "a", *["文"] * 70]),
    ],
)
def test_words_are_those_of_the_pattern(text: str, expected: list[str]) -> None:
    words = NUMBERS(text)
    assert spelt(text) == expected
    assert words.starts.tolist() == [match.start() for match in NUMBERS.pattern.finditer(text)]
    assert words.lengths.tolist() == [len(word) for word in expected]
    assert words.are_unspaced.tolist() == [word in "中文" for word in expected]


@given(st.lists(st.sampled_from(AWKWARD), max_size=300).map("".join) | st.text(max_size=300))
def test_also_in_awkward_texts(text: str) -> None:
    words, expected = NUMBERS(text), spelt(text)
    assert words.starts.tolist() == [match.start() for match in NUMBERS.pattern.finditer(text)]
    pairs = set(zip(words.numbers.tolist(), expected, strict=True))
    assert len(pairs) == len(set(words.numbers.tolist())) == len(set(expected))


def test_every_code_point_is_what_the_pattern_says() -> None:
    spaced = "\0".join(map(chr, range(0x110000)))
    assert len(NUMBERS(spaced).starts) == len(spelt(spaced))


def test_a_number_is_the_same_wherever_its_word_stands() -> None:
    first, second = NUMBERS("so it is").numbers, NUMBERS("-- it is, so").numbers
    assert second.tolist() == [first[1], first[2], first[0]]
    assert len(set(NUMBERS("ab ba a b aa bb aab aba baa").numbers.tolist())) == 9


def test_words_that_consist_of_some_characters() -> None:
    letters = code_points(str.isalpha)
    assert NUMBERS("a1 ab 12 文 é²").consist_of(letters).tolist() == [False, True, False, True, False]
    assert NUMBERS("").consist_of(letters).tolist() == []


def test_runs_of_words_are_equal_where_their_words_are() -> None:
    """Of `a b a b a` the first run of three is the last one; of two words there is no run of three."""
    runs = rolling(NUMBERS("a b a b a").numbers, 3)
    assert np.array_equal(runs == runs[0], [True, False, True])
    assert len(rolling(NUMBERS("a b").numbers, 3)) == 0
