r"""A text's words as numbers, without making strings of them: what repeated and shared stretches are found by.

A word is one character of a script without spaces, or up to 64 others in a row; which characters those are is said by
two classes of a regular expression, and the words are exactly those that `unspaced|spaced{1,64}` finds. A word's number
has 64 bits and is the same in every process: its characters' code points, each by a weight of its place, summed and
mixed; two different words have the same one about once in 2^64 times. Memory: some 40 bytes per character, for a while.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from model.rewards.texts.shingles import Hashes, mixed

_LONGEST = 64  # characters; what is longer is several words
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word's weight vanishes modulo 2^64
_EVERYTHING = range(0x110000)  # code points
_WEIGHTS = mixed(np.arange(_LONGEST, dtype=np.uint64))  # of a word's characters, by their place
_SPACED, _UNSPACED = 1, 2  # kinds of characters; 0 stands between words


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one text. `starts`: the character that each begins at; `kinds`: what each character is to words."""

    numbers: Hashes
    starts: NDArray[np.int64]
    codes: NDArray[np.uint32]
    kinds: NDArray[np.uint8]

    @property
    def are_unspaced(self) -> NDArray[np.bool_]:
        """Per word, whether it is one character of a script without spaces."""
        return np.asarray(self.kinds[self.starts] == _UNSPACED)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Characters of each word."""
        return self._sums(self.kinds > 0)

    def consist_of(self, table: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Per word, whether all its characters are in the table (`code_points`)."""
        return np.asarray(self._sums((self.kinds > 0) & ~table.take(self.codes)) == 0)

    def _sums(self, characters: NDArray[np.bool_]) -> NDArray[np.int64]:
        if not len(self.starts):  # which reduceat does not allow
            return np.zeros(0, np.int64)
        return np.add.reduceat(characters, self.starts, dtype=np.int64)


class WordNumbers:
    """Finds words and numbers them. `unspaced`, `spaced`: one character each, as a class of a regular expression."""

    def __init__(self, unspaced: str, spaced: str) -> None:
        self.pattern = re.compile(rf"{unspaced}|{spaced}{{1,{_LONGEST}}}")
        self._characters = {_SPACED: spaced, _UNSPACED: unspaced}

    def __call__(self, text: str) -> Words:
        """The text's words."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = self._kinds.take(codes)
        starts, places = _places(kinds)
        weighted = (codes * (kinds > 0)) * _WEIGHTS.take(places)
        sums = np.add.reduceat(weighted, starts) if len(starts) else weighted[:0]
        return Words(mixed(sums), starts, codes, kinds)

    @cached_property
    def _kinds(self) -> NDArray[np.uint8]:
        """Of every code point: a tenth of a second once, and a megabyte that is kept."""
        kinds = np.zeros(len(_EVERYTHING), np.uint8)
        everything = np.arange(len(_EVERYTHING), dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
        for kind, characters in self._characters.items():
            for run in re.finditer(f"{characters}+", everything):
                kinds[run.start() : run.end()] = kind
        return kinds


def code_points(is_in: Callable[[str], bool]) -> NDArray[np.bool_]:
    """A table of all code points: a tenth of a second."""
    return np.fromiter((is_in(chr(code)) for code in _EVERYTHING), np.bool_, len(_EVERYTHING))


def _places(kinds: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where words start, and per character how far it is from its word's start, modulo _LONGEST."""
    is_start = kinds > 0
    is_start[1:] &= (kinds[1:] == _UNSPACED) | (kinds[:-1] != _SPACED)
    every = np.arange(len(kinds))
    places = every - np.maximum.accumulate(every * is_start)
    if places.max(initial=0) >= _LONGEST:
        is_start |= (kinds == _SPACED) & (places % _LONGEST == 0)
        places %= _LONGEST
    return np.flatnonzero(is_start), places


def rolling(numbers: Hashes, ngram: int) -> Hashes:
    """A polynomial of each n-gram's numbers, modulo 2^64; none where there are fewer words."""
    grams = max(len(numbers) - ngram + 1, 0)
    rolled = np.zeros(grams, np.uint64)
    for offset in range(ngram):
        rolled = rolled * _BASE + numbers[offset : offset + grams]
    return rolled
