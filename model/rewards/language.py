"""What share of a chain's words is in the target language? R1's language-consistency measure.

Maths, code and markup are masked (`texts/masking.py`); the rest is read in pieces of a sentence or more
(`texts/spoken.py`). A piece in a script that the target language does not use is foreign by that alone; one in its
own script is foreign where py3langid is sure of it, and counts for neither side where it is not. The target is the
question's own language unless the settings name one; a question of fewer than three words counts as English. With
fewer than ten words left in the chain nothing can be told: `unscorable`, never a fail. Score: target words / (target
+ foreign words); a Chinese, Japanese or Thai character counts as a word. Only the first 200,000 characters are read.
Borrowed single words of the same script are not found; those of another script are `mixed_language`'s. Source: R1's
language reward (arXiv 2501.12948); the thresholds are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache

from model.errors import CheckError
from model.rewards.check import Judgement, Scored, failed, passed, unscorable
from model.rewards.settings import CheckSettings, LanguageSettings
from model.rewards.texts.masking import mask
from model.rewards.texts.spoken import SCRIPT_OF, Piece, Reading, language_of, read
from model.rewards.versions import version_string

MAX_CHARACTERS = 200_000
MAX_PROMPT_CHARACTERS = 10_000
MIN_WORDS = 10
FALLBACK = "en"  # the target where the question has too few words to tell


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
    detail = f"not {language}: {found.foreign_span}" if found.foreign_span else None
    if found.share >= least_share:
        return passed("target_language", score=found.share, detail=detail)
    return failed("other_language", score=found.share, detail=detail)


def language_share(text: str, language: str = "en") -> LanguageShare:
    """Count the words by language, piece after piece."""
    reading = read_chain(text[:MAX_CHARACTERS])
    target_words = foreign_words = 0
    foreign: Piece | None = None
    for piece in reading.pieces:
        is_target = piece.is_in(language)
        if is_target:
            target_words += piece.words
        elif is_target is False:
            foreign_words += piece.words
            foreign = foreign or piece
    return LanguageShare(target_words, foreign_words, reading.span(foreign) if foreign else None)


@lru_cache(maxsize=1)
def read_chain(chain: str) -> Reading:
    """A chain's pieces. The last one is remembered, as `mixed_language` asks for the same sample's right after."""
    return read(mask(chain))


@lru_cache(maxsize=1024)
def question_language(prompt: str) -> str:
    """The language that a question is asked in; remembered, as samples of one problem come together."""
    return language_of(mask(prompt[:MAX_PROMPT_CHARACTERS])) or FALLBACK


class LanguageCheck:
    """The check `language`, on the chain of thought where there is one and else on the whole text."""

    name = "language"

    def __init__(self, settings: CheckSettings) -> None:
        self.language, self.least_share = settings.language.target, settings.language.least_share
        if self.language and self.language not in SCRIPT_OF:
            nearest = get_close_matches(self.language, SCRIPT_OF, n=1, cutoff=0.0)[0]
            raise CheckError(f"language {self.language!r} is not known; did you mean {nearest!r}?")
        self.version = version_string(2, settings.language, LanguageSettings())

    def warm_up(self) -> None:
        """Load the language model."""
        judge_language("a sentence long enough to be told apart from all others", self.language or FALLBACK)

    def __call__(self, item: Scored) -> Judgement:
        target = self.language or question_language(item.prompt)
        return judge_language(item.reasoning or item.text, target, self.least_share)
