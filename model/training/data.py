"""From training examples to token batches.

The prompt (with the prefill) and what the model has to write are tokenised apart, as the sampler met them: context
tokens are given, completion tokens and one end-of-turn token are learned. What is learned is known from lengths,
never from pad ids, because many models pad with their end-of-turn token. Which examples make up step s depends on
(seed, s) alone: the step number is the whole cursor. Nothing is truncated. The rows of a micro-batch are packed one
after another, without padding (`model/training/documents.py`).

Axes: B rows, T tokens of all rows, N completion tokens of all rows, one after another.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from model.records import TrainingExample, from_table
from model.training.documents import Documents
from model.training.job import JobError

Tokenizer = Any  # transformers' tokenizers share no useful static type


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
    """Rows one after another, each without its last token, which predicts nothing."""

    tokens_T: Tensor  # int64
    documents: Documents  # the rows
    positions_N: Tensor  # int64; where in tokens_T each completion token is predicted
    targets_N: Tensor  # int64; the completion tokens
    weights_N: Tensor  # float32; each token's weight in the loss

    @property
    def token_count(self) -> int:
        """Completion tokens N."""
        return len(self.targets_N)

    @property
    def row_tokens(self) -> int:
        """Tokens of all rows, T; 0 where there are no rows."""
        return len(self.tokens_T) if self.token_count else 0


def read_examples(path: Path) -> list[TrainingExample]:
    """The examples of a Parquet file. Raises JobError when it is not one or is empty."""
    try:
        examples = from_table(pq.read_table(path), TrainingExample)
    except (OSError, KeyError, ValueError) as error:
        raise JobError(f"{path} does not hold training examples: {error}") from error
    if not examples:
        raise JobError(f"{path} holds no training examples: loosen the recipe's [accept] rule or generate more")
    return examples


def tokenize(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text that already carries its special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def completion_row(tokenizer: Tokenizer, prompt: str, completion: str, prefill: str, sample_id: str) -> Row:
    """The row of one completion: prompt and prefill are context, the rest and the end-of-turn token are learned."""
    if not completion.startswith(prefill):
        raise JobError(f"sample {sample_id} does not start with the template's prefill {prefill!r}")
    learned = tokenize(tokenizer, completion.removeprefix(prefill))
    return Row(tokenize(tokenizer, prompt + prefill), [*learned, tokenizer.eos_token_id])


def epoch_batches(lengths: Sequence[int], tokens_per_batch: int, seed: int, epoch: int) -> list[list[int]]:
    """One epoch's batches of row indices, drawn in an order that depends on (seed, epoch) alone.

    Every batch gets about the same number of tokens, on average at most `tokens_per_batch`; there is no small rest.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    ends = np.cumsum(np.asarray(lengths)[order])
    count = -(-int(ends[-1]) // tokens_per_batch)
    starts = ends - np.asarray(lengths)[order]
    batch_of = starts * count // ends[-1]
    batches = [order[batch_of == batch].tolist() for batch in range(count)]
    return [batch for batch in batches if batch]


def micro_batches(lengths: Sequence[int], tokens_per_micro_batch: int) -> list[list[int]]:
    """Row indices packed into the budget: each row, the longest first, goes where it leaves the least room (best fit).

    A row longer than the budget is alone. Equal lengths give equal packs.
    """
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


def collate(rows: Sequence[Row], weights_B: Sequence[float], device: torch.device) -> TokenBatch:
    """One batch of the given rows; `weights_B` is the weight of one token of each row.

    Without rows it is one token that nothing is learned from: a process that has none still runs with the others.
    """
    if not rows:
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        return TokenBatch(nothing.new_zeros(1), Documents((1,), device), nothing, nothing, nothing.float())
    tokens: list[int] = []
    positions: list[int] = []
    for row in rows:
        first = len(tokens) + len(row.context) - 1
        positions.extend(range(first, first + len(row.completion)))
        tokens += (row.context + row.completion)[:-1]
    completion_lengths_B = torch.tensor([len(row.completion) for row in rows])
    return TokenBatch(
        tokens_T=torch.tensor(tokens, device=device),
        documents=Documents(tuple(row.length - 1 for row in rows), device),
        positions_N=torch.tensor(positions, device=device),
        targets_N=torch.tensor([token for row in rows for token in row.completion], device=device),
        weights_N=torch.tensor(weights_B).repeat_interleave(completion_lengths_B).to(device),
    )
