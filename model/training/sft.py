"""Supervised fine-tuning: examples → batches by a token budget → cross-entropy on their completions.

`ExampleStage` is what SFT and KL distillation share: which examples make up a step, and how their tokens are weighted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.losses.head import Kernel, Part
from model.losses.normalise import token_weights
from model.losses.sft import sft_part
from model.training.data import (
    Batches,
    Row,
    TokenBatch,
    Tokenizer,
    collate,
    completion_tokens,
    micro_batches,
    tokenize_all,
)
from model.training.examples import Columns, open_examples
from model.training.job import JobError, SFTJob
from model.training.manifest import TOKENS
from model.training.parallel import World
from model.training.process import StopSignal
from model.training.step import MicroBatch, StepWork


class ExampleStage:
    """The steps of a job that reads a fixed list of examples; `more` is what is to be made of them besides rows."""

    beside = None

    def __init__(
        self, job: SFTJob, tokenizer: Tokenizer, world: World, stop: StopSignal, more: Columns | None = None
    ) -> None:
        self.job, self.world, self.device = job, world, world.device
        self.tokens_at_once = job.tokens_at_once
        columns: Columns = {
            "context": lambda some: tokenize_all(tokenizer, [e.prompt + job.prefill for e in some]),
            "completion": lambda some: completion_tokens(tokenizer, some, job.prefill),
        }
        self.examples = open_examples(job.examples, job.out / TOKENS, {**columns, **(more or {})}, world, stop)
        of = self.examples.lengths
        lengths = of["context"] + of["completion"]
        self.kept = np.flatnonzero(lengths <= job.max_length)  # places in the file, by index of row
        if not len(self.kept):
            raise JobError(
                f"all {len(lengths)} examples are longer than max_length = {job.max_length} tokens: raise it"
            )
        self.left_out = len(lengths) - len(self.kept)
        self.lengths, self.completion_lengths = lengths[self.kept], of["completion"][self.kept]  # tokens, by row
        self.run_lengths = self.lengths  # of what runs for a row: a teacher may read more than the student
        self.batches = Batches(self.lengths, job.tokens_per_batch, job.seed, job.epochs, job.max_steps or None)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all epochs, at most `max_steps`."""
        return len(self.batches)

    def row(self, index: int) -> Row:
        """One of the examples that are trained on, as the student reads it."""
        return Row(self.numbers("context", index), self.numbers("completion", index))

    def numbers(self, column: str, index: int) -> list[int]:
        """What a column holds of one of these examples."""
        return self.examples.list(column, int(self.kept[index]))

    def step_rows(self, step: int) -> list[tuple[list[int], list[float]]]:
        """This process's micro-batches of a step: indices of examples, and the weight of one token of each."""
        chosen = self.batches[step - 1]
        lengths_B = torch.from_numpy(self.completion_lengths[chosen].astype(np.int64))
        weights = token_weights(lengths_B, self.job.normalise, self.job.max_length).tolist()
        packs = micro_batches(self.run_lengths[chosen].tolist(), self.tokens_at_once, self.world.size)
        return [([chosen[b] for b in pack], [weights[b] for b in pack]) for pack in self.world.share(packs)]

    def collate(self, indices: Sequence[int], weights: Sequence[float]) -> TokenBatch:
        """The student's batch of some examples."""
        return collate([self.row(i) for i in indices], weights, self.device)


class SFTStage(ExampleStage):
    """Cross-entropy on completions."""

    def prepare(self, step: int) -> StepWork:
        """The step's examples as micro-batches."""
        batches = [self.collate(indices, weights) for indices, weights in self.step_rows(step)]
        return StepWork([MicroBatch(batch, sft_kernel(batch)) for batch in batches])


def sft_kernel(batch: TokenBatch) -> Kernel:
    """Cross-entropy of some of a batch's completion tokens."""

    def part(logits_CV: Tensor, rows: slice) -> Part:
        return sft_part(logits_CV, batch.targets_N[rows], batch.weights_N[rows])

    return Kernel(part)
