"""GRPO: sample a group per problem, score it with the verifiers, raise what did better than its group.

The reference of the KL term is the model that the job starts from (None without that term). On the first update of a
step the policy has not moved, so its own log-probabilities stand for π_old; further updates use those of the step's
beginning. With one update a step every ratio is 1, and gspo is grpo. Where an engine sampled, π_old is still the
trainer's, and what lies between the two is measured and, if asked for, corrected (`model/losses/mismatch.py`).

Axes: P problems of a step, G rollouts of a problem, B = P·G rollouts, N their completion tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from model.advantages import fill_unjudged, group_advantages, silent_groups
from model.losses.grpo import Objective, grpo_terms, sequence_ratios
from model.losses.head import Kernel, Part
from model.losses.log_probs import log_prob_part
from model.losses.mismatch import SamplerWeights, sampler_weights
from model.losses.normalise import token_weights
from model.records import Problem
from model.training.data import TokenBatch, collate, lengths_of
from model.training.forward import Model, completion_log_probs
from model.training.job import GRPOJob
from model.training.parallel import World
from model.training.rollout_stage import Reward, RolloutStage, completion_metrics
from model.training.rollouts import Rollout, Rollouts
from model.training.step import MicroBatch, StepWork

Round = tuple[list[Rollout], Tensor]  # rollouts, group after group, and their rewards, [P, G]


class GRPOStage(RolloutStage):
    """Rollouts, rewards, advantages, and the clipped objective on them."""

    job: GRPOJob

    def __init__(
        self, job: GRPOJob, model: Model, reference: Model, rollouts: Rollouts, reward: Reward, world: World
    ) -> None:
        super().__init__(job, model, rollouts, world)
        self.reference, self.reward = reference, reward

    def prepare(self, step: int) -> StepWork:
        """Samples and scores the step's groups."""
        job = self.job
        rounds, synced = self._refilled() if job.max_refills else self._one_round(step)
        rewards_PG = torch.cat([rewards_PG for _, rewards_PG in rounds])
        rollouts = [rollout for sampled, _ in rounds for rollout in sampled]
        silent_P = silent_groups(rewards_PG, job.advantage)
        metrics = {**rollout_metrics(rollouts, rewards_PG), **synced}
        metrics["silent_group_share"] = silent_P.float().mean().item()
        if job.max_refills:
            groups = len(rewards_PG)
            rollouts, rewards_PG = without_groups(rollouts, rewards_PG, silent_P)
            dropped = {"groups_sampled": groups, "dropped_share": 1 - len(rewards_PG) / groups}
            metrics |= dropped | {"refills": len(rounds) - 1}
        advantages_B = group_advantages(rewards_PG, job.advantage).flatten() if len(rewards_PG) else rewards_PG
        micros = self.micro_batches(rollouts, advantages_B)
        return StepWork(micros, job.updates_per_step, metrics)

    def _one_round(self, step: int) -> tuple[list[Round], Mapping[str, float]]:
        chosen, rollouts, synced = self.step_rollouts(step)
        return [(rollouts, self.rewards(rollouts, chosen))], synced

    def _refilled(self) -> tuple[list[Round], Mapping[str, float]]:
        """Rollouts of the next problems; then of others in place of those that teach nothing."""
        rounds: list[Round] = []
        missing = self.job.problems_per_step
        with self.rollouts.current() as synced:
            while missing and len(rounds) <= self.job.max_refills:
                rounds.append(self.sampled(self.next_problems(missing)))
                missing = int(silent_groups(rounds[-1][1], self.job.advantage).sum())
        return rounds, synced

    def sampled(self, problems: Sequence[Problem]) -> Round:
        """A group of rollouts for each problem, and their rewards."""
        chosen = self.repeated(problems)
        rollouts = self.rollouts.sample(self.contexts(chosen))
        return rollouts, self.rewards(rollouts, chosen)

    def rewards(self, rollouts: Sequence[Rollout], chosen: Sequence[Problem]) -> Tensor:
        """The rewards of whole groups, [P, G]."""
        return torch.tensor(self.rewarded(self.reward, rollouts, chosen)).view(-1, self.job.group_size)

    def micro_batches(self, rollouts: Sequence[Rollout], advantages_B: Tensor) -> list[MicroBatch]:
        """This process's rollouts as micro-batches; those that cannot change the loss are left out, but count in its
        mean."""
        job = self.job
        lengths_B = lengths_of([rollout.row for rollout in rollouts])
        weights_B = token_weights(lengths_B, job.normalise, job.max_tokens)
        useful = [b for b, a in enumerate(advantages_B.tolist()) if a != 0 or job.kl_weight > 0]
        packs = self.packs([rollouts[b].row for b in useful])
        return [self._micro_batch([useful[i] for i in pack], rollouts, weights_B, advantages_B) for pack in packs]

    def _micro_batch(
        self, chosen: list[int], rollouts: Sequence[Rollout], weights_B: Tensor, advantages_B: Tensor
    ) -> MicroBatch:
        rows = [rollouts[b].row for b in chosen]
        device = self.model.device
        batch = collate(rows, weights_B[chosen].tolist(), device)
        lengths_B = lengths_of(rows).to(device)
        advantages_N = advantages_B[chosen].to(device).repeat_interleave(lengths_B)
        sampler_N = sampler_log_probs([rollouts[b] for b in chosen], device)
        loss = PolicyLoss(self.job, self.model, self.reference, batch, lengths_B, advantages_N, sampler_N)
        return MicroBatch(batch, Kernel(loss.part, begin=loss.begin))


