r"""Is there a block of code in a chain that is not about code?

A block is a fence (``` or ~~~ at a line's start, closed or not) unless it says that it holds maths, or at least
two lines in a row, indented by four spaces or a tab, that read as statements (`def f(`, `import x`, `print(…)`, …).
Indented equations and lists are no code, nor is `inline code`. In a domain that the settings do not name, code may
be what was asked for: the rule says nothing there, and that is a `pass` (`not_applicable`), not `unscorable`, since
no gold answer is missing. Only the first million characters are read.
Source: R1 dropped chains with code blocks (arXiv 2501.12948); what counts as one is ours.
"""

from __future__ import annotations

import re

from model.rewards.check import Judgement, Scored, failed, passed
from model.rewards.settings import CheckSettings, CodeBlockSettings
from model.rewards.versions import version_string

MAX_CHARACTERS = 1_000_000
_SPAN = 160  # characters of the block that a verdict keeps

_FENCE = re.compile(r"^ {0,3}(?:```|~~~)[`~]*[ \t]*(?!(?:math|latex|tex)\b)", re.MULTILINE)
_MATHS_FENCE = re.compile(r"^ {0,3}(```|~~~)[ \t]*(?:math|latex|tex)\b", re.MULTILINE)
_STATEMENT = re.compile(
    r"^(?: {4}|\t)[ \t]{0,76}+(?:"
    r"def \w{1,60}\(|class \w{1,60}[:(]|import \w|from \w[\w.]{0,60} import |return\b|print\(|#include\b|"
    r"(?:for|while|if|elif|with) [^\n]{1,200}:[ \t]*$|(?:else|try):|int main\(|"
    r"[A-Za-z_]\w{0,60} ?(?:[-+*/]|//|\*\*)?= ?[A-Za-z_][\w.]{0,60}\()",
    re.MULTILINE,
)


def judge_code_block(text: str) -> Judgement:
    """pass `no_code_block`, fail `code_block` (detail: its beginning)."""
    start = code_block_start(text[:MAX_CHARACTERS])
    if start is None:
        return passed("no_code_block")
    return failed("code_block", detail=text[start : start + _SPAN])


def code_block_start(text: str) -> int | None:
    """Where the first block begins, or None."""
    text = _blank_maths(text)
    fence = _FENCE.search(text)
    indented = _indented(text)
    starts = [start for start in (fence.start() if fence else None, indented) if start is not None]
    return min(starts, default=None)


def _blank_maths(text: str) -> str:
    """Fences that say they hold maths, blanked out so that places in the text stay what they are."""
    parts, cursor = [], 0
    while fence := _MATHS_FENCE.search(text, cursor):
        end = text.find(fence.group(1), fence.end())
        stop = len(text) if end < 0 else end + 3
        parts += [text[cursor : fence.start()], " " * (stop - fence.start())]
        cursor = stop
    return "".join([*parts, text[cursor:]])


def _indented(text: str) -> int | None:
    """The first of two statements on neighbouring lines."""
    before: re.Match[str] | None = None
    for statement in _STATEMENT.finditer(text):
        if before and text.find("\n", before.end()) == statement.start() - 1:
            return before.start()
        before = statement
    return None


class CodeBlockCheck:
    """The check `code_block`, on the chain of thought where there is one and else on the whole text."""

    name = "code_block"

    def __init__(self, settings: CheckSettings) -> None:
        self.domains = settings.code_block.domains
        self.version = version_string(1, settings.code_block, CodeBlockSettings())

    def warm_up(self) -> None:
        pass

    def __call__(self, item: Scored) -> Judgement:
        if item.domain not in self.domains:
            return passed("not_applicable", detail=item.domain)
        return judge_code_block(item.reasoning or item.text)
