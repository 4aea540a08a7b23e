"""Which problems are asked twice, and which samples of a problem say the same? The decisions, without any file.

Problems. Twins are: `same_text`, equal but for white space, whatever the gold (`same_text_other_gold` where the two
contradict each other); and `near_duplicate`, whose shingles are as alike as the threshold asks and which agree in
everything that makes another question of the same words: the same numbers (also spelled out), signs, LaTeX commands
and turning words (`least`, `not`, `odd`, …) in the same order, and, between maths problems, equal golds where both
have one. So problems made from one template with other numbers are no twins. What only brackets or other words tell
apart (`cos`, `Anna`) is told by the gold alone. MinHash bands propose pairs, the exact sets decide: an accident of
hashing costs a twin at most, never a problem. The first in order is kept, held-out problems come before all others.

Samples of one problem. Each is compared with all that were made before it: `same_text` but for white space, or
`near_duplicate` of one that gives the same answer (in maths; elsewhere of any). Numbers may differ. The score is
1 - the similarity to the most alike earlier sample, whatever that one answers.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.records import Problem
from model.rewards.answers.extraction import extract_answer
from model.rewards.answers.literal import compare_literally
from model.rewards.check import Judgement, Scored, failed, passed, unscorable
from model.rewards.settings import DuplicateSettings
from model.rewards.texts.shingles import (
    Hashes,
    band_keys,
    rows_of,
    rows_per_band,
    shingles,
    signatures,
    similarity,
    text_hashes,
    tokens,
)
from model.rewards.versions import version_string

NAME = "duplicate"
MOST_HELD = 500  # kept problems that a bucket remembers, the first ones: long boilerplate makes buckets of thousands
MOST_COMPARED = 64  # kept problems that one is compared with: those that it shares the most buckets with
_MARGIN = 0.15  # a signature of 128 slots is off by more than this once in 10^5 times
_MOST_VERIFIED = 8  # earlier samples whose shingles are compared exactly, the most alike by signature first

_NUMBER_WORDS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "thirteen": "13", "fourteen": "14",
    "fifteen": "15", "sixteen": "16", "seventeen": "17", "eighteen": "18", "nineteen": "19", "twenty": "20",
    "thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90",
}  # fmt: skip
_TURNING = frozenset(
    {
        "not", "no", "never", "without", "except", "hundred", "thousand", "million", "billion", "half", "third",
        "quarter", "fifth", "tenth", "twice", "thrice", "double", "triple", "dozen", "least", "most", "minimum",
        "maximum", "minimal", "maximal", "smallest", "largest", "greater", "less", "more", "fewer", "shortest",
        "longest", "even", "odd", "positive", "negative", "increasing", "decreasing", "before", "after", "first",
        "second", "last", "sum", "difference", "product", "sin", "cos", "tan",
    }
)  # fmt: skip
_SPACE = re.compile(r"\s+")


def version(settings: DuplicateSettings) -> str:
    """Of both kinds of verdicts."""
    return version_string(1, settings, DuplicateSettings())


def normal_form(text: str) -> str:
    """The text that `same_text` compares: composed Unicode, white space as single spaces."""
    return _SPACE.sub(" ", unicodedata.normalize("NFC", text)).strip()


def turning_points(found: Sequence[str]) -> str:
    """What makes another question of the same words: its numbers, signs, commands and turning words, in order."""
    kept = (_NUMBER_WORDS.get(token, token) for token in found)
    return " ".join(token for token in kept if token in _TURNING or not token.isalpha())


def golds_agree(one: Problem, other: Problem) -> bool:
    """Whether nothing in the golds says that the two ask for different things. Only maths golds are comparable."""
    if not one.gold or not other.gold or {one.domain, other.domain} != {"math"}:
        return True
    judgement = compare_literally(one.gold, other.gold)
    return judgement is not None and judgement.score == 1.0


@dataclass(frozen=True, slots=True)
class Twin:
    """What a problem repeats: the one that is kept, and how alike the two are, from the threshold to 1."""

    problem_id: str
    similarity: float
    reason: str


@dataclass(frozen=True, slots=True)
class _Candidate:
    problem: Problem
    shingles: Hashes
    text: str
    turning: str


class TwinSearch:
    """Finds twins among any number of problems that are shown twice, in the same batches.

    `learn` takes every batch once and keeps 8 bytes per band and problem (about 180 in all); `settle` then says which
    places (counted over all batches) share a bucket with another; only those are held as text, by `recall`; `twins`
    decides. Deterministic: the same problems in the same order give the same twins.
    """

    def __init__(self, settings: DuplicateSettings) -> None:
        self._settings = settings
        self._rows = rows_per_band(settings.threshold, settings.permutations)
        self._keys: list[Hashes] = []
        self._places: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._buckets: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._candidates: dict[int, _Candidate] = {}

    def learn(self, prompts: Sequence[str]) -> None:
        """Notes one batch's bands, and its texts as a band of its own."""
        found = [tokens(prompt) for prompt in prompts]
        salts = text_hashes([turning_points(one) for one in found])
        signed = signatures(*shingles(found, self._settings.shingle), self._settings.permutations)
        texts = text_hashes([normal_form(prompt) for prompt in prompts])
        self._keys.append(np.column_stack([texts, band_keys(signed, salts, self._rows)]))

    def settle(self) -> npt.NDArray[np.int64]:
        """The places of all problems that may have a twin, in order; nothing can be learnt after this."""
        bands = self._keys[0].shape[1] if self._keys else 0
        places, buckets, first = [self._places], [self._buckets], 0
        for band in range(bands):
            members, numbers = _shared(np.concatenate([keys[:, band] for keys in self._keys]))
            places.append(members)
            buckets.append(numbers + first)
            first += int(numbers[-1]) + 1 if len(numbers) else 0
        self._keys = []
        all_places, all_buckets = np.concatenate(places), np.concatenate(buckets)
        order = np.argsort(all_places, kind="stable")
        self._places, self._buckets = all_places[order], all_buckets[order]
        return np.unique(self._places)

    def recall(self, places: Sequence[int], problems: Sequence[Problem]) -> None:
        """Takes back the problems at some of the places that `settle` named."""
        found = [tokens(problem.prompt) for problem in problems]
        sets = rows_of(*shingles(found, self._settings.shingle))
        for place, problem, words, own in zip(places, problems, found, sets, strict=True):
            self._candidates[place] = _Candidate(problem, own, normal_form(problem.prompt), turning_points(words))

    def twins(self) -> Iterator[tuple[str, Twin]]:
        """Every problem that repeats a kept one, with that one; in the order of `_rank`, then of loading."""
        kept: dict[int, list[int]] = {}
        for place in sorted(self._candidates, key=lambda at: (_rank(self._candidates[at]), at)):
            mine = self._candidates[place]
            buckets = self._buckets_of(place)
            shared = Counter(other for bucket in buckets for other in kept.get(bucket, ()))
            twin = self._closest(mine, [other for other, _ in shared.most_common(MOST_COMPARED)])
            if twin is not None:
                yield mine.problem.problem_id, twin
            if twin is None or mine.problem.split != "train":
                for bucket in buckets:
                    others = kept.setdefault(bucket, [])
                    if len(others) < MOST_HELD:
                        others.append(place)

    def _buckets_of(self, place: int) -> list[int]:
        start, end = np.searchsorted(self._places, [place, place + 1])
        buckets: list[int] = self._buckets[start:end].tolist()
        return buckets

    def _closest(self, mine: _Candidate, others: Sequence[int]) -> Twin | None:
        """The most alike of the kept ones that are twins; of equally alike ones a held-out one, then the first."""
        found = []
        for place in others:
            other = self._candidates[place]
            alike = self._twin_similarity(mine, other)
            if alike is not None:
                found.append((-alike, _rank(other), place))
        if not found:
            return None
        alike, _, place = min(found)
        other = self._candidates[place]
        return Twin(other.problem.problem_id, -alike, _reason(mine, other))

    def _twin_similarity(self, mine: _Candidate, other: _Candidate) -> float | None:
        if mine.text == other.text:
            return 1.0
        if mine.turning != other.turning or not golds_agree(mine.problem, other.problem):
            return None
        alike = similarity(mine.shingles, other.shingles)
        return alike if alike >= self._settings.threshold else None


