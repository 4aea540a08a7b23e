"""Tokens, shingles and signatures, on texts that a person can take apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rensa import RMinHash

from model.rewards.texts import shingles as sh


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Calculate 3 + 4.", "calculate 3 + 4"),
        ("a two-digit x-1, 5 - 2, 5\u22122", "a two digit x - 1 5 - 2 5 - 2"),
        ("$1,000.50 (net)!", "1000.50 net !"),
        (r"\left(\frac{1}{2}\right)", r"\frac 1 2"),
        ("x² ≤ 9", "x² ≤ 9"),
        ("求3个苹果", "求 3 个 苹 果"),
        (" .,;\n", ""),
    ],
)
def test_tokens(text: str, expected: str) -> None:
    assert " ".join(sh.tokens(text)) == expected


def test_no_more_than_a_million_characters_are_read() -> None:
    assert len(sh.tokens("a " * sh.MOST_CHARACTERS)) == sh.MOST_CHARACTERS // 2


def sets(documents: list[list[str]], width: int) -> list[np.ndarray]:
    return sh.rows_of(*sh.shingles(documents, width))


def test_similarity_by_hand() -> None:
    one, other, short = sets([["a", "b", "c", "d"], ["a", "b", "c", "e"], ["a"]], 2)
    assert [len(one), len(other), len(short)] == [3, 3, 1]
    assert sh.similarity(one, other) == 2 / 4  # ab and bc of ab, bc, cd, ce
    assert sh.similarity(one, one) == 1.0
    assert sh.similarity(one, short) == 0.0


def test_the_order_of_words_and_the_end_of_a_short_text_count() -> None:
    there, back, prefix = sets([["a", "b", "c"], ["c", "b", "a"], ["a", "b"]], 3)
    assert sh.similarity(there, back) == 0.0
    assert sh.similarity(there, prefix) == 0.0


words = st.lists(st.sampled_from("abcde"), max_size=9)


@given(st.lists(words, max_size=6), st.integers(1, 4))
def test_a_document_has_the_same_shingles_in_any_company(documents: list[list[str]], width: int) -> None:
    together = sets(documents, width)
    alone = [sets([document], width)[0] for document in documents]
    assert [row.tolist() for row in together] == [row.tolist() for row in alone]
    for document, row in zip(documents, together, strict=True):
        runs = {tuple(document[at : at + width]) for at in range(len(document) - width + 1)}
        assert len(row) == max(len(runs), 1)


def test_signatures_estimate_similarity_and_hang_on_nothing_else() -> None:
    base = [f"w{number}" for number in range(200)]
    half = [*base[:100], *[f"v{number}" for number in range(50)]]
    flat, offsets = sh.shingles([base, half], 1)
    signed = sh.signatures(flat, offsets, 1024)
    assert abs((signed[0] == signed[1]).mean() - 100 / 250) < 0.08  # five standard errors
    assert (sh.signatures(*sh.shingles([half], 1), 1024) == signed[1:]).all()
    assert sh.signatures(*sh.shingles([], 1), 16).shape == (0, 16)


def test_a_new_algorithm_in_the_library_is_noticed() -> None:
    """Signatures of another algorithm propose other pairs: raise the version in model/rewards/duplicate.py."""
    assert RMinHash.ALGORITHM_VERSION == 2


@pytest.mark.parametrize(("threshold", "permutations", "rows"), [(0.8, 128, 6), (1.0, 128, 128), (0.3, 16, 1)])
def test_bands_are_as_wide_as_the_recall_allows(threshold: float, permutations: int, rows: int) -> None:
    assert sh.rows_per_band(threshold, permutations) == rows


def test_band_keys_are_equal_where_band_and_salt_are() -> None:
    signed = np.array([[1, 2, 3, 4], [1, 2, 9, 9], [1, 2, 3, 4]], np.uint32)
    keys = sh.band_keys(signed, np.array([7, 7, 8], np.uint64), 2)
    assert keys.shape == (3, 2)
    assert keys[0, 0] == keys[1, 0]
    assert keys[0, 1] != keys[1, 1]
    assert len({*keys[0].tolist(), *keys[2].tolist()}) == 4  # another salt, and each band its own numbers
