"""From training examples to token batches.

The prompt (with the prefill) and what the model has to write are tokenised apart, as the sampler met them: context
tokens are given, completion tokens and one end-of-turn token are learned. What is learned is known from lengths,
never from pad ids, because many models pad with their end-of-turn token. Which examples make up step s depends on
(seed, s) alone: the step number is the whole cursor. Nothing is truncated. The rows of a micro-batch are packed one
after another, without padding (`model/training/documents.py`).

Axes: B rows, T tokens of all rows, N completion tokens of all rows, one after another.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.records import TrainingExample
from model.training.documents import Documents
from model.training.job import JobError
from model.training.shared_prefixes import Layout, lay_out

Tokenizer = Any  # transformers' tokenizers share no useful static type
Lengths = Sequence[int] | NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Row:
    """One sequence: tokens that are given, and tokens that are learned (at least one)."""

    context: list[int]
    completion: list[int]

    @property
    def length(self) -> int:
        """Tokens of the whole sequence."""
        return len(self.context) + len(self.completion)


@dataclass(frozen=True)
class TokenBatch:
    """Rows one after another, each without its last token, which predicts nothing; shared openings lie there once."""

    tokens_T: Tensor  # int64
    documents: Documents  # the rows, or what of them is shared and what is not
    positions_N: Tensor  # int64; where in tokens_T each completion token is predicted
    targets_N: Tensor  # int64; the completion tokens
    weights_N: Tensor  # float32; each token's weight in the loss
    row_tokens: int  # tokens of all rows, as often as they are there

    @property
    def token_count(self) -> int:
        """Completion tokens N."""
        return len(self.targets_N)


def tokenize(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text that already carries its special tokens."""
    return tokenize_all(tokenizer, [text])[0]


def tokenize_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that already carry their special tokens."""
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids


def completion_tokens(tokenizer: Tokenizer, examples: Sequence[TrainingExample], prefill: str) -> list[list[int]]:
    """What is learned of examples: the completion after the prefill, and the end-of-turn token."""
    for example in examples:
        if not example.completion.startswith(prefill):
            raise JobError(f"sample {example.sample_id} does not start with the template's prefill {prefill!r}")
    learned = tokenize_all(tokenizer, [example.completion.removeprefix(prefill) for example in examples])
    return [[*tokens, tokenizer.eos_token_id] for tokens in learned]


def epoch_batches(lengths: Lengths, tokens_per_batch: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """One epoch's batches of row indices, drawn in an order that depends on (seed, epoch) alone.

    Every batch gets about the same number of tokens, on average at most `tokens_per_batch`; there is no small rest.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    in_order = np.asarray(lengths, np.int64)[order]
    ends = np.cumsum(in_order)
    count = -(-int(ends[-1]) // tokens_per_batch)
    batch_of = (ends - in_order) * count // ends[-1]
    return np.split(order, np.flatnonzero(np.diff(batch_of)) + 1)


class Batches:
    """The rows of every step of all epochs; memory holds one epoch's order."""

    def __init__(self, lengths: Lengths, tokens_per_batch: int, seed: int, epochs: int, most: int | None) -> None:
        self._lengths, self._drawn = np.asarray(lengths, np.int64), (tokens_per_batch, seed)
        self._held: tuple[int, list[NDArray[np.int64]]] = (-1, [])  # an epoch, and its batches
        self._starts = [0]  # each epoch's first step
        self.most_tokens = 0  # of the largest step
        for epoch in range(epochs):
            room = None if most is None else most - self._starts[-1]
            found = self._epoch(epoch)[:room]
            self._starts.append(self._starts[-1] + len(found))
            self.most_tokens = max([self.most_tokens, *(int(self._lengths[rows].sum()) for rows in found)])

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, step: int) -> list[int]:
        """The rows of a step, which count from 0."""
        epoch = bisect_right(self._starts, step) - 1
        rows: list[int] = self._epoch(epoch)[step - self._starts[epoch]].tolist()
        return rows

    def _epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        if epoch != self._held[0]:
            self._held = epoch, epoch_batches(self._lengths, *self._drawn, epoch)
        return self._held[1]


def micro_batches(lengths: Sequence[int], tokens_per_micro_batch: int, multiple: int = 1) -> list[list[int]]:
    """Row indices packed into the budget, into as few packs as best fit needs, which are then about as long as another.

    There are a multiple of `multiple` packs, for as many processes; where rows are few, or do not fit otherwise, some
    are empty. A row longer than the budget is alone. Equal lengths give equal packs.
    """
    packs = _best_fit(lengths, tokens_per_micro_batch)
    packs += [[] for _ in range(-len(packs) % multiple)]
    evened = _evened(lengths, len(packs))
    longest = max((sum(lengths[i] for i in pack) for pack in evened), default=0)
    return evened if longest <= tokens_per_micro_batch else packs