@dataclass(frozen=True, slots=True)
class Earlier:
    """A sample that was made before, as later ones of its problem are compared with it."""

    sample_id: str
    text: str


def judge_samples(items: Sequence[Scored], earlier: Sequence[Earlier], settings: DuplicateSettings) -> list[Judgement]:
    """One judgement for each sample of one problem, in the order in which they were made, after the `earlier` ones."""
    texts = [one.text for one in earlier] + [item.text for item in items]
    ids = [one.sample_id for one in earlier] + [item.sample_id for item in items]
    found = [tokens(text) for text in texts]
    flat, offsets = shingles(found, settings.shingle)
    compared = _Compared(ids, texts, found, rows_of(flat, offsets), signatures(flat, offsets, settings.permutations))
    is_maths = bool(items) and items[0].domain == "math"
    return [compared.judge(place, settings.threshold, is_maths) for place in range(len(earlier), len(texts))]


@dataclass(frozen=True, slots=True)
class _Compared:
    """All samples of one problem, side by side."""

    ids: Sequence[str]
    texts: Sequence[str]
    tokens: Sequence[Sequence[str]]
    shingles: Sequence[Hashes]
    signatures: npt.NDArray[np.uint32]

    def judge(self, place: int, threshold: float, is_maths: bool) -> Judgement:
        """The word on one sample, compared with those before it."""
        if not self.tokens[place]:
            return unscorable("no_words")
        if place == 0:
            return passed("first_made")
        alike = self._similarities(place, threshold)
        score = 1.0 - max(alike.values())
        equal = next((other for other in alike if alike[other] == 1.0 and self._same_text(place, other)), None)
        if equal is not None:
            return failed("same_text", 0.0, _detail(self.ids[equal], 1.0))
        twins = [other for other in alike if alike[other] >= threshold and self._same_answer(place, other, is_maths)]
        if twins:
            twin = max(twins, key=lambda other: alike[other])
            return failed("near_duplicate", score, _detail(self.ids[twin], alike[twin]))
        closest = max(alike, key=lambda other: alike[other])
        return passed("unlike", score, _detail(self.ids[closest], alike[closest]))

    def _similarities(self, place: int, threshold: float) -> dict[int, float]:
        """Exact similarity to the earlier samples that may be twins, and to the most alike one in any case."""
        estimates = (self.signatures[:place] == self.signatures[place]).mean(axis=1)
        order = np.argsort(-estimates, kind="stable")[:_MOST_VERIFIED].tolist()
        chosen = [order[0], *(other for other in order[1:] if estimates[other] >= threshold - _MARGIN)]
        return {other: similarity(self.shingles[place], self.shingles[other]) for other in sorted(chosen)}

    def _same_text(self, one: int, other: int) -> bool:
        return normal_form(self.texts[one]) == normal_form(self.texts[other])

    def _same_answer(self, one: int, other: int, is_maths: bool) -> bool:
        if not is_maths:
            return True
        mine, theirs = extract_answer(self.texts[one]), extract_answer(self.texts[other])
        return mine is None or theirs is None or mine.text == theirs.text


def _shared(keys: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The places whose key another place has as well, and for each the number of that key, from 0 upwards."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    groups = np.cumsum(is_first) - 1
    is_shared = np.bincount(groups)[groups] > 1
    _, numbers = np.unique(groups[is_shared], return_inverse=True)
    return order[is_shared].astype(np.int64), numbers.astype(np.int64)


def _rank(candidate: _Candidate) -> int:
    """Held-out problems come first, then those for validation."""
    return ("held_out", "validation", "train").index(candidate.problem.split)


def _reason(mine: _Candidate, other: _Candidate) -> str:
    if _rank(other) < _rank(mine):
        return f"twin_of_{other.problem.split}"
    if mine.text != other.text:
        return "near_duplicate"
    return "same_text" if golds_agree(mine.problem, other.problem) else "same_text_other_gold"


def _detail(twin: str, alike: float) -> str:
    return f"{twin} ({alike:.2f})"
