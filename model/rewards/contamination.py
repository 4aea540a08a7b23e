r"""Does a text share a stretch of words with a benchmark's question or solution? R1's decontamination.

Texts are normalised first: lower case; LaTeX spacing and delimiters, punctuation and white space dropped; numbers
and commands' names kept (`\frac{1}{2}` is `frac 1 2`). Two rules then:
- n words in a row (10) that stand in a benchmark's question or solution. Where no spaces are written, 2n characters.
  Numbers alone say nothing: at least half of the words must be others.
  A stretch that, whatever its numbers, stands in many items of the benchmark is boilerplate ("answer the following
  question …") and says nothing. A hit is compared word by word, so two equal hashes are never a hit.
- a text that is, as a whole, a benchmark's question; here + - * / = < > ^ count, since they tell short ones apart.
  So a question shorter than n words is found where it is the whole text, and not inside a longer one.
Not found: paraphrases, translations, and short lines inside longer texts. An index holds about 22 bytes per n-gram
and the items' texts; a match is linear in the text's words. Only a text's first million characters are read.
Source: R1 (arXiv 2501.12948): 10-grams against questions and reference solutions; the boilerplate rule is ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.records import Problem
from model.rewards.check import Judgement, Scored, failed, passed, unscorable
from model.rewards.settings import CheckSettings, ContaminationSettings
from model.rewards.texts.benchmark_files import BenchmarkItem, files_digest, read_benchmark
from model.rewards.texts.shingles import Hashes
from model.rewards.texts.words import WordNumbers, Words, code_points, rolling
from model.rewards.versions import version_string

HELD_OUT = "builtin:held_out"  # the dataset's own held-out problems: whoever checks problems has them
MAX_CHARACTERS = 1_000_000
_LEAST_ITEMS = 3  # fewer items with the same words are no boilerplate
_SIEVE = 4  # least slots by n-gram: a match looks few others up
_SPAN = 300  # characters of the shared stretch that a verdict keeps

# Every alternative starts with a character of its own, which lets the search skip ordinary text at once.
_SPACING = re.compile(r"\\(?:[,;:!> ]|quad\b|qquad\b|left\b|right\b|displaystyle\b)|\$|~")
_UNSPACED = r"\u0e00-\u0e7f\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_NUMBERS = WordNumbers(rf"[{_UNSPACED}]", rf"[^\W_{_UNSPACED}]")
_WHOLE = re.compile(rf"{_NUMBERS.pattern.pattern}|[-+*/=<>^]")


@dataclass(frozen=True, slots=True)
class Match:
    """A benchmark's item, the words it shares with a text (normalised, the whole stretch), and their number."""

    item: str
    span: str
    words: int


