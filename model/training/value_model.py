"""PPO's value model: a trunk of its own, begun as the policy's, with one number per token instead of a vocabulary.

A second trunk and not a head on the policy's, as R1's authors, verl and TRL have it: the two losses pull at different
scales, and a value's gradient in the policy's trunk is a change of the policy that nobody asked for. The price is a
model of the policy's size with its optimizer. The head begins at 0, so that no context is thought better than another
before one was seen, and stays in float32: rewards differ by less than bfloat16 tells apart.
It has its own AdamW, learning rate and gradient clip; weights are saved in checkpoints only.

Axes: N completion tokens of a micro-batch, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.losses.value import value_terms
from model.training.data import TokenBatch
from model.training.forward import Model, completion_hidden
from model.training.job import PPOJob
from model.training.optimizer import MasterAdamW, learning_rate
from model.training.parallel import World, cut_again


@dataclass(frozen=True)
class ValueBatch:
    """A micro-batch, what was thought of it when it was sampled, and what came of it."""

    tokens: TokenBatch
    old_values_N: Tensor
    returns_N: Tensor


class ValueModel:
    """Values of tokens, and their training beside the policy's (see `step.Beside`)."""

    def __init__(self, job: PPOJob, model: Model, world: World) -> None:
        """`model`: a causal one, cut over the processes, whose trunk is taken and whose vocabulary head is left."""
        self.job, self.trunk, self.world = job, model.base_model, world
        self.head = torch.nn.Linear(model.config.hidden_size, 1, device=world.device)
        for weight in self.head.parameters():
            torch.nn.init.zeros_(weight)
        world.shard_part(self.head)
        both = torch.nn.ModuleList([self.trunk, self.head])
        self.optimizer = MasterAdamW(both, job.weight_decay, job.dtype, world, job.optimizer_state)
        self.batches: Sequence[ValueBatch] = ()

    @torch.no_grad()
    def values(self, batch: TokenBatch) -> Tensor:
        """V before every completion token, float32, [N], without gradient."""
        values_N = self._values(batch)
        cut_again(self.head)
        return values_N

    def begin(self, batches: Sequence[ValueBatch]) -> None:
        """A step's whole global batch, for `update`."""
        self.batches = batches

    def update(self, step: int) -> dict[str, float]:
        """One update on the step's batch; its metrics, per-token means but for loss and norm.

        It is not made where one of these is no number.
        """
        own = {"loss": 0.0, "clipped": 0.0, "tokens": 0.0}
        for batch in self.batches:
            terms = value_terms(
                self._values(batch.tokens), batch.old_values_N, batch.returns_N, clip=self.job.value_clip
            )
            value = (batch.tokens.weights_N * terms.loss_N).sum()
            value.backward()  # type: ignore[no-untyped-call]
            self.optimizer.collect()
            own["loss"] += value.item()
            own["clipped"] += terms.clipped_N.sum().item()
            own["tokens"] += batch.tokens.token_count
        own_job = replace(self.job, learning_rate=self.job.value_learning_rate)
        total = self.world.sums(own)
        rate, most_norm = learning_rate(own_job, step, self.job.steps), math.inf
        norm = self.optimizer.step(rate, self.job.grad_clip, most_norm if math.isfinite(total["loss"]) else -1.0)
        clip_share = total["clipped"] / total["tokens"]
        return {"value_loss": total["loss"], "value_grad_norm": norm, "value_clip_share": clip_share}

    def _values(self, batch: TokenBatch) -> Tensor:
        hidden_NH = completion_hidden(self.trunk, batch).to(self.head.weight.dtype)
        values_N1: Tensor = self.head(hidden_NH)
        return values_N1.squeeze(-1)
