"""What share of a chain's words is in the target language? R1's language-consistency measure.

Maths, code and markup are masked; the rest is cut into pieces of one script each. A piece in a script that
the target language does not use is foreign by that alone; one in its own script goes to lingua (low-accuracy
mode: trigram models of a few languages that share a script; measured: 15 MB, 0.1 s to load, 1 to 2 s per
million characters). Pieces that lingua is not sure of count for neither side. With fewer than ten words left
nothing can be told: `unscorable`, never a fail. Score: target words / (target + foreign words); a Chinese,
Japanese or Thai character counts as a word. Only the first 200,000 characters are read. Borrowed single words
are not found.
Source: R1's language reward (arXiv 2501.12948); the thresholds are ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from model.errors import CheckError
from model.rewards.check import Judgement, Scored, failed, passed, unscorable
from model.rewards.settings import CheckSettings, LanguageSettings
from model.rewards.versions import version_string

MAX_CHARACTERS = 200_000
MIN_WORDS = 10
MIN_LETTERS = 30  # a shorter piece is joined to the next of its script and paragraph
MIN_UNSPACED = 10  # the same for scripts whose characters say more
MAX_LETTERS = 400  # a longer one is cut even inside a sentence
SURE = 0.75  # lingua's confidence from which a piece counts as foreign
_SPAN = 160  # characters of the offending piece that a verdict keeps

# Per script: its characters, and the languages that are told apart in it (ISO 639-1).
_SCRIPTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "latin": (r"A-Za-z\u00c0-\u024f\u1e00-\u1eff", ("en", "de", "fr", "es", "it", "pt")),
    "han_kana": (r"\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff", ("zh", "ja")),
    "hangul": (r"\u1100-\u11ff\uac00-\ud7af", ("ko",)),
    "cyrillic": (r"\u0400-\u052f", ("ru", "uk")),
    "arabic": (r"\u0600-\u06ff", ("ar", "fa")),
    "devanagari": (r"\u0900-\u097f", ("hi", "mr")),
    "greek": (r"\u0370-\u03ff", ("el",)),
    "hebrew": (r"\u0590-\u05ff", ("he",)),
    "thai": (r"\u0e00-\u0e7f", ("th",)),
}
_UNSPACED = ("han_kana", "thai")
# Possible targets that are not looked for otherwise: each language more costs a tenth of the time.
_MORE_TARGETS = {
    "latin": ("nl", "sv", "pl", "cs", "ro", "tr", "vi", "id"),
    "cyrillic": ("bg",),
    "arabic": ("ur",),
}
SCRIPT_OF = {
    code: script for script, (_, codes) in _SCRIPTS.items() for code in (*codes, *_MORE_TARGETS.get(script, ()))
}

_RUN = re.compile(
    "|".join(rf"(?P<{name}>[{chars}]{{1,64}}(?:['’][{chars}]{{1,64}})*)" for name, (chars, _) in _SCRIPTS.items())
)
_SENTENCE = re.compile(r"[.!?;:。！？；：]+(?:\s|$)|[。！？；]|\n")
_FENCES = (("```", "```"), ("$$", "$$"), (r"\[", r"\]"), (r"\(", r"\)"))
_MARKUP = re.compile(r"\$[^$\n]{1,500}\$|`[^`\n]{1,500}`|\\[A-Za-z]+|</?[a-z]+>|https?://\S+|\b[^\W\d_]*+[\d_]\w*")


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring words of one script: at least MIN_LETTERS letters where the text has them."""

    script: str
    text: str
    words: int


@dataclass(frozen=True, slots=True)
class LanguageShare:
    """Words in the target language, words in others, and the first foreign piece."""

    target_words: int
    foreign_words: int
    foreign_span: str | None

    @property
    def share(self) -> float:
        """In [0, 1]; 1.0 for no words at all."""
        total = self.target_words + self.foreign_words
        return self.target_words / total if total else 1.0


def judge_language(text: str, language: str = "en", least_share: float = 0.9) -> Judgement:
    """pass `target_language`, fail `other_language` (detail: its span), unscorable `too_little_text`."""
    found = language_share(text, language)
    if found.target_words + found.foreign_words < MIN_WORDS:
        return unscorable("too_little_text")
    if found.share >= least_share:
        return passed("target_language", score=found.share, detail=found.foreign_span)
    return failed("other_language", score=found.share, detail=found.foreign_span)


