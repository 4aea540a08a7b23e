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

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from model.rewards.check import Judgement, Scored, failed, passed
from model.rewards.settings import CheckSettings, RepetitionSettings
from model.rewards.texts.shingles import Hashes
from model.rewards.texts.words import WordNumbers, Words, code_points, rolling
from model.rewards.versions import version_string

MAX_CHARACTERS = 1_000_000
_SPAN = 160  # characters of the loop that a verdict keeps
_COPIES = 3  # a sentence said twice may be meant
_CJK = 0x2E80  # from there on one character is a word

_UNSPACED = r"\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_NUMBERS = WordNumbers(rf"[{_UNSPACED}]", rf"[^\W{_UNSPACED}]")


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
    words = _NUMBERS(text)
    grams = rolling(words.numbers, ngram)
    if _are_all_new(grams):
        return Repetition(0.0, 0, None)
    distance = _distances(grams)
    distance[~_has_letters(words, ngram)] = 0
    loop, start = _longest_loop(distance, ngram)
    seen = np.flatnonzero(distance)
    if not len(seen):
        return Repetition(0.0, 0, None)
    first = words.starts[start if loop else seen[0]]
    return Repetition(len(seen) / len(grams), loop, text[first : first + _SPAN])


def _are_all_new(grams: Hashes) -> bool:
    ordered = np.sort(grams)
    return bool((ordered[1:] != ordered[:-1]).all())


def _distances(grams: Hashes) -> NDArray[np.int64]:
    """How many words back each n-gram stood last; 0 where it is new."""
    order = np.argsort(grams, kind="stable")
    is_again = grams[order][1:] == grams[order][:-1]
    distance = np.zeros(len(grams), np.int64)
    distance[order[1:][is_again]] = (order[1:] - order[:-1])[is_again]
    return distance


def _has_letters(words: Words, ngram: int) -> NDArray[np.bool_]:
    """Per n-gram, whether a word of letters is in it (a single Latin letter is a variable)."""
    first = words.codes[words.starts]
    lettered = words.consist_of(_letters()) & ((words.lengths > 1) | (first > _CJK))
    counts = np.concatenate([[0], np.cumsum(lettered)])
    return np.asarray(counts[ngram:] > counts[:-ngram])


@cache
def _letters() -> NDArray[np.bool_]:
    return code_points(str.isalpha)


def _longest_loop(distance: NDArray[np.int64], ngram: int) -> tuple[int, int]:
    """Words of the longest loop, its first copy included, and the word that it starts at; (0, 0) for none."""
    edges = np.concatenate([[0], np.flatnonzero(np.diff(distance)) + 1, [len(distance)]])
    starts, lengths = edges[:-1], np.diff(edges)
    periods = distance[starts]
    loops = np.where(periods > 0, lengths + ngram - 1 + periods, 0)
    loops[loops < _COPIES * periods] = 0
    best = int(np.argmax(loops))
    return int(loops[best]), int(starts[best] - periods[best]) if loops[best] else 0


class RepetitionCheck:
    """The check `repetition`, on the chain of thought where there is one and else on the whole text."""

    name = "repetition"

    def __init__(self, settings: CheckSettings) -> None:
        self.settings = settings.repetition
        self.version = version_string(1, settings.repetition, RepetitionSettings())

    def warm_up(self) -> None:
        """Build the tables of characters."""
        judge_repetition("again and " * 20)

    def __call__(self, item: Scored) -> Judgement:
        limits = self.settings
        return judge_repetition(item.reasoning or item.text, limits.ngram, limits.most_share, limits.most_loop)
