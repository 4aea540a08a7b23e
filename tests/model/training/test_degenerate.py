from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.training.degenerate import DegenerateError, degenerate, require_healthy
from model.training.job import GRPOJob, SFTJob

HEALTHY = {
    "reward_max": 1.2,
    "silent_group_share": 0.5,
    "truncated_share": 0.1,
    "entropy": 0.04,
    "clip_share": 0.1,
    "mismatch_capped_share": 0.0,
}


def make_job(**settings: Any) -> GRPOJob:
    here = Path()
    return GRPOJob(init=here, out=here, problems=here, **({"degenerate_window": 3} | settings))


def lines(*steps: dict[str, float]) -> list[dict[str, float]]:
    return [{"step": number, **HEALTHY, **step} for number, step in enumerate(steps, start=1)]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"reward_max": 0.0}, "no rollout was paid (best reward 0)"),
        ({"reward_max": -0.5}, "best reward -0.5"),
        ({"silent_group_share": 1.0}, "100.0% of the groups teach nothing (paid alike)"),
        ({"truncated_share": 0.97}, "97.0% of the completions were cut at max_tokens = 48"),
        ({"entropy": 0.0002}, "entropy is 0.0002 nats a token"),
        ({"clip_share": 0.95}, "clip_share is 95.0%"),
        ({"mismatch_capped_share": 0.9}, "mismatch_capped_share is 90.0%"),
    ],
)
def test_a_whole_window_of_it_is_a_reason(bad: dict[str, float], says: str) -> None:
    (reason,) = degenerate(make_job(), lines({}, bad, bad, bad))
    assert says in reason
    assert not degenerate(make_job(), lines(bad, bad))
    assert not degenerate(make_job(degenerate_window=0), lines(bad, bad, bad))


def test_shares_are_means_over_the_window_and_one_paid_rollout_is_enough() -> None:
    job = make_job(degenerate_truncated_share=0.5)
    assert degenerate(job, lines({"truncated_share": 0.0}, {"truncated_share": 0.9}, {"truncated_share": 0.6}))
    assert not degenerate(job, lines({"truncated_share": 0.0}, {"truncated_share": 0.9}, {"truncated_share": 0.5}))
    assert not degenerate(job, lines({"reward_max": 0.0}, {"reward_max": 0.0}, {"reward_max": 0.2}))


def test_a_step_without_a_loss_says_nothing_of_entropy() -> None:
    silent = lines({}, {"entropy": 0.0}, {"entropy": 0.0})
    del silent[0]["entropy"]
    assert not degenerate(make_job(), silent)


def test_the_error_names_the_step_and_every_reason() -> None:
    bad = {"reward_max": 0.0, "silent_group_share": 1.0}
    with pytest.raises(DegenerateError, match=r"after step 3, .*no rollout was paid.*; 100.0% of the groups"):
        require_healthy(make_job(), lines(bad, bad, bad))
    require_healthy(SFTJob(init=Path(), out=Path(), examples=Path()), lines(bad, bad, bad))


def test_the_demo_is_not_stopped() -> None:
    """What its six steps have measured, whatever the window."""
    measured = [
        {"silent_group_share": silent, "truncated_share": 0.0, "entropy": entropy, "clip_share": 0.0}
        for silent, entropy in ((0.5, 0.12), (0.125, 0.119), (0.5, 0.042), (0.375, 0.042), (0.625, 0.048), (0.5, 0.065))
    ]
    for window in range(1, 7):
        assert not degenerate(make_job(degenerate_window=window), lines(*measured))
