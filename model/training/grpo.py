"""GRPO: sample a group per problem, score it with the verifiers, raise what did better than its group.

The reference of the KL term is the model that the job starts from (None without that term). On the first update of a
step the policy is the sampler, so its own log-probabilities stand for π_old; further updates use those of the step's
beginning. With one update a step every ratio is 1, and gspo is grpo.

Axes: P problems of a step, G rollouts of a problem, B = P·G rollouts, N their completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from model.advantages import group_advantages, silent_groups
from model.losses.grpo import Objective, grpo_terms, sequence_ratios
from model.losses.head import Kernel, Part
from model.losses.log_probs import log_prob_part
from model.losses.normalise import token_weights
from model.records import PROBLEM_SCHEMA, FinishReason, Problem, from_table
from model.training.data import TokenBatch, collate, micro_batches
from model.training.forward import Model, completion_log_probs
from model.training.job import GRPOJob, JobError
from model.training.loop import Beside, MicroBatch, StepWork
from model.training.rollouts import Rollout, Rollouts

# (rollouts, the problem of each) -> their rewards; nan where a rollout could not be judged
Reward = Callable[[Sequence[Rollout], Sequence[Problem]], list[float]]


class GRPOStage:
    """Rollouts, rewards, advantages, and the clipped objective on them."""

    left_out = 0
    beside: Beside | None = None

    def __init__(self, job: GRPOJob, model: Model, reference: Model, rollouts: Rollouts, reward: Reward) -> None:
        self.job, self.model, self.reference = job, model, reference
        self.rollouts, self.reward = rollouts, reward
        self.problems = read_problems(job)

    @property
    def total_steps(self) -> int:
        """Sets of rollouts."""
        return self.job.steps

    def prepare(self, step: int) -> StepWork:
        """Samples and scores the step's groups."""
        job = self.job
        chosen = [problem for problem in self.step_problems(step) for _ in range(job.group_size)]
        rollouts = self.rollouts.sample([problem.prompt + job.prefill for problem in chosen])
        rewards_B = torch.tensor(self.reward(rollouts, chosen))
        rewards_PG = fill_unjudged(rewards_B.view(-1, job.group_size))
        advantages_B = group_advantages(rewards_PG, job.advantage).flatten()
        micros = self.micro_batches(rollouts, advantages_B)
        metrics = rollout_metrics(rollouts, rewards_PG) | {"unjudged_share": rewards_B.isnan().float().mean().item()}
        return StepWork(micros, job.updates_per_step, metrics)

    def step_problems(self, step: int) -> list[Problem]:
        """The problems of a step: the next ones of an endless shuffle that depends on the job's seed alone."""
        count, total = self.job.problems_per_step, len(self.problems)
        places = range((step - 1) * count, step * count)
        return [self.problems[self._shuffled(place // total)[place % total]] for place in places]

    def _shuffled(self, epoch: int) -> list[int]:
        order: list[int] = np.random.default_rng([self.job.seed, epoch]).permutation(len(self.problems)).tolist()
        return order

    def micro_batches(self, rollouts: Sequence[Rollout], advantages_B: Tensor) -> list[MicroBatch]:
        """The rollouts as micro-batches; those that cannot change the loss are left out, but count in its mean."""
        job = self.job
        lengths_B = torch.tensor([len(rollout.row.completion) for rollout in rollouts])
        weights_B = token_weights(lengths_B, job.normalise, job.max_tokens)
        useful = [b for b, a in enumerate(advantages_B.tolist()) if a != 0 or job.kl_weight > 0]
        groups = micro_batches([rollouts[b].row.length for b in useful], job.tokens_per_micro_batch)
        return [self._micro_batch([useful[i] for i in group], rollouts, weights_B, advantages_B) for group in groups]

    def _micro_batch(
        self, chosen: list[int], rollouts: Sequence[Rollout], weights_B: Tensor, advantages_B: Tensor
    ) -> MicroBatch:
        rows = [rollouts[b].row for b in chosen]
        device = self.model.device
        batch = collate(rows, weights_B[chosen].tolist(), device)
        lengths_B = torch.tensor([len(row.completion) for row in rows], device=device)
        advantages_N = advantages_B[chosen].to(device).repeat_interleave(lengths_B)
        loss = PolicyLoss(self.job, self.model, self.reference, batch, lengths_B, advantages_N)
        return MicroBatch(batch, Kernel(loss.part))


class PolicyLoss:
    """The objective on one micro-batch, some of its completion tokens at a time."""

    def __init__(
        self, job: GRPOJob, policy: Model, reference: Model, batch: TokenBatch, lengths_B: Tensor, advantages_N: Tensor
    ) -> None:
        self.job, self.policy, self.batch = job, policy, batch
        self.lengths_B, self.advantages_N = lengths_B, advantages_N
        self.old_N = self._scored_by(policy) if job.updates_per_step > 1 else None
        self.reference_N = self._scored_by(reference) if job.kl_weight else None
        self.sequence_ratios_N = torch.ones_like(advantages_N)

    def part(self, logits_CV: Tensor, rows: slice) -> Part:
        """The loss of a chunk and its gradient; overwrites the logits."""
        if rows.start == 0:  # a pass begins, and the policy may have moved since the last one
            self._measure_sequences()
        loss = partial(self.loss, rows=rows)
        return log_prob_part(logits_CV, self.batch.targets_N[rows], loss, self.job.temperature)

    def loss(self, log_probs_N: Tensor, rows: slice) -> tuple[Tensor, Mapping[str, Tensor]]:
        """A chunk's loss and sums of its metrics."""
        job, itself_N = self.job, log_probs_N.detach()
        terms = grpo_terms(
            log_probs_N,
            itself_N if self.old_N is None else self.old_N[rows],
            itself_N if self.reference_N is None else self.reference_N[rows],
            self.advantages_N[rows],
            clip_low=job.clip_low,
            clip_high=job.clip_high,
            kl_weight=job.kl_weight,
            objective=job.objective,
            sequence_ratios_N=self.sequence_ratios_N[rows],
            kl_estimator=job.kl_estimator,
            kl_in=job.kl_in,
        )
        metrics = {"kl": terms.kl_N.sum(), "clip_share": terms.clipped_N.sum(), "entropy": -itself_N.sum()}
        return (self.batch.weights_N[rows] * terms.loss_N).sum(), metrics

    def _measure_sequences(self) -> None:
        """gspo: a pass over whole sequences, before tokens are taken chunk by chunk."""
        if self.job.objective is Objective.GSPO and self.old_N is not None:
            self.sequence_ratios_N = sequence_ratios(self._scored_by(self.policy) - self.old_N, self.lengths_B)

    def _scored_by(self, model: Model) -> Tensor:
        return completion_log_probs(model, self.batch, self.job.temperature)


def read_problems(job: GRPOJob) -> list[Problem]:
    """Every problem, its prompt as the student sees it, in the file's order. Raises JobError."""
    try:
        rows: list[Problem] = from_table(pq.read_table(job.problems, schema=PROBLEM_SCHEMA), Problem)
    except (OSError, pa.ArrowInvalid) as error:
        raise JobError(f"{job.problems} does not hold problems: {error}") from error
    if not rows:
        raise JobError(f"{job.problems} holds no problems to train on")
    return rows


def fill_unjudged(rewards_PG: Tensor) -> Tensor:
    """A rollout that could not be judged gets its group's mean, and so no advantage; a group of such gets 0."""
    means_P1 = rewards_PG.nanmean(-1, keepdim=True).nan_to_num(0.0)
    return torch.where(rewards_PG.isnan(), means_P1, rewards_PG)


def rollout_metrics(rollouts: Sequence[Rollout], rewards_PG: Tensor) -> dict[str, float]:
    """What a step's rollouts look like: means over rollouts, shares of rollouts and of groups, lengths in tokens."""
    lengths = [len(rollout.row.completion) for rollout in rollouts]
    cut = [rollout.finish_reason is FinishReason.LENGTH for rollout in rollouts]
    return {
        "reward": rewards_PG.mean().item(),
        "reward_std": rewards_PG.std(-1, correction=0).mean().item(),
        "silent_group_share": silent_groups(rewards_PG).float().mean().item(),
        "completion_length": sum(lengths) / len(lengths),
        "truncated_share": sum(cut) / len(cut),
    }
