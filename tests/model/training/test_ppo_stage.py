from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.advantages import Advantage
from model.losses.kl_estimators import KLPlace
from model.records import FinishReason, Problem
from model.training.checkpoint import Checkpoints
from model.training.data import Row
from model.training.degenerate import degenerate
from model.training.forward import completion_log_probs
from model.training.job import JobError, PPOJob, Precision
from model.training.loop import train
from model.training.optimizer import MasterAdamW, all_finite
from model.training.ppo import PPOStage
from model.training.recovery import DivergedError
from model.training.rollouts import LocalRollouts, Rollout
from model.training.step import run_step
from model.training.value_model import ValueBatch, ValueModel
from tests.model.training.test_grpo_stage import likes_vowels, move
from tests.model.training.tiny import ALONE, PREFILL, Never, make_model, make_tokenizer

ROLLOUTS = [Rollout(Row([3, 4], [5, 6, 7]), "", FinishReason.STOP), Rollout(Row([3], [8]), "", FinishReason.STOP)]


def make_job(folder: Path, problems: Path, **settings: Any) -> PPOJob:
    base = {
        "problems_per_step": 4,
        "group_size": 2,
        "max_tokens": 8,
        "prefill": PREFILL,
        "dtype": Precision.FLOAT32,
        "learning_rate": 1e-2,
        "value_learning_rate": 1e-2,
        "warmup_share": 0.0,
    }
    return PPOJob(init=folder, out=folder, problems=problems, **(base | settings))


def make_stage(job: PPOJob) -> PPOStage:
    model = make_model()
    settings = {"temperature": job.temperature, "max_tokens": job.max_tokens, "stop": []}
    rollouts = LocalRollouts(model, make_tokenizer(), ALONE, **settings)
    return PPOStage(job, model, make_model(), rollouts, likes_vowels, ValueModel(job, make_model(), ALONE), ALONE)


def test_a_new_value_model_expects_nothing_and_every_token_earns_the_whole_reward(
    tiny_folder: Path, problems_file: Path
) -> None:
    stage = make_stage(make_job(tiny_folder, problems_file))
    (assessed,) = stage.assess(ROLLOUTS, torch.tensor([1.0, 0.5]))
    assert assessed.values_N.tolist() == [0.0] * 4
    assert assessed.advantages_N.tolist() == assessed.returns_N.tolist() == [1.0, 1.0, 1.0, 0.5]
    stage.value_model.begin([ValueBatch(assessed.tokens, assessed.values_N, assessed.returns_N)])
    assert stage.value_model.update(1)["value_loss"] == pytest.approx((1.0**2 + 0.5**2) / 2 / 2)  # per completion


def test_a_return_carries_the_penalty_of_this_token_and_all_later_ones(tiny_folder: Path, problems_file: Path) -> None:
    """γ = λ = 1 and V = 0: R_t = 1 − β Σ_{u≥t} (log π − log π_ref), and the loss does not pay again."""
    stage = make_stage(make_job(tiny_folder, problems_file, kl_weight=0.5, whiten=False))
    move(stage.model)
    (assessed,) = stage.assess(ROLLOUTS[:1], torch.tensor([1.0]))
    ratios_T = completion_log_probs(stage.model, assessed.tokens, 1.0) - completion_log_probs(
        stage.reference, assessed.tokens, 1.0
    )
    later_T = ratios_T.flip(0).cumsum(0).flip(0)
    assert ratios_T.abs().min() > 1e-3
    assert assessed.returns_N.tolist() == pytest.approx((1 - 0.5 * later_T).tolist(), abs=1e-6)
    (micro,) = stage.policy_batches([assessed])
    hidden_NH = torch.randn(3, 32)
    logits_NV = hidden_NH @ stage.model.get_output_embeddings().weight.detach().T
    part = micro.kernel.part(logits_NV, slice(0, 3))
    assert part.loss.item() == pytest.approx(-assessed.advantages_N.mean().item())  # ratio 1; normalise = sequence
    assert part.sums["kl"].item() != 0


