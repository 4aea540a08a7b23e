"""What GRPO, PPO and on-policy distillation share: which problems a step samples, and by which weights.

Problems come in an endless shuffle that depends on the job's seed alone. By default a step's rollouts are sampled by
the weights that it begins with; with `rollouts_ahead` by those that the step before began with (`rollouts_ahead.py`).
Where several processes train, all have all rollouts and rewards of a step and train on shares of them.

Axes: P problems of a step, G rollouts of a problem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from model.records import FinishReason, Problem
from model.training.data import Row, row_packs
from model.training.forward import Model
from model.training.job import RolloutJob
from model.training.parallel import World
from model.training.problems import read_problems
from model.training.rollouts import Rollout, Rollouts
from model.training.rollouts_ahead import RolloutsAhead
from model.training.step import Beside

# (rollouts, the problem of each) -> their rewards; nan where a rollout could not be judged
Reward = Callable[[Sequence[Rollout], Sequence[Problem]], list[float]]


class RolloutStage:
    """The steps of a job whose model samples from a file of problems."""

    problem_kind: type[Problem] = Problem
    left_out = 0
    beside: Beside | None = None

    def __init__(self, job: RolloutJob, model: Model, rollouts: Rollouts, world: World) -> None:
        self.job, self.model, self.rollouts, self.world = job, model, rollouts, world
        self.tokens_at_once = job.tokens_at_once
        self.problems: Sequence[Problem] = read_problems(job.problems, self.problem_kind)
        self.drawn = 0  # problems, of all steps so far
        self.ahead: RolloutsAhead | None = None
        if job.rollouts_ahead:
            updates = getattr(job, "updates_per_step", 1)
            self.ahead = RolloutsAhead(rollouts, job, lambda step: self.contexts(self.asked(step)), updates)

    @property
    def total_steps(self) -> int:
        """Sets of rollouts."""
        return self.job.steps

    def step_rollouts(self, step: int) -> tuple[list[Problem], list[Rollout], Mapping[str, float]]:
        """The problem of each rollout of a step, the rollouts, group after group, and metrics of how they were made."""
        chosen = self.asked(step)
        self.drawn = step * self.job.problems_per_step
        if self.ahead is not None:
            return chosen, *self.ahead.take(step)
        with self.rollouts.current() as synced:
            return chosen, self.rollouts.sample(self.contexts(chosen)), synced

    def rewarded(self, reward: Reward, rollouts: Sequence[Rollout], problems: Sequence[Problem]) -> list[float]:
        """What `reward` gives for each rollout; every process asks it about its share."""
        return self.world.collected(reward(self.world.dealt(rollouts), self.world.dealt(problems)))

    def teacher_lengths(self) -> list[int]:
        """Tokens that a live teacher reads before each problem's completion, beyond what it reads once for all."""
        return []

    def packs(self, rows: Sequence[Row]) -> Sequence[list[int]]:
        """Indices of the rows of each micro-batch that this process runs; an empty one where it has less to do."""
        return self.world.share(row_packs(rows, self.tokens_at_once, self.world.size))

    def asked(self, step: int) -> list[Problem]:
        """The problems of a step whose every step samples as many, each as often as it is sampled."""
        count = self.job.problems_per_step
        return self.repeated(self.problems_at((step - 1) * count, count))

    def repeated(self, problems: Sequence[Problem]) -> list[Problem]:
        """Each problem once for every rollout of its group."""
        return [problem for problem in problems for _ in range(self.job.group_size)]

    def contexts(self, problems: Sequence[Problem]) -> list[str]:
        """What the student is given to go on from."""
        return [problem.prompt + self.job.prefill for problem in problems]

    def next_problems(self, count: int) -> list[Problem]:
        """The next ones of the shuffle; moves its cursor."""
        self.drawn += count
        return self.problems_at(self.drawn - count, count)

    def problems_at(self, first: int, count: int) -> list[Problem]:
        """A stretch of the endless shuffle."""
        total = len(self.problems)
        return [self.problems[self._shuffled(place // total)[place % total]] for place in range(first, first + count)]

    def _shuffled(self, epoch: int) -> list[int]:
        order: list[int] = np.random.default_rng([self.job.seed, epoch]).permutation(len(self.problems)).tolist()
        return order

    def state_dict(self) -> dict[str, Any]:
        """The shuffle's cursor (refills make it more than the step number tells), and rollouts made ahead."""
        return {"problems_drawn": self.drawn} | ({"ahead": self.ahead.state_dict()} if self.ahead else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.drawn = state["problems_drawn"]
        if self.ahead is not None:
            self.ahead.load_state_dict(state["ahead"])


def completion_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What a step's completions look like: a mean length in tokens, and the share that the token limit cut."""
    lengths = [len(rollout.row.completion) for rollout in rollouts]
    cut = [rollout.finish_reason is FinishReason.LENGTH for rollout in rollouts]
    return {"completion_length": sum(lengths) / len(lengths), "truncated_share": sum(cut) / len(cut)}
