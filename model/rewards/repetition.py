"""Does a chain go round in circles? Two measures over its words, both from one pass over their n-grams.

Share: the share of word n-grams that stood in the chain before. Loop: the longest stretch that repeats, at once
and at least twice over, what stands right before it (`the the the`, a sentence or a whole paragraph again and
again), in words; found as a run of n-grams whose last occurrence is equally far back, so a loop shows from n words
on. n-grams without a word of letters say nothing: tables of digits repeat themselves and are no fault. Words are
compared as written, numbers included; a Chinese or Japanese character is a word; punctuation is no word, so
a row of dots is not seen. The last million characters are read, as a loop lasts to the end. Sorting makes the
time n log n in the words.
Source: R1's repetition detection in its cold-start data (arXiv 2501.12948); measures and thresholds are ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.rewards.check import Judgement, Scored, failed, passed
from model.rewards.settings import CheckSettings, RepetitionSettings
from model.rewards.versions import version_string

MAX_CHARACTERS = 1_000_000
_SPAN = 160  # characters of the loop that a verdict keeps
_COPIES = 3  # a sentence said twice may be meant

_UNSPACED = r"\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]{{1,64}}")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word's weight vanishes modulo 2^64


@dataclass(frozen=True, slots=True)
class Repetition:
    """Share of n-grams seen before, words of the longest loop, and the beginning of the repeated text."""

    share: float
    loop: int
    span: str | None


def judge_repetition(text: str, ngram: int = 20, most_share: float = 0.2, most_loop: int = 60) -> Judgement:
    """pass `varied`, fail `loop` or `repeated` (detail: how much, and the text). The score is 1 - share."""
    found = repetition(text, ngram)
    detail = f"{found.share:.3f} seen before, loop of {found.loop} words: {found.span}" if found.span else None
    if found.loop > most_loop:
        return failed("loop", score=1.0 - found.share, detail=detail)
    if found.share > most_share:
        return failed("repeated", score=1.0 - found.share, detail=detail)
    return passed("varied", score=1.0 - found.share, detail=detail)


def repetition(text: str, ngram: int = 20) -> Repetition:
    """Measure a text. Texts of fewer than `ngram` + 1 words have no repeated n-gram."""
    text = text[-MAX_CHARACTERS:]
    words = _WORD.findall(text)
    grams = len(words) - ngram + 1
    if grams < 2:
        return Repetition(0.0, 0, None)
    hashes = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)
    distance = _distances(_rolling(hashes, ngram))
    distance[~_has_letters(words, ngram)] = 0
    loop, start = _longest_loop(distance, ngram)
    seen = np.flatnonzero(distance)
    if not len(seen):
        return Repetition(0.0, 0, None)
    first = start if loop else int(seen[0])
    return Repetition(len(seen) / grams, loop, _span(text, first))


def _rolling(hashes: NDArray[np.uint64], ngram: int) -> NDArray[np.uint64]:
    """A polynomial of each n-gram's word hashes, modulo 2^64."""
    grams = len(hashes) - ngram + 1
    rolled = np.zeros(grams, np.uint64)
    for offset in range(ngram):
        rolled = rolled * _BASE + hashes[offset : offset + grams]
    return rolled


def _distances(grams: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many words back each n-gram stood last; 0 where it is new."""
    order = np.argsort(grams, kind="stable")
    is_again = grams[order][1:] == grams[order][:-1]
    distance = np.zeros(len(grams), np.int64)
    distance[order[1:][is_again]] = (order[1:] - order[:-1])[is_again]
    return distance


def _has_letters(words: list[str], ngram: int) -> NDArray[np.bool_]:
    """Per n-gram, whether a word of letters is in it (a single Latin letter is a variable)."""
    lettered = (word.isalpha() and (len(word) > 1 or word > "\u2e80") for word in words)
    counts = np.concatenate([[0], np.cumsum(np.fromiter(lettered, np.int64, len(words)))])
    return np.asarray(counts[ngram:] > counts[:-ngram])


def _longest_loop(distance: NDArray[np.int64], ngram: int) -> tuple[int, int]:
    """Words of the longest loop, its first copy included, and the word that it starts at; (0, 0) for none."""
    edges = np.concatenate([[0], np.flatnonzero(np.diff(distance)) + 1, [len(distance)]])
    starts, lengths = edges[:-1], np.diff(edges)
    periods = distance[starts]
    loops = np.where(periods > 0, lengths + ngram - 1 + periods, 0)
    loops[loops < _COPIES * periods] = 0
    best = int(np.argmax(loops))
    return int(loops[best]), int(starts[best] - periods[best]) if loops[best] else 0


def _span(text: str, word: int) -> str:
    for number, match in enumerate(_WORD.finditer(text)):
        if number == word:
            return text[match.start() : match.start() + _SPAN]
    return ""


class RepetitionCheck:
    """The check `repetition`, on the chain of thought where there is one and else on the whole text."""

    name = "repetition"

    def __init__(self, settings: CheckSettings) -> None:
        self.settings = settings.repetition
        self.version = version_string(1, settings.repetition, RepetitionSettings())

    def warm_up(self) -> None:
        pass

    def __call__(self, item: Scored) -> Judgement:
        limits = self.settings
        return judge_repetition(item.reasoning or item.text, limits.ngram, limits.most_share, limits.most_loop)
