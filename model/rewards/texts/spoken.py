"""Which language is a piece of text in? Scripts by their characters, languages of one script word by word.

The characters decide the script; most scripts have one language here, and kana decide between Japanese and
Chinese. Languages that share a script (`LANGUAGES`) are told apart by py3langid, a naive Bayes model over byte
n-grams that ships its weights: its score of a text is, but for n-grams across spaces, the sum of the scores of
its words. So each distinct word is scored once per process and a piece is a sum of rows of a table, which costs a
quarter of scoring the piece whole and, on short pieces of maths, errs little more (benchmarks/text_checks.json).
A piece is a stretch of one script within a paragraph, cut at sentence ends where MIN_LETTERS have come together.
Not told: borrowed words, dialects, languages and scripts outside `LANGUAGES` (the scripts of the second half of
Asia and of Africa are seen as `other`). Time grows with the text and with its distinct words.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_LETTERS = 30  # a shorter piece in the target's own script is not judged: it could be a name or a formula
MIN_WORDS = 5  # and one of fewer words neither
MIN_UNSPACED = 10  # the same for scripts whose characters say more
MAX_LETTERS = 400  # a longer piece is cut even inside a sentence
SURE = 0.97  # probability from which a piece counts as in another language than the one asked for
LIKELY = 0.8  # the same for the language of a question, which may be short: from LEAST_WORDS on
LEAST_WORDS, LEAST_CHARACTERS = 3, 5
_KANA_SHARE = 0.05  # least share of kana in a Japanese piece; Chinese has none
_MOST_ROWS = 200_000  # words that are remembered; then the table starts anew

LANGUAGES: dict[str, tuple[str, ...]] = {
    "latin": ("cs", "de", "en", "es", "fr", "id", "it", "nl", "pl", "pt", "ro", "sv", "tr", "vi"),
    "han_kana": ("ja", "zh"),
    "hangul": ("ko",),
    "cyrillic": ("bg", "ru", "uk"),
    "arabic": ("ar", "fa", "ur"),
    "devanagari": ("hi", "mr"),
    "greek": ("el",),
    "hebrew": ("he",),
    "thai": ("th",),
    "other": (),
}
SCRIPT_OF = {code: script for script, codes in LANGUAGES.items() for code in codes}
UNSPACED = ("han_kana", "thai")

_LETTERS = {
    "latin": r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\u0300-\u036f",
    "han_kana": r"\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
    "hangul": r"\u1100-\u11ff\uac00-\ud7af",
    "cyrillic": r"\u0400-\u052f",
    "arabic": r"\u0600-\u06ff",
    "devanagari": r"\u0900-\u097f",
    "greek": r"\u0370-\u03ff",
    "hebrew": r"\u0590-\u05ff",
    "thai": r"\u0e00-\u0e7f",
    "other": r"\u0530-\u058f\u0980-\u0dff\u0e80-\u10ff\u1200-\u139f\u1780-\u18af",
}
_SCRIPTS = tuple(LANGUAGES)
_BREAK, _PARAGRAPH = -1, -2  # what a sentence's end and a line break have for a script
_COLUMNS = max(map(len, LANGUAGES.values()))
_IS_UNSPACED = np.array([script in UNSPACED for script in LANGUAGES])
_NAMES = np.array(_SCRIPTS, np.object_)
_CODES = np.array([[*codes, *[None] * (_COLUMNS - len(codes))] for codes in LANGUAGES.values()], np.object_)
_HAS_LANGUAGE = np.array([[column < len(codes) for column in range(_COLUMNS)] for codes in LANGUAGES.values()])


def _words_of(script: str) -> str:
    """A word's pattern: two letters or more, as one letter is a variable, unless the script writes no spaces."""
    chars = _LETTERS[script]
    if script in UNSPACED:
        return rf"[{chars}]{{1,64}}+"
    # What runs into a digit or an underscore is a variable's name. (To look behind as well costs half as much again.)
    return rf"[{chars}]{{2,64}}+(?:['’][{chars}]{{1,64}}+)?(?![\d_])"


_ENDS = r"\n|[.!?;:](?=\s)|[。！？；：]"
_END = re.compile(_ENDS)
_LATIN_TOKEN = re.compile(f"{_words_of('latin')}|{_ENDS}")
_TOKEN = re.compile("|".join([*map(_words_of, _SCRIPTS), _ENDS]))
_NOT_LATIN = re.compile("[" + "".join(chars for script, chars in _LETTERS.items() if script != "latin") + "]")
_SCRIPT_AT_START = {script: re.compile(f"[{chars}]") for script, chars in _LETTERS.items()}
_KANA = re.compile(r"[\u3040-\u30ff]")