class ContaminationIndex:
    """Hashed n-grams of benchmark items, and their questions as wholes. Made by `build`."""

    def __init__(self, names: list[str], texts: list[str], ngram: int) -> None:
        self.ngram, self._names, self._texts = ngram, names, texts
        self._hashes: Hashes = np.zeros(0, np.uint64)
        self._places = np.zeros(0, np.int64)  # text number * 2^32 + first word, per hash
        self._sieve = np.zeros(1, np.bool_)  # by a hash's last bits, whether any of ours ends so
        self._whole: dict[str, int] = {}  # normalised question -> its text's number
        self._whole_words: set[int] = set()  # numbers of words that those have
        self._longest = 2 * max(map(len, texts), default=0)  # characters; a longer text is no question as a whole

    @classmethod
    def build(cls, items: Iterable[BenchmarkItem], ngram: int = 10, boilerplate: float = 0.01) -> ContaminationIndex:
        """Index all items. Text of an item is its question and its solution, as two texts."""
        names: list[str] = []
        texts: list[str] = []
        owners: list[int] = []
        whole: dict[str, int] = {}
        count = 0
        for item in items:
            for text in filter(str.strip, (item.question, item.solution)):
                if text is item.question and (key := _whole_key(text)):
                    whole.setdefault(key, len(texts))
                names.append(item.name)
                texts.append(text[:MAX_CHARACTERS])
                owners.append(count)
            count += 1
        index = cls(names, texts, ngram)
        index._whole = whole
        index._whole_words = {len(_NUMBERS.pattern.findall(key)) for key in whole}
        index._hash_texts(owners, boilerplate * count)
        return index

    def __len__(self) -> int:
        """N-grams held."""
        return len(self._hashes)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compare with."""
        return not self._texts

    @property
    def bytes_held(self) -> int:
        """Memory of the n-grams' arrays; the items' texts come on top."""
        return self._hashes.nbytes + self._places.nbytes + self._sieve.nbytes

    def match(self, text: str) -> Match | None:
        """The first shared stretch, or the item whose question the text is, or None. Linear in the text."""
        text = text[:MAX_CHARACTERS]
        plain = _plain(text)
        words = _NUMBERS(plain)
        known = self._known(text, len(words.numbers))
        if known is not None:
            spelt = _spelt(plain)
            return Match(self._names[known], " ".join(spelt)[:_SPAN], len(spelt))
        for length, starts, hashes in _grams(words, self.ngram):
            found = self._first(plain, length, starts, hashes)
            if found is not None:
                return found
        return None

    def _known(self, text: str, words: int) -> int | None:
        """The number of the question that the text is; only one of as many words can be that."""
        if len(text) > self._longest or words not in self._whole_words:
            return None
        return self._whole.get(_whole_key(text))

    def _first(self, plain: str, length: int, starts: NDArray[np.int64], hashes: Hashes) -> Match | None:
        if not len(self._hashes):
            return None
        maybe = np.flatnonzero(self._sieve[hashes % self._sieve.size])
        places = np.minimum(np.searchsorted(self._hashes, hashes[maybe]), len(self._hashes) - 1)
        is_hit = self._hashes[places] == hashes[maybe]
        if not is_hit.any():
            return None
        ours = _spelt(plain)
        for start, place in zip(starts[maybe[is_hit]].tolist(), places[is_hit].tolist(), strict=True):
            number, first = divmod(int(self._places[place]), 1 << 32)
            shared = _shared(ours, start, _spelt(_plain(self._texts[number])), first)
            if shared >= length:
                span = " ".join(ours[start : start + shared])
                return Match(self._names[number], span[:_SPAN], shared)
        return None

    def _hash_texts(self, owners: list[int], most_items: float) -> None:
        hashes, places, skeletons, held_by = [], [], [], []
        for number, text in enumerate(self._texts):
            words = _NUMBERS(_plain(text))
            are_numbers = _digits().take(words.codes[words.starts])
            skeleton = np.where(are_numbers, np.uint64(0), words.numbers)
            for length, starts, grams in _grams(words, self.ngram):
                says = _says_something(are_numbers, length)[starts]
                hashes.append(grams[says])
                places.append((number << 32) + starts[says])
                skeletons.append(rolling(skeleton, length)[starts[says]])
                held_by.append(np.full(len(hashes[-1]), owners[number], np.int64))
        if not hashes:
            return
        is_kept = ~_is_common(np.concatenate(skeletons), np.concatenate(held_by), most_items)
        kept, first = np.unique(np.concatenate(hashes)[is_kept], return_index=True)
        self._hashes, self._places = kept, np.concatenate(places)[is_kept][first]
        self._sieve = np.zeros(1 << (_SIEVE * len(kept)).bit_length(), np.bool_)
        self._sieve[kept % self._sieve.size] = True


def _plain(text: str) -> str:
    """Normalised but for what stands between words."""
    if "\\" in text or "$" in text or "~" in text:
        text = _SPACING.sub(" ", text)
    return text.lower()


def _spelt(plain: str) -> list[str]:
    """The words of a normalised text, as the numbers count them."""
    return _NUMBERS.pattern.findall(plain)


def _whole_key(text: str) -> str:
    return " ".join(_WHOLE.findall(_SPACING.sub(" ", text).lower()))


def _says_something(are_numbers: NDArray[np.bool_], length: int) -> NDArray[np.bool_]:
    """Per n-gram, whether at least half of its words are no numbers: lists of numbers agree by chance."""
    numbers = np.concatenate([[0], np.cumsum(are_numbers)])
    return np.asarray(2 * (numbers[length:] - numbers[:-length]) <= length)


@cache
def _digits() -> NDArray[np.bool_]:
    """What a number starts with."""
    return code_points(str.isdigit)


def _grams(words: Words, ngram: int) -> list[tuple[int, NDArray[np.int64], Hashes]]:
    """Length in words, first words and hashes of a text's n-grams: n words, or 2n where most are characters."""
    if len(words.numbers) < ngram:
        return []
    rolled = rolling(words.numbers, ngram)
    of_characters = words.are_unspaced
    if not of_characters.any():
        return [(ngram, np.arange(len(rolled)), rolled)]
    counts = np.concatenate([[0], np.cumsum(of_characters)])
    spaced = np.flatnonzero(2 * (counts[ngram:] - counts[:-ngram]) <= ngram)
    found = [(ngram, spaced, rolled[spaced])]
    if len(words.numbers) >= 2 * ngram:
        unspaced = np.flatnonzero(counts[2 * ngram :] - counts[: -2 * ngram] > ngram)
        found.append((2 * ngram, unspaced, rolling(words.numbers, 2 * ngram)[unspaced]))
    return found


