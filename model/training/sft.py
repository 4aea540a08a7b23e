"""Supervised fine-tuning: examples → batches by a token budget → cross-entropy on their completions.

`ExampleStage` is what SFT and KL distillation share: which examples make up a step, and how their tokens are weighted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.losses.head import Kernel, Part
from model.losses.normalise import token_weights
from model.losses.sft import sft_part
from model.records import TrainingExample
from model.training.data import (
    Row,
    TokenBatch,
    Tokenizer,
    collate,
    completion_row,
    epoch_batches,
    micro_batches,
    read_examples,
)
from model.training.job import JobError, SFTJob
from model.training.loop import MicroBatch, StepWork
from model.training.parallel import World


class ExampleStage:
    """The steps of a job that reads a fixed list of examples."""

    beside = None

    def __init__(self, job: SFTJob, tokenizer: Tokenizer, world: World) -> None:
        self.job, self.world, self.device = job, world, world.device
        self.tokens_at_once = job.tokens_at_once
        found = read_examples(job.examples)
        rows = [completion_row(tokenizer, e.prompt, e.completion, job.prefill, e.sample_id) for e in found]
        kept = [i for i, row in enumerate(rows) if row.length <= job.max_length]
        if not kept:
            raise JobError(f"all {len(rows)} examples are longer than max_length = {job.max_length} tokens: raise it")
        self.examples: list[TrainingExample] = [found[i] for i in kept]
        self.rows: list[Row] = [rows[i] for i in kept]
        self.left_out = len(rows) - len(kept)
        self.batches = self._all_batches()

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all epochs, at most `max_steps`."""
        return len(self.batches)

    def _all_batches(self) -> list[list[int]]:
        lengths = [row.length for row in self.rows]
        epochs = range(self.job.epochs)
        batches = [b for e in epochs for b in epoch_batches(lengths, self.job.tokens_per_batch, self.job.seed, e)]
        return batches[: self.job.max_steps or None]

    def step_rows(self, step: int) -> list[tuple[list[int], list[float]]]:
        """This process's micro-batches of a step: indices of examples, and the weight of one token of each."""
        chosen = self.batches[step - 1]
        lengths_B = torch.tensor([len(self.rows[i].completion) for i in chosen])
        weights = token_weights(lengths_B, self.job.normalise, self.job.max_length).tolist()
        lengths = [self.rows[i].length for i in chosen]
        groups = self.world.share(lengths, micro_batches, self.tokens_at_once)
        return [([chosen[b] for b in group], [weights[b] for b in group]) for group in groups]

    def collate(self, indices: Sequence[int], weights: Sequence[float]) -> TokenBatch:
        """The student's batch of some examples."""
        return collate([self.rows[i] for i in indices], weights, self.device)


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