def _evened(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Row indices in so many packs: each row, the longest first, goes to the shortest (a short pack wastes a GPU)."""
    packs: list[list[int]] = [[] for _ in range(count)]
    shortest = [(0, pack) for pack in range(count)]
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        tokens, pack = heappop(shortest)
        packs[pack].append(index)
        heappush(shortest, (tokens + lengths[index], pack))
    return packs


def _best_fit(lengths: Sequence[int], tokens_per_micro_batch: int) -> list[list[int]]:
    """Row indices packed into the budget: each row, the longest first, goes where it leaves the least room."""
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, pack), ascending
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(rooms, (lengths[index], 0))
        if at == len(rooms):
            packs.append([])
            rooms.append((max(tokens_per_micro_batch, lengths[index]), len(packs) - 1))
        left, pack = rooms.pop(at)
        packs[pack].append(index)
        insort(rooms, (left - lengths[index], pack))
    return packs


def row_packs(rows: Sequence[Row], tokens_per_micro_batch: int, multiple: int = 1) -> list[list[int]]:
    """Row indices packed into the budget as by `micro_batches`; rows of one context stay together, and it counts once.

    Rows whose contexts all differ give the packs of their lengths, and so does a pack that would run more than it may
    after all, since too little of it is shared. There are a multiple of `multiple` packs, for as many processes, among
    which a context's rows are parted where some would have nothing to do.
    """
    by_context: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        by_context.setdefault(tuple(row.context), []).append(index)
    run = sum(map(len, by_context)) + sum(len(row.completion) for row in rows)
    most = min(tokens_per_micro_batch, -(-run // multiple))
    units: list[list[int]] = []
    costs: list[int] = []
    for context, same in by_context.items():
        room = max(1, most - len(context))
        for part in micro_batches([len(rows[i].completion) for i in same], room):
            units.append([same[i] for i in part])
            costs.append(len(context) + sum(len(rows[i].completion) for i in units[-1]))
    of_units = micro_batches(costs, tokens_per_micro_batch, multiple)
    packs = [[i for unit in pack for i in units[unit]] for pack in of_units]
    packs = [part for pack in packs for part in _within(pack, rows, tokens_per_micro_batch)]
    return packs + [[] for _ in range(-len(packs) % multiple)]


def _within(pack: list[int], rows: Sequence[Row], tokens: int) -> list[list[int]]:
    """The pack, or parts of it by their rows' lengths where it would run more tokens than that."""
    chosen = [rows[i] for i in pack]
    if not pack or len(lay_out_rows(chosen).tokens) <= tokens:
        return [pack]
    return [[pack[i] for i in part] for part in micro_batches([row.length for row in chosen], tokens)]


def lengths_of(rows: Sequence[Row]) -> Tensor:
    """Completion tokens of each row, int64, [B]."""
    return torch.tensor([len(row.completion) for row in rows], dtype=torch.int64)


def lay_out_rows(rows: Sequence[Row]) -> Layout:
    """Rows without their last tokens, which predict nothing."""
    return lay_out([(row.context + row.completion)[:-1] for row in rows], [row.context for row in rows])


def collate(rows: Sequence[Row], weights_B: Sequence[float], device: torch.device) -> TokenBatch:
    """One batch of the given rows; `weights_B` is the weight of one token of each. What rows open with is run once.

    Without rows it is one token that nothing is learned from: a process that has none still runs with the others.
    """
    if not rows:
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        return TokenBatch(nothing.new_zeros(1), Documents((1,), device), nothing, nothing, nothing.float(), 0)
    laid = lay_out_rows(rows)
    positions = [at for row, places in zip(rows, laid.places, strict=True) for at in places[len(row.context) - 1 :]]
    lengths, parents = (tuple(each) for each in zip(*((len(r.tokens), r.parent) for r in laid.runs), strict=True))
    return TokenBatch(
        tokens_T=_numbers(laid.tokens, device),
        documents=Documents(lengths, device, parents=parents),
        positions_N=_numbers(positions, device),
        targets_N=_numbers([token for row in rows for token in row.completion], device),
        weights_N=torch.tensor(weights_B).repeat_interleave(lengths_of(rows)).to(device),
        row_tokens=sum(row.length - 1 for row in rows),
    )


def _numbers(numbers: list[int], device: torch.device) -> Tensor:
    """As int64; by way of NumPy, which reads a list faster than torch."""
    return torch.from_numpy(np.array(numbers, np.int64)).to(device)
