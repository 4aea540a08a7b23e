r"""Does a completion keep to `<think> … </think> <answer> … </answer>`? R1's grading in two steps.

First the basic structure: every tag is there, closed, and in the right order without nesting; without it the
effective format reward is 0. With it, the specification has four requirements: each tag occurs once, nothing
stands outside the tags, the reasoning is not blank, the answer is not blank. All of them: R_full (1.0,
`pass`). Some of them: R_partial (a setting). None: 0. The content of the sections is not looked at.
Source: r_format_effective of the R1 paper's format reward (arXiv 2501.12948).
"""

from __future__ import annotations

from model.rewards.check import Judgement, Scored, failed, passed
from model.rewards.settings import CheckSettings, FormatSettings
from model.rewards.versions import version_string

Span = tuple[int, int]


def judge_format(text: str, tags: tuple[str, ...] = ("think", "answer"), partial: float = 0.5) -> Judgement:
    """Grade the text against the tags' sections. The reason of a fail is the first thing that is not met.

    With `tags=("think",)` whatever follows `</think>` counts as the last section, as models that know no
    answer tag write it. Linear in the text.
    """
    spans = _sections(text, tags)
    if isinstance(spans, str):
        return failed(spans)
    is_broken = _requirements(text, tags, spans)
    broken = [name for name in is_broken if is_broken[name]]
    if not broken:
        return passed("full")
    score = 0.0 if len(broken) == len(is_broken) else partial
    return failed(broken[0], score=score, detail=", ".join(broken))


def _sections(text: str, tags: tuple[str, ...]) -> list[Span] | str:
    """The inner span of every section, or what is wrong with the basic structure.

    A section runs from the first opening tag to the last closing tag, so that a repeated tag is still a
    structure (it breaks a requirement instead); sections must then follow one another.
    """
    spans: list[Span] = []
    for tag in tags:
        start, end = text.find(f"<{tag}>"), text.rfind(f"</{tag}>")
        if start < 0:
            return f"missing_{tag}"
        if end < 0:
            return f"unclosed_{tag}"
        spans.append((start + len(tag) + 2, end))
    edges = [edge for span in spans for edge in span]
    return spans if edges == sorted(edges) else "wrong_order"


def _requirements(text: str, tags: tuple[str, ...], spans: list[Span]) -> dict[str, bool]:
    """Each requirement's name, as the reason of a fail, and whether it is broken."""
    outside = _outside(text, tags, spans)
    sections = [text[start:end] for start, end in spans]
    if len(tags) == 1:
        sections.append(outside.pop())
    return {
        "repeated_tag": any(text.count(f"<{t}>") != 1 or text.count(f"</{t}>") != 1 for t in tags),
        "text_outside_tags": any(part.strip() for part in outside),
        "empty_reasoning": not sections[0].strip(),
        "empty_answer": not sections[-1].strip(),
    }


def _outside(text: str, tags: tuple[str, ...], spans: list[Span]) -> list[str]:
    """The text before, between and after the sections, their tags excluded."""
    parts, cursor = [], 0
    for tag, (start, end) in zip(tags, spans, strict=True):
        parts.append(text[cursor : start - len(tag) - 2])
        cursor = end + len(tag) + 3
    return [*parts, text[cursor:]]


class FormatCheck:
    """The check `format`; its settings are the tags and the partial reward."""

    name = "format"

    def __init__(self, settings: CheckSettings) -> None:
        self.tags, self.partial = settings.format.tags, settings.format.partial
        self.version = version_string(1, settings.format, FormatSettings())

    def warm_up(self) -> None:
        pass

    def __call__(self, item: Scored) -> Judgement:
        return judge_format(item.text, self.tags, self.partial)