def language_share(text: str, language: str = "en") -> LanguageShare:
    """Count the words by language, piece after piece."""
    target_words = foreign_words = 0
    foreign_span: str | None = None
    for piece in pieces(mask(text[:MAX_CHARACTERS])):
        verdict = _is_foreign(piece, language)
        if verdict:
            foreign_words += piece.words
            foreign_span = foreign_span or piece.text[:_SPAN]
        elif verdict is False:
            target_words += piece.words
    return LanguageShare(target_words, foreign_words, foreign_span)


def mask(text: str) -> str:
    """The text without maths, code, tags, LaTeX commands, links and words with digits. Linear."""
    for opening, closing in _FENCES:
        text = _without_blocks(text, opening, closing)
    return _MARKUP.sub(" ", text)


def pieces(text: str) -> Iterator[Piece]:
    """Cut masked text into pieces of one script, at sentence ends where enough letters have come together."""
    for paragraph in text.split("\n"):
        yield from _paragraph_pieces(paragraph)


def _paragraph_pieces(paragraph: str) -> Iterator[Piece]:
    script, runs, letters = "", list[str](), 0
    for sentence in _SENTENCE.split(paragraph):
        for match in _RUN.finditer(sentence):
            if runs and (match.lastgroup != script or letters >= MAX_LETTERS):
                yield _piece(script, runs)
                runs, letters = [], 0
            script = str(match.lastgroup)
            runs.append(match.group())
            letters += len(match.group())
        if letters >= _least_letters(script):
            yield _piece(script, runs)
            runs, letters = [], 0
    if runs:
        yield _piece(script, runs)


def _least_letters(script: str) -> int:
    return MIN_UNSPACED if script in _UNSPACED else MIN_LETTERS


def _piece(script: str, runs: list[str]) -> Piece:
    """Single letters are variables (x, π), unless the script writes no spaces."""
    if script in _UNSPACED:
        return Piece(script, "".join(runs), sum(map(len, runs)))
    return Piece(script, " ".join(runs), sum(len(run) > 1 for run in runs))


def _is_foreign(piece: Piece, language: str) -> bool | None:
    """True or False, or None where the piece is too short or too mixed to tell."""
    if piece.script != SCRIPT_OF[language]:
        return True
    common = _SCRIPTS[piece.script][1]
    if common == (language,):
        return False
    foreign = _foreign_by_lingua(piece.text, language, common if language in common else (*common, language))
    return None if foreign and len(piece.text) < _least_letters(piece.script) else foreign


def _foreign_by_lingua(text: str, language: str, candidates: tuple[str, ...]) -> bool | None:
    ranked = _detector(candidates).compute_language_confidence_values(text)
    best = ranked[0]
    if best.language.iso_code_639_1.name.lower() == language:
        return False
    return True if best.value >= SURE else None


@lru_cache(maxsize=8)
def _detector(candidates: tuple[str, ...]) -> Any:
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    codes = [getattr(IsoCode639_1, code.upper()) for code in candidates]
    return LanguageDetectorBuilder.from_iso_codes_639_1(*codes).with_low_accuracy_mode().build()


def _without_blocks(text: str, opening: str, closing: str) -> str:
    """Drop every `opening … closing` block. An opening that is never closed ends the search: linear time."""
    kept, cursor = [], 0
    while (start := text.find(opening, cursor)) >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            break
        kept.append(text[cursor:start])
        cursor = end + len(closing)
    return " ".join([*kept, text[cursor:]])


class LanguageCheck:
    """The check `language`, on the chain of thought where there is one and else on the whole text."""

    name = "language"

    def __init__(self, settings: CheckSettings) -> None:
        self.language, self.least_share = settings.language.target or "en", settings.language.least_share
        if self.language not in SCRIPT_OF:
            nearest = get_close_matches(self.language, SCRIPT_OF, n=1, cutoff=0.0)[0]
            raise CheckError(f"language {self.language!r} is not known; did you mean {nearest!r}?")
        self.version = version_string(1, settings.language, LanguageSettings())

    def warm_up(self) -> None:
        """Load the language models."""
        judge_language("a sentence long enough to be told apart from all others", self.language)

    def __call__(self, item: Scored) -> Judgement:
        return judge_language(item.reasoning or item.text, self.language, self.least_share)
