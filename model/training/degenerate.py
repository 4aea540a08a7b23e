"""Is a run on its own rollouts learning nothing, and why? Looked for over a window of steps, so that it ends early.

Each reason is one that real runs have gone on with for days, without an error and often with a loss of 0: no rollout
was ever paid, every group was paid alike, nearly every completion was cut, the policy says one thing only, nearly no
token passes a clip. One step proves none of this; a whole window of them does. GRPO's entropy is that of the policy's
whole distribution; on-policy distillation's is estimated from the tokens drawn, the same in expectation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from model.advantages import Advantage
from model.errors import TrainingError
from model.training.job import GRPOJob, Job, RolloutJob

Lines = Sequence[Mapping[str, float]]


class DegenerateError(TrainingError):
    """The run learns nothing. It would go on so: the last checkpoint is kept, and a retry ends at once."""

    retryable = False


def require_healthy(job: Job, lines: Lines) -> None:
    """Raises DegenerateError, with all reasons, for the metrics of a run so far."""
    if reasons := degenerate(job, lines):
        raise DegenerateError(
            f"stopped after step {lines[-1]['step']:.0f}, because over a whole window of steps {'; '.join(reasons)}. "
            "The checkpoint is kept: the same job with other degenerate_* limits goes on from it"
        )


def degenerate(job: Job, lines: Lines) -> list[str]:
    """What is wrong over the last `degenerate_window` steps, with its remedy; nothing before there are so many."""
    if not isinstance(job, RolloutJob) or not job.degenerate_window or len(lines) < job.degenerate_window:
        return []
    window = lines[-job.degenerate_window :]
    of_rewards = list(_of_rewards(job, window)) if isinstance(job, GRPOJob) else []
    return of_rewards + list(_of_completions(job, window))


def _of_rewards(job: GRPOJob, window: Lines) -> Iterator[str]:
    if (best := _of(window, "reward_max", max)) is not None and best <= 0:
        yield f"no rollout was paid (best reward {best:g}): easier problems, a better init, or other checks"
    if (share := _mean(window, "silent_group_share")) is not None and share >= job.degenerate_silent_share:
        why = "none right" if job.advantage is Advantage.RFT else "paid alike"
        yield f"{share:.1%} of the groups teach nothing ({why}): problems of another pass_rate"
    for name, remedy in _CLIPS.items():
        if (share := _mean(window, name)) is not None and share >= job.degenerate_clip_share:
            yield f"{name} is {share:.1%}, so that next to no token has a gradient: {remedy}"


def _of_completions(job: RolloutJob, window: Lines) -> Iterator[str]:
    if (share := _mean(window, "truncated_share")) is not None and share >= job.degenerate_truncated_share:
        yield f"{share:.1%} of the completions were cut at max_tokens = {job.max_tokens}: raise it"
    if (entropy := _mean(window, "entropy")) is not None and entropy <= job.degenerate_entropy:
        further = ", raise kl_weight or clip_high" if isinstance(job, GRPOJob) else " or take another divergence"
        yield f"the policy's entropy is {entropy:.2g} nats a token: lower learning_rate{further}"


_CLIPS = {
    "clip_share": "lower learning_rate or updates_per_step",
    "mismatch_capped_share": "the rollout engine's probabilities are not the trainer's: compare its dtype and settings",
}


def _mean(window: Lines, name: str) -> float | None:
    return _of(window, name, lambda values: sum(values) / len(values))


def _of(window: Lines, name: str, reduce: Callable[[list[float]], float]) -> float | None:
    """None unless every step has the metric: one whose rollouts all were left out has no loss, and none of its."""
    values = [line[name] for line in window if name in line]
    return reduce(values) if len(values) == len(window) else None
