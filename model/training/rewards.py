"""The verifiers of `model/rewards` as GRPO's reward: the same functions that chose the training data.

r = accuracy + λ·format + overlong. A rollout whose accuracy could not be judged (a time-out, a gold answer that does
not parse) is `nan`, not 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from model.records import Problem
from model.rewards.check import Scored, scored_completion
from model.rewards.reward import reward
from model.rewards.settings import CheckSettings
from model.rewards.workers.pool import VerifierPool
from model.training.job import GRPOJob, RolloutJob
from model.training.rollout_stage import Reward
from model.training.rollouts import Rollout


@contextmanager
def verifier_reward(job: RolloutJob) -> Iterator[Reward]:
    """The reward by the job's checks, carried out in a worker process with a hard time limit."""
    settings = CheckSettings.of(job.check_settings)
    margin = job.overlong_tokens if isinstance(job, GRPOJob) else 0
    pool = VerifierPool(job.checks, settings, workers=1, timeout_seconds=job.check_timeout_seconds)

    def score(rollouts: Sequence[Rollout], problems: Sequence[Problem]) -> list[float]:
        items = [as_scored(rollout, problem, job) for rollout, problem in zip(rollouts, problems, strict=True)]
        return [
            reward(judgements, job.format_weight, unscored=math.nan)
            + overlong_penalty(len(rollout.row.completion), job.max_tokens, margin)
            for judgements, rollout in zip(pool.judge(items), rollouts, strict=True)
        ]

    with pool:
        yield score


def as_scored(rollout: Rollout, problem: Problem, job: RolloutJob) -> Scored:
    """A rollout as the checks see it: the whole assistant message, the prefill included."""
    return scored_completion(
        problem,
        job.prefill + rollout.text,
        finish_reason=rollout.finish_reason,
        completion_tokens=len(rollout.row.completion),
        max_tokens=job.max_tokens,
    )


def overlong_penalty(length: int, limit: int, margin: int) -> float:
    """0 up to L − c tokens, from there on a line to −1 at L (DAPO, arXiv:2503.14476, equation 13).

    Args:
        length: tokens of the completion, |o|.
        limit: L, the longest completion that the sampler allows.
        margin: c, the stretch before L in which the penalty grows; 0: no penalty at any length.
    """
    if not margin or length <= limit - margin:
        return 0.0
    return max((limit - margin - length) / margin, -1.0)
