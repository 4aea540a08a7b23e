"""Rows that open with the same tokens run those once: a system prompt, worked turns, the question of a GRPO group.

What a token's hidden state is depends on the tokens before it alone, so rows may share those of their openings; what
each row's loss says about them is summed by autograd. Shared runs form a tree: a run goes on from the one before it and
sees it (`documents.py`). Only contexts are shared. Where nothing is worth sharing, rows lie as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

LEAST_SAVED = 16  # tokens that a shared run must save, for one more document in every layer's attention
LEAST_SHARE = 1 / 16  # of its rows' tokens: what sees shared keys attends a little slower


@dataclass(frozen=True)
class Run:
    """Tokens that are run one after another; `parent` is the place of the run that they go on from, −1 for none."""

    tokens: Sequence[int]
    parent: int


def shared_runs(contexts: Sequence[Sequence[int]], lengths: Sequence[int]) -> tuple[list[Run], list[tuple[int, int]]]:
    """Runs that several contexts open with, and for each context the last of its runs (−1) and where that ends.

    `lengths` are those of the rows that the contexts open.
    """
    runs: list[Run] = []
    ends = [(-1, 0)] * len(contexts)
    todo = [(sorted(range(len(contexts)), key=lambda row: list(contexts[row])), -1, 0)]
    while todo:
        rows, parent, start = todo.pop()
        depth = _common(contexts[rows[0]], contexts[rows[-1]], start) if rows else 0  # sorted: all share what these do
        saved = (len(rows) - 1) * (depth - start)
        if saved >= max(LEAST_SAVED, LEAST_SHARE * sum(lengths[row] for row in rows)):
            runs.append(Run(contexts[rows[0]][start:depth], parent))
            parent, start = len(runs) - 1, depth
        for row in rows:
            ends[row] = parent, start
        longer = [row for row in rows if len(contexts[row]) > depth]
        for _, same in groupby(longer, key=lambda row, depth=depth: contexts[row][depth]):  # type: ignore[misc]
            todo.append((list(same), parent, start))
        todo = [each for each in todo if len(each[0]) > 1]
    return runs, ends


def _common(one: Sequence[int], other: Sequence[int], start: int) -> int:
    """How many tokens two contexts have in common, of which `start` are known."""
    most = min(len(one), len(other))
    while start < most and one[start] == other[start]:
        start += 1
    return start


@dataclass(frozen=True)
class Layout:
    """Runs as they lie in one row of tokens, and where each token of every given row is among them."""

    runs: list[Run]
    places: list[list[int]]

    @property
    def tokens(self) -> list[int]:
        """All runs' tokens."""
        return [token for run in self.runs for token in run.tokens]


def lay_out(rows: Sequence[Sequence[int]], contexts: Sequence[Sequence[int]]) -> Layout:
    """Rows of tokens, each of which opens with its context: shared runs first, then what each row has of its own."""
    runs, ends = shared_runs(contexts, [len(row) for row in rows])
    through: list[list[int]] = []  # by run: the places of all tokens from the root to its end
    begin = 0
    for run in runs:
        before = through[run.parent] if run.parent >= 0 else []
        through.append([*before, *range(begin, begin + len(run.tokens))])
        begin += len(run.tokens)
    places = []
    for row, (parent, start) in zip(rows, ends, strict=True):
        own = row[start:]
        places.append([*(through[parent] if parent >= 0 else []), *range(begin, begin + len(own))])
        if own:
            runs.append(Run(own, parent))
            begin += len(own)
    return Layout(runs, places)
