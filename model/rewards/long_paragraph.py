"""Is there a wall of text in the chain? The longest paragraph, in characters, against a threshold.

Maths, code and tags do not count (`texts/masking.py`), white space counts once. A paragraph ends with a line break, so
text that is wrapped at a fixed width has none that is long. Whether the text is well written is not asked.
Source: R1 dropped chains with long paragraphs as hard to read (arXiv 2501.12948) and says no threshold; ours is
in the settings.
"""

from __future__ import annotations

from model.rewards.check import Judgement, Scored, failed, passed
from model.rewards.settings import CheckSettings, LongParagraphSettings
from model.rewards.texts.masking import mask, paragraphs
from model.rewards.versions import version_string

_SPAN = 160  # characters of the offending paragraph that a verdict keeps


def judge_long_paragraph(text: str, most_characters: int = 4_000) -> Judgement:
    """pass `short_paragraphs`, fail `long_paragraph` (detail: its length and its beginning).

    The score is the threshold by the longest paragraph, at most 1.
    """
    longest, span = 0, ""
    for paragraph in paragraphs(mask(text)):
        if len(paragraph) > longest:  # else it cannot be longer without its spaces
            words = " ".join(paragraph.split())
            if len(words) > longest:
                longest, span = len(words), words[:_SPAN]
    if longest <= most_characters:
        return passed("short_paragraphs", detail=f"{longest} characters")
    return failed("long_paragraph", score=most_characters / longest, detail=f"{longest} characters: {span}")


class LongParagraphCheck:
    """The check `long_paragraph`, on the chain of thought where there is one and else on the whole text."""

    name = "long_paragraph"

    def __init__(self, settings: CheckSettings) -> None:
        self.most_characters = settings.long_paragraph.most_characters
        self.version = version_string(1, settings.long_paragraph, LongParagraphSettings())

    def warm_up(self) -> None:
        pass

    def __call__(self, item: Scored) -> Judgement:
        return judge_long_paragraph(item.reasoning or item.text, self.most_characters)