class Piece(NamedTuple):
    """Neighbouring words of one script in one paragraph. `chances`: probability by LANGUAGES[script], then zeros.

    `language` is the likeliest one, None where the script has none here; `chance` its probability. `words` are
    characters where the script writes no spaces; `first` and `last` count the text's tokens. A tuple, since a long
    text has hundreds of them and a frozen dataclass takes three times as long to make.
    """

    script: str
    paragraph: int
    words: int
    letters: int
    first: int
    last: int
    language: str | None
    chance: float
    chances: list[float]

    @property
    def is_long_enough(self) -> bool:
        """Whether its language can be told within its script."""
        if self.script in UNSPACED:
            return self.letters >= MIN_UNSPACED
        return self.letters >= MIN_LETTERS and self.words >= MIN_WORDS

    def is_in(self, language: str) -> bool | None:
        """True, False where it surely is not, None where nothing can be said.

        A few Latin words in another script are names, units or terms: nothing can be said of them.
        """
        if SCRIPT_OF[language] != self.script:
            return None if self.script == "latin" and not self.is_long_enough else False
        chance = self.chances[LANGUAGES[self.script].index(language)]
        if chance >= 0.5:
            return True
        return False if chance <= 1.0 - SURE and self.is_long_enough else None


class Reading:
    """A text's pieces, and the text itself so that a piece can be shown as it stands there."""

    def __init__(self, text: str, pieces: list[Piece]) -> None:
        self.text, self.pieces = text, pieces
        self._tokens: list[tuple[int, int]] = []

    def span(self, piece: Piece, most: int = 160) -> str:
        """The piece as it is written, its first `most` characters. The first call goes over the text once more."""
        if not self._tokens:
            self._tokens = [token.span() for token in _pattern(self.text).finditer(self.text)]
        start, end = self._tokens[piece.first][0], self._tokens[piece.last][1]
        return self.text[start : min(end, start + most)]


def read(text: str) -> Reading:
    """Cut masked text into pieces and give each its languages' chances."""
    tokens = _pattern(text).findall(text)
    if not tokens:
        return Reading(text, [])
    table = _table()
    rows = table.rows_of(tokens)
    return Reading(text, _pieces(table, rows, _join(table.script[rows], table.letters[rows])))


def language_of(text: str) -> str | None:
    """The language that most of a masked question's words are in, or None where there are too few to tell."""
    counts: dict[str, int] = {}
    for piece in read(_END.sub(" ", text)).pieces:
        least = LEAST_CHARACTERS if piece.script in UNSPACED else LEAST_WORDS
        if piece.language and piece.words >= least and piece.chance >= LIKELY:
            counts[piece.language] = counts.get(piece.language, 0) + piece.words
    return max(counts, key=counts.__getitem__) if counts else None


def _pattern(text: str) -> re.Pattern[str]:
    return _TOKEN if _NOT_LATIN.search(text) else _LATIN_TOKEN


class WordTable:
    """One row per distinct word: its script, letters, bytes, and a score per language of its script."""

    def __init__(self) -> None:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self._modelled = {script for script, codes in LANGUAGES.items() if len(codes) > 1 and script != "han_kana"}
        self._identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE)
        self._identifier.set_languages([code for script in self._modelled for code in LANGUAGES[script]])
        self._clear()

    def _clear(self) -> None:
        self.row_of: dict[str, int] = {}
        self.script = np.zeros(1024, np.int8)
        self.letters = np.zeros(1024, np.int32)
        self.bytes = np.zeros(1024, np.int32)
        self.scores = np.zeros((1024, _COLUMNS), np.float32)

    def rows_of(self, tokens: list[str]) -> NDArray[np.int64]:
        """The tokens' rows; words not met before are scored first."""
        if len(self.row_of) > _MOST_ROWS:
            self._clear()
        for word in set(tokens).difference(self.row_of):
            self._learn(word)
        return np.fromiter(map(self.row_of.__getitem__, tokens), np.int64, len(tokens))

    def _learn(self, word: str) -> None:
        row = self.row_of[word] = len(self.row_of)
        if row == len(self.script):
            self._grow()
        script = _script(word)
        self.script[row] = script
        if script < 0:
            return
        self.letters[row] = len(word)
        self.bytes[row] = len(word.encode("utf-8", "surrogatepass")) + 2  # its spaces, which the model reads
        scores = self._scores(_SCRIPTS[script], word)
        self.scores[row, : len(scores)] = scores

    def _grow(self) -> None:
        for name in ("script", "letters", "bytes", "scores"):
            held = getattr(self, name)
            setattr(self, name, np.concatenate([held, np.zeros_like(held)]))

    def _scores(self, script: str, word: str) -> list[float]:
        """Log-likelihood per language, up to a constant; for han_kana the number of kana, then of characters."""
        if script == "han_kana":
            return [float(len(_KANA.findall(word))), float(len(word))]
        if script not in self._modelled:
            return []
        ranked = dict(self._identifier.rank(f" {word.lower()} "))
        scores = [ranked[code] for code in LANGUAGES[script]]
        best = max(scores)
        return [score - best for score in scores]


def _script(token: str) -> int:
    if token == "\n":
        return _PARAGRAPH
    for number, script in enumerate(_SCRIPTS):
        if _SCRIPT_AT_START[script].match(token):
            return number
    return _BREAK


@cache
def _table() -> WordTable:
    return WordTable()


