"""Does a chain change its language on the way? Counted in paragraphs, and in words of a foreign script.

The main language is the one that most words are in, whatever the language of the question. A paragraph is mixed
when a sentence of it is surely in another language. Words of a foreign script are counted one by one: a single
Chinese word inside an English sentence is R1-Zero's well-known fault. What stands in the question as well may be
quoted, Greek words count as maths, and in chains written in another script Latin words (names, terms, units) count
only where they are sentences. `language` asks for the share of words in the question's language: a chain with
one foreign word now and then passes there and fails here, a chain wholly in a foreign language the other way round.
Source: R1 dropped chains with mixed languages (arXiv 2501.12948) and says no threshold; ours are in the settings.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from model.rewards.check import Judgement, Scored, failed, passed, unscorable
from model.rewards.language import MAX_CHARACTERS, MAX_PROMPT_CHARACTERS, MIN_WORDS, read_chain
from model.rewards.settings import CheckSettings, MixedLanguageSettings
from model.rewards.texts.spoken import LIKELY, SCRIPT_OF, Piece, Reading
from model.rewards.versions import version_string

_QUOTABLE = 64  # characters of the longest foreign stretch that is looked for in the question


@dataclass(frozen=True, slots=True)
class Mixture:
    """Paragraphs with words, those that are mixed, words of foreign scripts, and the first foreign stretch."""

    main: str
    paragraphs: int
    mixed: int
    words: int
    span: str | None

    @property
    def share(self) -> float:
        """Mixed paragraphs by paragraphs, in [0, 1]."""
        return self.mixed / self.paragraphs if self.paragraphs else 0.0


def judge_mixed_language(text: str, prompt: str = "", most_paragraphs: float = 0.05, most_words: int = 0) -> Judgement:
    """pass `one_language`, fail `mixed_languages` or `foreign_words`, unscorable `too_little_text`.

    The score is the share of paragraphs that are not mixed, the detail the counts and the first foreign stretch.
    """
    found = mixture(text, prompt)
    if found is None:
        return unscorable("too_little_text")
    counts = f"{found.mixed} of {found.paragraphs} paragraphs, {found.words} foreign words"
    detail = f"{counts}; not {found.main}: {found.span}" if found.span else None
    if found.share > most_paragraphs:
        return failed("mixed_languages", score=1.0 - found.share, detail=detail)
    if found.words > most_words:
        return failed("foreign_words", score=1.0 - found.share, detail=detail)
    return passed("one_language", score=1.0 - found.share, detail=detail)


def mixture(text: str, prompt: str = "") -> Mixture | None:
    """What is foreign in a text; None where it has fewer than ten words."""
    reading = read_chain(text[:MAX_CHARACTERS])
    main = _main_language(reading)
    if main is None:
        return None
    script = SCRIPT_OF.get(main, main)
    prompt = prompt[:MAX_PROMPT_CHARACTERS]
    foreign = [piece for piece in reading.pieces if _is_foreign(piece, main, script)]
    foreign = [piece for piece in foreign if reading.span(piece, _QUOTABLE) not in prompt] if prompt else foreign
    return Mixture(
        main=main,
        paragraphs=len({piece.paragraph for piece in reading.pieces}),
        mixed=len({piece.paragraph for piece in foreign if piece.is_long_enough}),
        words=sum(piece.words for piece in foreign if piece.script not in (script, "latin")),
        span=reading.span(foreign[0]) if foreign else None,
    )


def _main_language(reading: Reading) -> str | None:
    if sum(piece.words for piece in reading.pieces) < MIN_WORDS:
        return None
    words: Counter[str] = Counter()
    for piece in reading.pieces:
        is_clear = not piece.language or piece.chance >= LIKELY
        words[piece.language or piece.script] += piece.words if is_clear else 0
    return max(words, key=words.__getitem__)


def _is_foreign(piece: Piece, main: str, script: str) -> bool:
    if script == piece.script:
        return main != script and piece.is_in(main) is False
    return piece.is_long_enough if piece.script in ("latin", "greek") else True


class MixedLanguageCheck:
    """The check `mixed_language`, on the chain of thought where there is one and else on the whole text."""

    name = "mixed_language"

    def __init__(self, settings: CheckSettings) -> None:
        self.settings = settings.mixed_language
        self.version = version_string(1, settings.mixed_language, MixedLanguageSettings())

    def warm_up(self) -> None:
        """Load the language model."""
        judge_mixed_language("a sentence long enough to be told apart from all others")

    def __call__(self, item: Scored) -> Judgement:
        limits = self.settings
        return judge_mixed_language(item.reasoning or item.text, item.prompt, limits.most_paragraphs, limits.most_words)