def test_in_the_loss_the_penalty_is_grpos(tiny_folder: Path, problems_file: Path) -> None:
    stage = make_stage(make_job(tiny_folder, problems_file, kl_weight=0.5, kl_in=KLPlace.LOSS))
    move(stage.model)
    (assessed,) = stage.assess(ROLLOUTS[:1], torch.tensor([1.0]))
    assert assessed.returns_N.tolist() == [1.0] * 3


def test_rollouts_that_were_not_judged_teach_nothing_but_are_counted(tiny_folder: Path, problems_file: Path) -> None:
    stage = make_stage(make_job(tiny_folder, problems_file))
    (assessed,) = stage.assess(ROLLOUTS, torch.tensor([math.nan, 1.0]))
    assert assessed.tokens.weights_N.tolist() == [1 / 2]
    assert stage.policy_batches(stage.assess(ROLLOUTS, torch.tensor([math.nan, math.nan]))) == []


def test_advantages_are_whitened_over_all_micro_batches(tiny_folder: Path, problems_file: Path) -> None:
    stage = make_stage(make_job(tiny_folder, problems_file, tokens_per_micro_batch=5))
    assessed = stage.assess(ROLLOUTS, torch.tensor([1.0, 0.5]))
    assert len(assessed) == 2
    seen_N = torch.cat([micro.kernel.part.__self__.advantages_N for micro in stage.policy_batches(assessed)])
    assert seen_N.tolist() == pytest.approx([1 / math.sqrt(3)] * 3 + [-math.sqrt(3)])


def test_a_run_of_one_rollout_a_problem_is_not_taken_for_one_that_learns_nothing(
    tiny_folder: Path, problems_file: Path
) -> None:
    """No group is compared, so none says nothing."""
    job = make_job(tiny_folder, problems_file, steps=3, problems_per_step=3, group_size=1, degenerate_window=2)
    stage = make_stage(job)
    optimizer = MasterAdamW(stage.model, 0.0)
    lines = [run_step(job, stage, stage.model, optimizer, step) for step in range(1, 4)]
    assert not degenerate(job, [line | {"reward_max": 1.0} for line in lines])


def test_training_raises_the_reward_and_values_follow_it(tiny_folder: Path, problems_file: Path) -> None:
    job = make_job(tiny_folder, problems_file, steps=15, group_size=4, updates_per_step=2)
    stage = make_stage(job)
    optimizer = MasterAdamW(stage.model, 0.0)
    lines = [run_step(job, stage, stage.model, optimizer, step) for step in range(1, 16)]
    rewards = [line["reward"] for line in lines]
    assert sum(rewards[-3:]) > 2 * sum(rewards[:3])
    assert lines[0]["value_mean"] == lines[0]["explained_variance"] == 0.0
    assert abs(lines[-1]["value_mean"] - lines[-1]["return_mean"]) < 0.2


def test_a_value_model_learns_which_rollout_is_worth_what(tiny_folder: Path, problems_file: Path) -> None:
    stage = make_stage(make_job(tiny_folder, problems_file, steps=60, value_clip=0.5))
    for step in range(1, 61):
        assessed = stage.assess(ROLLOUTS, torch.tensor([1.0, 0.0]))
        stage.value_model.begin([ValueBatch(each.tokens, each.values_N, each.returns_N) for each in assessed])
        stage.value_model.update(step)
    assessed = stage.assess(ROLLOUTS, torch.tensor([1.0, 0.0]))
    assert stage.value_metrics(assessed)["explained_variance"] > 0.9


def test_policy_and_value_model_share_no_weight(tiny_folder: Path, problems_file: Path) -> None:
    stage = make_stage(make_job(tiny_folder, problems_file))
    own = {id(weight) for weight in stage.model.parameters()}
    assert not own & {id(weight) for weight in stage.value_model.optimizer.weights}


