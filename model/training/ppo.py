"""PPO: rollouts and verifiers as in GRPO, but a value model says what was to be expected, token by token.

The comparison that R1's authors made (arXiv:2501.12948, supplementary A.3), for a second model's memory and computing.
The KL penalty stands in the reward by default, so that a return carries what later tokens pay. On the first update of
a step the policy is the sampler; every update goes through all rollouts of the step. Groups are not compared:
`group_size` is only how many rollouts a problem gets. Where several processes train, the value model is cut over them
like the policy.

Axes: B rollouts of a step, N completion tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.advantages import Advantage
from model.gae import explained_variance, generalised_advantages, token_rewards, whitened
from model.losses.head import Kernel
from model.losses.kl_estimators import KLPlace, estimate
from model.losses.mismatch import Mismatch
from model.losses.normalise import token_weights
from model.training.data import TokenBatch, collate, lengths_of
from model.training.forward import Model, completion_log_probs
from model.training.grpo import GRPOStage, PolicyLoss, rollout_metrics
from model.training.job import JobError, PPOJob
from model.training.parallel import World
from model.training.rollout_stage import Reward
from model.training.rollouts import Rollout, Rollouts
from model.training.step import MicroBatch, StepWork
from model.training.value_model import ValueBatch, ValueModel


@dataclass(frozen=True)
class Assessed:
    """A micro-batch of whole rollouts, before the advantages of the step are compared."""

    tokens: TokenBatch
    lengths_B: Tensor
    reference_N: Tensor | None  # log π_ref, nats, where the penalty stands in the reward
    values_N: Tensor
    advantages_N: Tensor

    @property
    def returns_N(self) -> Tensor:  # noqa: N802 - axes
        """R = A + V."""
        return self.advantages_N + self.values_N


class PPOStage(GRPOStage):
    """Rollouts, rewards, values, advantages of tokens; the clipped objective, and beside it the value model's."""

    job: PPOJob

    def __init__(
        self,
        job: PPOJob,
        model: Model,
        reference: Model,
        rollouts: Rollouts,
        reward: Reward,
        value_model: ValueModel,
        world: World,
    ) -> None:
        require_settings(job)
        super().__init__(job, model, reference, rollouts, reward, world)
        self.beside = self.value_model = value_model

    def prepare(self, step: int) -> StepWork:
        """Samples, scores and assesses the step's rollouts; those that could not be judged teach neither model."""
        job = self.job
        chosen, rollouts, synced = self.step_rollouts(step)
        rewards_PG = self.rewards(rollouts, chosen)
        metrics = {**rollout_metrics(rollouts, rewards_PG), **synced}
        assessed = self.assess(rollouts, rewards_PG.flatten())
        self.value_model.begin([ValueBatch(each.tokens, each.values_N, each.returns_N) for each in assessed])
        micros = self.policy_batches(assessed)
        return StepWork(micros, job.updates_per_step, metrics | self.value_metrics(assessed))

    def assess(self, rollouts: Sequence[Rollout], rewards_B: Tensor) -> list[Assessed]:
        """This process's judged rollouts as micro-batches with values and advantages; all count in the loss's
        denominator."""
        lengths_B = lengths_of([rollout.row for rollout in rollouts])
        weights_B = token_weights(lengths_B, self.job.normalise, self.job.max_tokens)
        judged = (~rewards_B.isnan()).nonzero().flatten().tolist()
        packs = self.packs([rollouts[b].row for b in judged])
        return [self._assess([judged[i] for i in pack], rollouts, weights_B, rewards_B) for pack in packs]

    def _assess(self, chosen: list[int], rollouts: Sequence[Rollout], weights_B: Tensor, rewards_B: Tensor) -> Assessed:
        job, device = self.job, self.model.device
        rows = [rollouts[b].row for b in chosen]
        batch = collate(rows, weights_B[chosen].tolist(), device)
        lengths_B = lengths_of(rows).to(device)
        values_N = self.value_model.values(batch)
        penalties_N, reference_N = torch.zeros_like(values_N), None
        if job.kl_weight and job.kl_in is KLPlace.REWARD:
            reference_N = completion_log_probs(self.reference, batch, job.temperature)
            sampled_N = completion_log_probs(self.model, batch, job.temperature)
            penalties_N = job.kl_weight * estimate(job.kl_estimator, reference_N - sampled_N)
        paid_N = token_rewards(rewards_B[chosen].to(device), penalties_N, lengths_B)
        advantages_N = generalised_advantages(
            paid_N, values_N, lengths_B, discount=job.discount, gae_lambda=job.gae_lambda
        )
        return Assessed(batch, lengths_B, reference_N, values_N, advantages_N)

    def policy_batches(self, assessed: Sequence[Assessed]) -> list[MicroBatch]:
        """The clipped objective on every micro-batch."""
        if not assessed:
            return []
        advantages_N = torch.cat([each.advantages_N for each in assessed])
        if self.job.whiten:
            advantages_N = whitened(advantages_N, self.world.together(advantages_N))
        parts = torch.split(advantages_N, [each.tokens.token_count for each in assessed])
        return [self._policy_batch(each, part_N) for each, part_N in zip(assessed, parts, strict=True)]

    def _policy_batch(self, assessed: Assessed, advantages_N: Tensor) -> MicroBatch:
        # What the returns have paid for already is not paid for in the loss again; it is only measured there.
        job = self.job if assessed.reference_N is None else replace(self.job, kl_weight=0.0)
        loss = PolicyLoss(job, self.model, self.reference, assessed.tokens, assessed.lengths_B, advantages_N)
        if assessed.reference_N is not None:
            loss.reference_N = assessed.reference_N
        return MicroBatch(assessed.tokens, Kernel(loss.part, begin=loss.begin))

    def value_metrics(self, assessed: Sequence[Assessed]) -> dict[str, float]:
        """How well the value model foresaw the step's returns; nothing where no rollout could be judged."""
        if not assessed:
            return {}
        values_N = self.world.together(torch.cat([each.values_N for each in assessed]))
        returns_N = self.world.together(torch.cat([each.returns_N for each in assessed]))
        return {
            "value_mean": values_N.mean().item(),
            "return_mean": returns_N.mean().item(),
            "explained_variance": explained_variance(values_N, returns_N),
        }


def require_settings(job: PPOJob) -> None:
    """Raises JobError for settings that PPO has no meaning for."""
    if job.advantage is not Advantage.GRPO:
        raise JobError(f"advantage = {job.advantage.value!r} compares groups; ppo's advantages are its value model's")
    for name in ("discount", "gae_lambda"):
        if not 0 <= getattr(job, name) <= 1:
            raise JobError(f"{name} must lie in [0, 1], got {getattr(job, name)}")
    if job.max_refills or job.mismatch is not Mismatch.NONE:
        raise JobError("ppo takes neither max_refills nor mismatch: it keeps every rollout, as it was sampled")
    if job.value_clip < 0:
        raise JobError(f"value_clip must be at least 0, got {job.value_clip}")