class PolicyLoss:
    """The objective on one micro-batch, some of its completion tokens at a time."""

    def __init__(
        self,
        job: GRPOJob,
        policy: Model,
        reference: Model,
        batch: TokenBatch,
        lengths_B: Tensor,
        advantages_N: Tensor,
        sampler_N: Tensor | None = None,
    ) -> None:
        self.job, self.policy, self.batch = job, policy, batch
        self.lengths_B, self.advantages_N, self.sampler_N = lengths_B, advantages_N, sampler_N
        self.old_N = self._scored_by(policy) if job.updates_per_step > 1 else None
        self.reference_N = self._scored_by(reference) if job.kl_weight else None
        self.sequence_ratios_N = torch.ones_like(advantages_N)

    def begin(self) -> None:
        """Before each pass, as the policy may have moved since the last one; gspo: measures whole sequences."""
        if self.job.objective is Objective.GSPO and self.old_N is not None:
            self.sequence_ratios_N = sequence_ratios(self._scored_by(self.policy) - self.old_N, self.lengths_B)

    def part(self, logits_CV: Tensor, rows: slice) -> Part:
        """The loss of a chunk and its gradient; overwrites the logits."""
        loss = partial(self.loss, rows=rows)
        return log_prob_part(logits_CV, self.batch.targets_N[rows], loss, self.job.temperature, entropy=True)

    def loss(self, log_probs_N: Tensor, rows: slice) -> tuple[Tensor, Mapping[str, Tensor]]:
        """A chunk's loss and sums of its metrics."""
        job, itself_N = self.job, log_probs_N.detach()
        old_N = itself_N if self.old_N is None else self.old_N[rows]
        mismatch = self._mismatch(old_N, rows)
        terms = grpo_terms(
            log_probs_N,
            old_N,
            itself_N if self.reference_N is None else self.reference_N[rows],
            self.advantages_N[rows],
            clip_low=job.clip_low,
            clip_high=job.clip_high,
            kl_weight=job.kl_weight,
            objective=job.objective,
            sequence_ratios_N=self.sequence_ratios_N[rows],
            kl_estimator=job.kl_estimator,
            kl_in=job.kl_in,
            sampler_weights_N=mismatch.weights_N if mismatch else None,
        )
        metrics = {"kl": terms.kl_N.sum(), "clip_share": terms.clipped_N.sum()}
        if mismatch:
            metrics |= mismatch.sums()
        return (self.batch.weights_N[rows] * terms.loss_N).sum(), metrics

    def _mismatch(self, old_N: Tensor, rows: slice) -> SamplerWeights | None:
        job = self.job
        if self.sampler_N is None:
            return None
        return sampler_weights(old_N, self.sampler_N[rows], job.mismatch, low=job.mismatch_low, high=job.mismatch_high)

    def _scored_by(self, model: Model) -> Tensor:
        return completion_log_probs(model, self.batch, self.job.temperature)


def sampler_log_probs(rollouts: Sequence[Rollout], device: torch.device) -> Tensor | None:
    """log π of an engine that sampled, of all completion tokens, [N]; None where the trained model sampled itself."""
    told = [rollout.log_probs for rollout in rollouts if rollout.log_probs is not None]
    if not told:
        return None
    assert len(told) == len(rollouts)
    return torch.tensor([log_prob for row in told for log_prob in row], device=device)


def without_groups(rollouts: Sequence[Rollout], rewards_PG: Tensor, dropped_P: Tensor) -> tuple[list[Rollout], Tensor]:
    """The other groups: their rollouts, group after group, and their rewards."""
    kept_B = (~dropped_P).repeat_interleave(rewards_PG.shape[1])
    return [rollout for rollout, kept in zip(rollouts, kept_B, strict=True) if kept], rewards_PG[~dropped_P]


def rollout_metrics(rollouts: Sequence[Rollout], rewards_PG: Tensor) -> dict[str, float]:
    """What a step's rollouts look like: means over rollouts, shares of rollouts, lengths in tokens."""
    filled_PG = fill_unjudged(rewards_PG)
    return {
        "reward": filled_PG.mean().item(),
        "reward_max": filled_PG.max().item(),
        "reward_std": filled_PG.std(-1, correction=0).mean().item(),
        "unjudged_share": rewards_PG.isnan().float().mean().item(),
        **completion_metrics(rollouts),
    }