class _Joiner:
    """Puts neighbouring groups of tokens together to pieces; a group is tokens of one kind in a row."""

    def __init__(self, letters: NDArray[np.int64]) -> None:
        self.letters, self.before = letters, letters.tolist()  # letters before each token; a list is read faster
        self.spans: list[tuple[int, int, int]] = []
        self.paragraph = 0
        self.start, self.end, self.script = -1, -1, _BREAK

    def add(self, kind: int, start: int, end: int) -> None:
        """The next group; a sentence's end closes a piece that is long enough, another script any piece."""
        if kind == _BREAK:
            if self._letters() >= _least_letters(self.script):
                self.close()
            return
        if kind != self.script:
            self.close()
        if kind == _PARAGRAPH:
            self.paragraph += end - start
            return
        if self.start < 0:
            self.start, self.script = start, kind
        self.end = end

    def close(self) -> None:
        """End the piece that is open, if any, and cut it where it is too long."""
        if self.start < 0:
            return
        if self._letters() <= MAX_LETTERS:
            self.spans.append((self.start, self.end, self.paragraph))
        else:
            self.spans += self._parts()
        self.start, self.script = -1, _BREAK

    def _parts(self) -> list[tuple[int, int, int]]:
        """The open piece in parts of MAX_LETTERS."""
        goals = np.arange(self.letters[self.start], self.letters[self.end], MAX_LETTERS)
        firsts = np.unique(np.searchsorted(self.letters[: self.end], goals)).tolist()
        cuts = [*(first for first in firsts if first < self.end), self.end]
        return [(start, end, self.paragraph) for start, end in pairwise(cuts)]

    def _letters(self) -> int:
        return self.before[self.end] - self.before[self.start] if self.start >= 0 else 0


def _join(script: NDArray[np.int8], letters: NDArray[np.int32]) -> list[tuple[int, int, int]]:
    """First token, token after the last, and paragraph of every piece."""
    edges = (np.flatnonzero(np.diff(script)) + 1).tolist()
    joiner = _Joiner(np.concatenate([[0], np.cumsum(letters, dtype=np.int64)]))
    kinds = script[[0, *edges]].tolist()
    for kind, (start, end) in zip(kinds, pairwise([0, *edges, len(script)]), strict=True):
        joiner.add(kind, start, end)
    joiner.close()
    return joiner.spans


def _least_letters(script: int) -> int:
    return MIN_UNSPACED if script >= 0 and _SCRIPTS[script] in UNSPACED else MIN_LETTERS


def _pieces(table: WordTable, rows: NDArray[np.int64], spans: list[tuple[int, int, int]]) -> list[Piece]:
    """Sum the tokens' rows over each span. Breaks inside a span are rows of zeros."""
    if not spans:
        return []
    found = np.array(spans)
    (first, end, paragraph), edges = found.T, found[:, :2].ravel()
    script = table.script[rows][first]
    letters = _sums(table.letters[rows], edges).astype(np.int64)
    words = _sums(table.script[rows] >= 0, edges).astype(np.int64)
    once = _first_of_its_piece(rows, edges)
    scores, length = table.scores[rows] * once[:, None], table.bytes[rows] * once
    chances = _chances(script, _sums(scores, edges), _sums(length, edges))
    counts = np.where(_IS_UNSPACED[script], letters, words)
    told = (_CODES[script, chances.argmax(axis=1)], chances.max(axis=1), chances)
    columns = (_NAMES[script], paragraph, counts, letters, first, end - 1, *told)
    return list(map(Piece._make, zip(*(column.tolist() for column in columns), strict=True)))


def _first_of_its_piece(rows: NDArray[np.int64], edges: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Per token, whether its word is new to its piece: a word said five times tells no more than once."""
    steps = np.zeros(len(rows) + 1, np.int64)
    steps[edges] = 1  # two pieces may share an edge; which piece it is does not matter, only that they differ
    keys = np.cumsum(steps[:-1]) * (int(rows.max()) + 1) + rows
    once = np.zeros(len(rows), np.bool_)
    once[np.unique(keys, return_index=True)[1]] = True
    return once


def _sums(values: NDArray[Any], edges: NDArray[np.int64]) -> NDArray[Any]:
    """Sums over [edges[0], edges[1]), [edges[2], edges[3]), … along the first axis."""
    closed = np.concatenate([values.astype(np.float64), np.zeros((1, *values.shape[1:]))])
    return np.add.reduceat(closed, edges)[::2]


def _chances(
    script: NDArray[np.int8], scores: NDArray[np.float64], bytes_read: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Softmax at temperature √bytes, py3langid's own; kana decide where there is no model. Columns as LANGUAGES."""
    han = script == _SCRIPTS.index("han_kana")
    is_chinese = scores[han, 0] < _KANA_SHARE * scores[han, 1]
    scores = np.where(_HAS_LANGUAGE[script], scores, -np.inf)
    best = scores.max(axis=1, keepdims=True)
    weights = np.exp((scores - np.where(np.isfinite(best), best, 0.0)) / np.sqrt(bytes_read)[:, None])
    chances: NDArray[np.float64] = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
    chances[han, 0], chances[han, 1] = ~is_chinese, is_chinese
    return chances
