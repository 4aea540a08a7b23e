r"""What is prose in a completion, and what is not: maths, code, tags, links; and its paragraphs.

`mask` blanks everything that is no prose, so that rules about language and length look at words only. A
paragraph is what stands between two line breaks: chains number their steps line by line, and a line break is
what a reader sees. Text wrapped at a fixed width therefore has short paragraphs. All of it is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Blocks that hold no prose. The order matters: code may hold dollars, maths holds no fence.
_BLOCKS = (
    ("```", "```"),
    ("~~~", "~~~"),
    ("[asy]", "[/asy]"),
    ("$$", "$$"),
    (r"\[", r"\]"),
    (r"\(", r"\)"),
    (r"\begin{", r"\end{"),
)
_ENVIRONMENT = re.compile(r"[a-zA-Z]{1,30}\*?\}")  # what is left of `\end{align*}`
# Every alternative starts with a character of its own, which lets the search skip ordinary text at once.
_INLINE = re.compile(r"\$[^$\n]{1,500}\$|`[^`\n]{1,500}`|\\[A-Za-z]{1,40}|</?[a-z]{1,20}>")
_LINK = re.compile(r"https?://\S{1,2000}")


def mask(text: str) -> str:
    """The text without maths, code, tags, LaTeX commands and links; a space stands for each."""
    for opening, closing in _BLOCKS:
        text = _without_blocks(text, opening, closing)
    if "://" in text:
        text = _LINK.sub(" ", text)
    return _INLINE.sub(" ", text)


def paragraphs(text: str) -> Iterator[str]:
    """The text between line breaks, blank stretches left out."""
    return (line for line in text.split("\n") if line and not line.isspace())


def _without_blocks(text: str, opening: str, closing: str) -> str:
    """Drop every `opening … closing` block. An opening that is never closed ends the search: linear time."""
    kept, cursor = [], 0
    while (start := text.find(opening, cursor)) >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            break
        kept.append(text[cursor:start])
        cursor = end + len(closing)
        if closing.endswith("{") and (name := _ENVIRONMENT.match(text, cursor)):
            cursor = name.end()
    return " ".join([*kept, text[cursor:]]) if kept else text