def test_a_checkpoint_holds_the_value_model(tiny_folder: Path, problems_file: Path, tmp_path: Path) -> None:
    job = make_job(tiny_folder, problems_file)
    stage, other = make_stage(job), make_stage(job)
    optimizer = MasterAdamW(stage.model, 0.0)
    run_step(job, stage, stage.model, optimizer, 1)
    with closing(Checkpoints(tmp_path, job.dtype, ALONE)) as checkpoints:
        checkpoints.save(1, stage.model, make_tokenizer(), optimizer, stage)
    batch = stage.assess(ROLLOUTS, torch.zeros(2))[0].tokens
    assert not torch.equal(other.value_model.values(batch), stage.value_model.values(batch))
    with closing(Checkpoints(tmp_path, job.dtype, ALONE)) as checkpoints:
        assert checkpoints.restore(MasterAdamW(other.model, 0.0), other) == 1
    assert torch.equal(other.value_model.values(batch), stage.value_model.values(batch))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"advantage": Advantage.RLOO}, "'rloo' compares groups"),
        ({"gae_lambda": 1.5}, r"gae_lambda must lie in \[0, 1\]"),
        ({"discount": -0.1}, r"discount must lie in \[0, 1\]"),
        ({"value_clip": -1.0}, "value_clip must be at least 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(
    settings: dict[str, Any], told: str, tiny_folder: Path, problems_file: Path
) -> None:
    with pytest.raises(JobError, match=told):
        make_stage(make_job(tiny_folder, problems_file, **settings))


class PaysTooMuch:
    """At some of its steps, so that the value model's loss is no number there."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.asked = steps, 0

    def __call__(self, rollouts: Sequence[Rollout], problems: Sequence[Problem]) -> list[float]:
        self.asked += 1
        return [1e30] * len(rollouts) if self.asked in self.steps else likes_vowels(rollouts, problems)


def trained(job: PPOJob, stage: PPOStage) -> list[dict[str, float]]:
    train(job, stage, stage.model, make_tokenizer(), Never(), ALONE)
    return [json.loads(line) for line in (job.out / "metrics.jsonl").read_text().splitlines()]


def test_a_value_loss_without_numbers_makes_no_update_of_the_value_model(
    tiny_folder: Path, problems_file: Path, tmp_path: Path
) -> None:
    job = replace(make_job(tiny_folder, problems_file, steps=4), out=tmp_path)
    stage = make_stage(job)
    stage.reward = PaysTooMuch(2)
    lines = trained(job, stage)
    assert [line["step"] for line in lines if "nonfinite" in line] == [2]
    assert "value_loss" not in lines[1]
    assert all_finite(stage.value_model.optimizer.state_dict().values())
    assert not (tmp_path / "skipped.json").exists()


def test_a_value_model_that_breaks_goes_back_to_the_last_checkpoint_with_the_policy(
    tiny_folder: Path, problems_file: Path, tmp_path: Path
) -> None:
    job = replace(make_job(tiny_folder, problems_file, steps=6, checkpoint_every=2), out=tmp_path)
    stage = make_stage(job)
    real, calls = stage.value_model.update, [0]

    def update(step: int) -> dict[str, float]:
        found = real(step)
        calls[0] += 1
        if calls[0] == 3:
            with torch.no_grad():
                stage.value_model.head.weight.fill_(torch.nan)
        return found

    stage.value_model.update = update  # type: ignore[method-assign]
    lines = trained(job, stage)
    left_out = [each["step"] for each in json.loads((tmp_path / "skipped.json").read_text())]
    assert [line["step"] for line in lines if "skipped" in line] == left_out
    assert [line["step"] for line in lines if "skipped" in line] == [3]
    assert "value_loss" in lines[-1]


def test_a_value_model_that_never_gives_numbers_stops_the_run(
    tiny_folder: Path, problems_file: Path, tmp_path: Path
) -> None:
    job = replace(make_job(tiny_folder, problems_file, steps=4), out=tmp_path)
    stage = make_stage(job)
    stage.reward = PaysTooMuch(1, 2, 3, 4)
    with pytest.raises(DivergedError, match=r"step 2: .* lower learning_rate or value_learning_rate"):
        trained(job, stage)
