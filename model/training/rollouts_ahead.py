"""Rollouts one step ahead: while the trainer makes the update of step s, the engine samples step s+1.

    wait for the rollouts of s  →  give the engine the weights of now  →  it begins with s+1  →  s is trained on

So a step's rollouts are by the weights that the step before began with, except the first one's, which has none to wait
for. Weights are given between two sets of requests, never during one. Which problems and seeds a step has depends on
(job seed, step) alone, not on when its requests run. A checkpoint waits for what is in flight and keeps the finished
rollouts, so that a resumed run trains on those very ones and samples no problem twice.

What the older weights do to a policy gradient is the loss's business (`mismatch`); nothing is corrected here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from model.records import FinishReason
from model.training.data import Row
from model.training.job import RolloutJob
from model.training.rollouts import Rollout

Awaited = Callable[[], list[Rollout]]  # returns once they are there


class BackgroundRollouts(Protocol):
    """A sampler that works while the trainer does something else."""

    def sync(self) -> Mapping[str, float]:
        """Gives it the policy as it is now. No request may be running."""
        ...

    def begin(self, contexts: Sequence[str], generator: torch.Generator) -> Awaited:
        """Begins to sample one completion of every context."""
        ...


class RolloutsAhead:
    """The rollouts of the next step, in flight or finished."""

    def __init__(
        self, rollouts: Any, job: RolloutJob, contexts: Callable[[int], list[str]], updates_per_step: int
    ) -> None:
        self.rollouts: BackgroundRollouts = rollouts
        self.job, self.contexts, self.updates_per_step = job, contexts, updates_per_step
        self.pending: tuple[int, Awaited] | None = None  # the step that they are for

    def take(self, step: int) -> tuple[list[Rollout], dict[str, float]]:
        """A step's rollouts; the next step's are begun with, by the weights as they are now.

        Metrics: `rollout_lag`, updates between the weights that sampled and those that are trained;
        `rollout_wait_seconds`, in which the trainer had nothing to do.
        """
        started = time.perf_counter()
        found = self._finished(step)
        waited = time.perf_counter() - started
        metrics = {**self.rollouts.sync(), "rollout_lag": float(self.updates_per_step)}
        if found is None:
            started = time.perf_counter()
            found, metrics["rollout_lag"] = self._begin(step)(), 0.0
            waited += time.perf_counter() - started
        if step < self.job.steps:
            self.pending = step + 1, self._begin(step + 1)
        return found, metrics | {"rollout_wait_seconds": waited}

    def _begin(self, step: int) -> Awaited:
        return self.rollouts.begin(self.contexts(step), torch.Generator().manual_seed(self.job.step_seed(step)))

    def _finished(self, step: int) -> list[Rollout] | None:
        """Waits for what is in flight; None where that is nothing, or for a step that is not made (a bad batch)."""
        pending, self.pending = self.pending, None
        if pending is None:
            return None
        for_step, awaited = pending
        found = awaited()
        return found if for_step == step else None

    def state_dict(self) -> dict[str, Any]:
        """What is in flight, once it has landed; nothing before the first step and after the last."""
        if self.pending is None:
            return {}
        step, awaited = self.pending
        found = awaited()
        self.pending = step, lambda: found
        return {"step": step, "rollouts": [as_plain(rollout) for rollout in found]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave; what is in flight is waited for and dropped."""
        self._finished(0)
        if state:
            found = [from_plain(values) for values in state["rollouts"]]
            self.pending = state["step"], lambda: found


def as_plain(rollout: Rollout) -> dict[str, Any]:
    """A rollout in values that a checkpoint may hold."""
    row = rollout.row
    told = {"text": rollout.text, "finish_reason": str(rollout.finish_reason), "log_probs": rollout.log_probs}
    return {"context": row.context, "completion": row.completion, **told}


def from_plain(values: Mapping[str, Any]) -> Rollout:
    """The rollout again."""
    row = Row(values["context"], values["completion"])
    return Rollout(row, values["text"], FinishReason(values["finish_reason"]), values["log_probs"])