def _is_common(skeletons: Hashes, owners: NDArray[np.int64], most_items: float) -> NDArray[np.bool_]:
    """Per n-gram, whether more items than `most_items`, and at least three, hold its words but for the numbers."""
    order = np.lexsort((owners, skeletons))
    ordered, owned = skeletons[order], owners[order]
    starts_skeleton = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    starts_item = starts_skeleton | np.concatenate([[True], owned[1:] != owned[:-1]])
    group = np.cumsum(starts_skeleton) - 1
    items = np.bincount(group[starts_item])
    common = np.zeros(len(skeletons), np.bool_)
    common[order] = ((items > most_items) & (items >= _LEAST_ITEMS))[group]
    return common


def _shared(ours: list[str], start: int, theirs: list[str], first: int) -> int:
    """How many words agree from there on."""
    shared = 0
    for our, their in zip(ours[start:], theirs[first:], strict=False):
        if our != their:
            break
        shared += 1
    return shared


def benchmark_items(files: Sequence[str]) -> Iterator[BenchmarkItem]:
    """The items of all files but `builtin:held_out`. CheckError for a file that cannot be used."""
    for path in _paths(files):
        yield from read_benchmark(path)


def _paths(files: Sequence[str]) -> list[Path]:
    return [Path(file) for file in files if file != HELD_OUT]


def version(settings: ContaminationSettings) -> str:
    """The verdicts' version: rules, settings, and the files' contents. CheckError for a file that is missing."""
    paths = _paths(settings.files)
    rules = version_string(1, settings, ContaminationSettings())
    return f"{rules}.{files_digest(paths)}" if paths else rules


def judge_text(text: str, index: ContaminationIndex, reason: str = "overlap") -> Judgement:
    """pass `no_overlap`, fail with `reason` (detail: the item and the shared words), unscorable `no_benchmark`."""
    if index.is_empty:
        return unscorable("no_benchmark")
    found = index.match(text)
    if found is None:
        return passed("no_overlap")
    return failed(reason, detail=f"{found.item}: {found.span}")


def judge_problem(problem: Problem, index: ContaminationIndex) -> Judgement:
    """The prompt first (`prompt_overlap`), then the gold answer (`gold_overlap`)."""
    judgement = judge_text(problem.prompt, index, "prompt_overlap")
    if judgement.verdict != "pass" or not problem.gold:
        return judgement
    return judge_text(problem.gold, index, "gold_overlap")


class ContaminationCheck:
    """The check `contamination` of samples: the whole completion. Each worker holds an index of its own.

    `builtin:held_out` is left out here: a sample's check knows no dataset, and problems are checked for it.
    CheckError for a file that is missing or unusable.
    """

    name = "contamination"

    def __init__(self, settings: CheckSettings) -> None:
        self.settings = settings.contamination
        self._index: ContaminationIndex | None = None
        self.version = version(self.settings)

    def warm_up(self) -> None:
        """Read the files and build the index."""
        self._index = ContaminationIndex.build(
            benchmark_items(self.settings.files), self.settings.ngram, self.settings.boilerplate
        )

    def __call__(self, item: Scored) -> Judgement:
        if self._index is None:
            self.warm_up()
        assert self._index is not None
        return judge_text(item.text, self._index)
