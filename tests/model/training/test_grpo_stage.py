from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.advantages import Advantage
from model.losses import head
from model.losses.grpo import Objective
from model.losses.kl_estimators import KLEstimator, KLPlace
from model.losses.log_probs import token_log_probs
from model.losses.mismatch import Mismatch
from model.records import FinishReason, Problem
from model.training.data import Row, collate
from model.training.forward import Model, backward, completion_hidden, completion_log_probs
from model.training.grpo import GRPOStage, rollout_metrics
from model.training.job import GRPOJob, JobError, Precision, Sampler
from model.training.optimizer import MasterAdamW
from model.training.rewards import as_scored, overlong_penalty, verifier_reward
from model.training.rollouts import LocalRollouts, Rollout
from model.training.step import run_step
from tests.model.training.tiny import ALONE, PREFILL, head_of, make_model, make_tokenizer


def make_job(folder: Path, problems: Path, **settings: Any) -> GRPOJob:
    base = {
        "problems_per_step": 2,
        "group_size": 4,
        "max_tokens": 8,
        "prefill": PREFILL,
        "dtype": Precision.FLOAT32,
    }
    return GRPOJob(init=folder, out=folder, problems=problems, **(base | settings))


def likes_vowels(rollouts: Sequence[Rollout], problems: Sequence[Problem]) -> list[float]:
    assert len(problems) == len(rollouts)
    return [sum(letter in "aeiou" for letter in rollout.text) / 8 for rollout in rollouts]


def make_stage(job: GRPOJob) -> GRPOStage:
    model = make_model()
    settings = {"temperature": job.temperature, "max_tokens": job.max_tokens, "stop": []}
    rollouts = LocalRollouts(model, make_tokenizer(), ALONE, **settings)
    return GRPOStage(job, model, make_model(), rollouts, likes_vowels, ALONE)


def test_problems_come_in_a_shuffle_that_starts_anew_when_all_were_seen(tiny_folder: Path, problems_file: Path) -> None:
    stage = make_stage(make_job(tiny_folder, problems_file))
    seen = [problem.gold for _ in range(5) for problem in stage.next_problems(2)]
    assert sorted(seen[:5]) == sorted(seen[5:]) == ["1", "2", "3", "4", "5"]
    other = make_stage(stage.job)
    other.load_state_dict({"problems_drawn": 4})
    assert [problem.gold for problem in other.next_problems(3)] == seen[4:7]
    assert other.state_dict() == {"problems_drawn": 7}


class Paid:
    """Rewards by hand: one list per round; what was sampled for is kept."""

    def __init__(self, *rounds: list[float]) -> None:
        self.rounds, self.asked = list(rounds), list[list[str | None]]()

    def __call__(self, _rollouts: Sequence[Rollout], problems: Sequence[Problem]) -> list[float]:
        self.asked.append([problem.gold for problem in problems[::2]])
        return self.rounds.pop(0)


def test_groups_that_teach_nothing_are_refilled_with_the_next_problems(tiny_folder: Path, problems_file: Path) -> None:
    """Three groups of two; the first round keeps one, the second another, the third none, and no fourth is allowed."""
    settings = {"problems_per_step": 3, "group_size": 2, "max_refills": 2, "kl_weight": 0.0}
    stage = make_stage(make_job(tiny_folder, problems_file, **settings))
    order = [problem.gold for problem in make_stage(stage.job).next_problems(6)]
    stage.reward = paid = Paid([1.0, 0.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [1.0, 1.0])
    work = stage.prepare(1)
    assert paid.asked == [order[:3], order[3:5], order[5:6]]
    assert stage.state_dict() == {"problems_drawn": 6}
    found = {name: work.metrics[name] for name in ("groups_sampled", "refills", "reward", "silent_group_share")}
    assert found == {"groups_sampled": 6, "refills": 2, "reward": 0.5, "silent_group_share": pytest.approx(4 / 6)}
    assert work.metrics["dropped_share"] == pytest.approx(4 / 6)
    lengths = [len(micro.tokens.documents.lengths) for micro in work.micro_batches]
    assert sum(lengths) == 4
    total = sum(micro.tokens.weights_N.sum().item() for micro in work.micro_batches)
    assert total == pytest.approx(1.0)  # normalise = "sequence": a mean over the kept rollouts alone


def test_no_refill_once_every_group_teaches(tiny_folder: Path, problems_file: Path) -> None:
    stage = make_stage(make_job(tiny_folder, problems_file, group_size=2, max_refills=5))
    stage.reward = Paid([1.0, 0.0, 0.0, 1.0])
    work = stage.prepare(1)
    assert (work.metrics["groups_sampled"], work.metrics["refills"], work.metrics["dropped_share"]) == (2, 0, 0.0)


def test_a_step_without_a_group_that_teaches_updates_nothing(tiny_folder: Path, problems_file: Path) -> None:
    stage = make_stage(make_job(tiny_folder, problems_file, group_size=2, max_refills=1))
    stage.reward = Paid([1.0, 1.0, 0.0, 0.0], [math.nan, math.nan, 1.0, math.nan])
    line = run_step(stage.job, stage, stage.model, MasterAdamW(stage.model, 0.0), 1)
    assert (line["groups_sampled"], line["dropped_share"], line["tokens"]) == (4, 1.0, 0)
    assert line["unjudged_share"] == pytest.approx(3 / 8)
    assert "loss" not in line


def test_a_token_outside_icepops_band_has_no_gradient_and_is_counted(tiny_folder: Path, problems_file: Path) -> None:
    """Two rollouts of two tokens; the engine found one token e times likelier than the trainer does."""
    settings = {"rollouts": Sampler.VLLM, "mismatch": Mismatch.ICEPOP, "kl_weight": 0.0, "group_size": 2}
    stage = make_stage(make_job(tiny_folder, problems_file, **settings))
    rows = [Row([3, 4], [5, 6]), Row([3, 4], [7, 8])]
    batch = collate(rows, [1.0, 1.0], stage.model.device)
    told_N = completion_log_probs(stage.model, batch, 1.0) + torch.tensor([0.0, 0.0, 1.0, 0.0])
    rollouts = [
        Rollout(row, "", FinishReason.STOP, part.tolist()) for row, part in zip(rows, told_N.split(2), strict=True)
    ]
    (micro,) = stage.micro_batches(rollouts, torch.tensor([1.0, -1.0]))
    loss, sums = backward(stage.model, micro.tokens, micro.kernel, head_of(stage.model))
    assert loss == pytest.approx(-(1 + 1 - 0 - 1) / 4, abs=1e-5)
    assert sums["mismatch_capped_share"] == 1
    assert sums["mismatch_ratio"] == pytest.approx(3 + math.exp(-1), abs=1e-4)
    assert sums["mismatch_log_ratio"] == pytest.approx(1, abs=1e-4)
    assert sums["mismatch_kl"] == pytest.approx(math.exp(-1), abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mismatch": Mismatch.TIS}, "for rollouts = 'vllm'"),
        ({"rollouts": Sampler.VLLM, "mismatch_low": 1.5}, "1 must lie between mismatch_low = 1.5 and"),
        ({"rollouts": Sampler.VLLM, "rollout_args": ("--logprobs-mode=raw_logprobs",)}, "of another distribution"),
        ({"rollouts": Sampler.VLLM, "rollout_args": ("--speculative_config", "{}")}, "of another distribution"),
    ],
)
def test_a_ratio_that_compares_two_distributions_is_refused(
    settings: dict[str, Any], says: str, tiny_folder: Path, problems_file: Path
) -> None:
    with pytest.raises(JobError, match=says):
        make_job(tiny_folder, problems_file, **settings)


def test_on_policy_the_loss_is_minus_the_weighted_advantage(tiny_folder: Path, problems_file: Path) -> None:
    """ρ = 1 and π = π_ref: the loss is −Σ w·A, which is 0 per group for normalise = sequence."""
    stage = make_stage(make_job(tiny_folder, problems_file))
    torch.manual_seed(1)
    work = stage.prepare(1)
    total, clipped, kl = 0.0, 0.0, 0.0
    head = head_of(stage.model)
    for micro in work.micro_batches:
        loss, metrics = backward(stage.model, micro.tokens, micro.kernel, head)
        total, clipped, kl = total + loss, clipped + metrics["clip_share"], kl + metrics["kl"]
    assert (total, clipped, kl) == pytest.approx((0.0, 0.0, 0.0), abs=1e-5)
    assert work.metrics["reward"] > 0


def test_rollouts_without_advantage_are_left_out_but_counted(tiny_folder: Path, problems_file: Path) -> None:
    stage = make_stage(make_job(tiny_folder, problems_file, kl_weight=0.0))
    rollouts = [Rollout(Row([3], [4, 5]), "cd", FinishReason.STOP)] * 4
    micros = stage.micro_batches(rollouts, torch.tensor([1.0, -1.0, 0.0, 0.0]))
    assert sum(len(micro.tokens.documents.lengths) for micro in micros) == 2
    assert micros[0].tokens.weights_N.tolist() == [1 / 8] * 4  # 1 / (4 rollouts · 2 tokens)


def test_a_second_update_sees_the_ratio_move(tiny_folder: Path, problems_file: Path) -> None:
    stage = make_stage(make_job(tiny_folder, problems_file, updates_per_step=2, learning_rate=1e-2, warmup_share=0.0))
    line = run_step(stage.job, stage, stage.model, MasterAdamW(stage.model, 0.0), 1)
    assert line["kl"] > 0
    assert line["loss"] < -1e-4


TRAINED_BY = [
    {"objective": Objective.GSPO},
    {"objective": Objective.CISPO, "clip_low": 1.0},
    {"kl_estimator": KLEstimator.K1, "kl_in": KLPlace.REWARD},
    {"advantage": Advantage.RLOO},
]


@pytest.mark.parametrize("settings", TRAINED_BY, ids=lambda settings: "-".join(map(str, settings.values())))
def test_every_member_of_the_family_raises_the_reward(
    settings: dict[str, Any], tiny_folder: Path, problems_file: Path
) -> None:
    job = make_job(
        tiny_folder, problems_file, steps=10, updates_per_step=2, learning_rate=1e-2, warmup_share=0.0, **settings
    )
    stage = make_stage(job)
    optimizer = MasterAdamW(stage.model, 0.0)
    rewards = [run_step(job, stage, stage.model, optimizer, step)["reward"] for step in range(1, 11)]
    assert sum(rewards[-3:]) > 1.5 * sum(rewards[:3])


def test_online_rft_learns_what_was_right(tiny_folder: Path, problems_file: Path) -> None:
    """Of texts with two vowels and more ever more are written, wrong ones being left out; no group is compared."""

    def right_or_not(rollouts: Sequence[Rollout], problems: Sequence[Problem]) -> list[float]:
        return [1.0 if vowels >= 2 / 8 else 0.2 for vowels in likes_vowels(rollouts, problems)]

    settings = {"advantage": Advantage.RFT, "kl_weight": 0.0, "learning_rate": 1e-2, "warmup_share": 0.0}
    stage = make_stage(make_job(tiny_folder, problems_file, steps=20, group_size=8, **settings))
    stage.reward = right_or_not
    optimizer = MasterAdamW(stage.model, 0.0)
    lines = [run_step(stage.job, stage, stage.model, optimizer, step) for step in range(1, 21)]
    assert sum(line["reward"] for line in lines[-3:]) > 1.5 * sum(line["reward"] for line in lines[:3])
    assert lines[-1]["silent_group_share"] == 0.0


def test_rft_needs_a_reward_that_says_what_is_right(tiny_folder: Path, problems_file: Path) -> None:
    for settings in ({"format_weight": 1.0}, {"overlong_tokens": 4}):
        with pytest.raises(JobError, match="takes a reward of 1 and more for right"):
            make_job(tiny_folder, problems_file, advantage=Advantage.RFT, **settings)


def test_gspo_of_a_moved_policy_is_that_of_whole_sequences(
    tiny_folder: Path, problems_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equation 5 of arXiv:2507.18071 under autograd, after the weights have changed, against chunks of two tokens."""
    monkeypatch.setattr(head, "CPU_ROWS", 2)
    settings = {"objective": Objective.GSPO, "updates_per_step": 2, "kl_weight": 0.0, "clip_low": 0.01}
    stage, lengths = make_stage(make_job(tiny_folder, problems_file, clip_high=0.01, **settings)), [3, 2, 1]
    rollouts = [Rollout(Row([3, 4], list(range(5, 5 + length))), "", FinishReason.STOP) for length in lengths]
    advantages_B = torch.tensor([1.0, -1.0, 0.5])
    (micro,) = stage.micro_batches(rollouts, advantages_B)
    old_N = completion_log_probs(stage.model, micro.tokens, 1.0)
    move(stage.model)
    loss, metrics = backward(stage.model, micro.tokens, micro.kernel, head_of(stage.model))

    whole = make_model()
    move(whole)
    hidden_NH = completion_hidden(whole, micro.tokens)
    now_N = token_log_probs(whole.get_output_embeddings()(hidden_NH), micro.tokens.targets_N)
    s_B = torch.stack([part.mean().exp() for part in (now_N - old_N).split(lengths)])
    expected = -torch.minimum(s_B * advantages_B, s_B.clamp(0.99, 1.01) * advantages_B).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert 0 < metrics["clip_share"] < 6
    for found, exact in zip(stage.model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(found.grad, exact.grad, atol=1e-6, rtol=1e-4)


def move(model: Model) -> None:
    """What an update might do to the weights."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.2)


def test_training_raises_the_reward(tiny_folder: Path, problems_file: Path) -> None:
    job = make_job(tiny_folder, problems_file, steps=15, group_size=8, learning_rate=1e-2, warmup_share=0.0)
    stage = make_stage(job)
    optimizer = MasterAdamW(stage.model, 0.0)
    rewards = [run_step(job, stage, stage.model, optimizer, step)["reward"] for step in range(1, 16)]
    assert sum(rewards[-3:]) > 2 * sum(rewards[:3])


def test_the_reference_does_not_move(tiny_folder: Path, problems_file: Path) -> None:
    job = make_job(tiny_folder, problems_file, learning_rate=1e-2, warmup_share=0.0)
    stage = make_stage(job)
    batch = stage.prepare(1).micro_batches[0].tokens
    before_N = completion_log_probs(stage.reference, batch, 1.0)
    run_step(job, stage, stage.model, MasterAdamW(stage.model, 0.0), 1)
    assert torch.equal(completion_log_probs(stage.reference, batch, 1.0), before_N)
    assert not torch.equal(completion_log_probs(stage.model, batch, 1.0), before_N)


def test_metrics_by_hand() -> None:
    rollouts = [
        Rollout(Row([1], [2] * length), "", reason)
        for length, reason in (
            (2, FinishReason.STOP),
            (4, FinishReason.LENGTH),
            (2, FinishReason.STOP),
            (4, FinishReason.STOP),
        )
    ]
    assert rollout_metrics(rollouts, torch.tensor([[1.0, 0.0], [1.0, math.nan]])) == {
        "reward": 0.75,
        "reward_max": 1.0,
        "reward_std": 0.25,
        "unjudged_share": 0.25,
        "completion_length": 3.0,
        "truncated_share": 0.25,
    }


def test_the_verifiers_reward_accuracy_and_format(tiny_folder: Path, problems_file: Path) -> None:
    job = make_job(tiny_folder, problems_file, prefill="<think>\n", format_weight=0.2)
    three = Problem("p", "math", "tiny", "1 + 2?", "3")
    texts = ["so 3\n</think>\n<answer>3</answer>", "so 4\n</think>\n<answer>4</answer>", "no idea"]
    rollouts = [Rollout(Row([1], [2]), text, FinishReason.STOP) for text in texts]
    assert as_scored(rollouts[0], three, job).text == "<think>\nso 3\n</think>\n<answer>3</answer>"
    with verifier_reward(job) as reward:
        right, wrong, silent = reward(rollouts, [three] * 3)
        assert math.isnan(reward(rollouts[:1], [replace(three, gold=None)])[0])
    assert right == pytest.approx(1.2)
    assert wrong == pytest.approx(0.2)
    assert silent < wrong


@pytest.mark.parametrize(("length", "penalty"), [(1, 0.0), (6, 0.0), (7, -0.25), (8, -0.5), (10, -1.0), (11, -1.0)])
def test_the_penalty_grows_over_the_last_four_of_ten_tokens(length: int, penalty: float) -> None:
    assert overlong_penalty(length, limit=10, margin=4) == penalty
    assert overlong_penalty(length, limit=10, margin=0) == 0.0


def test_an_overlong_rollout_is_paid_less(tiny_folder: Path, problems_file: Path) -> None:
    job = make_job(tiny_folder, problems_file, prefill="<think>\n", format_weight=0.2, overlong_tokens=4)
    three = Problem("p", "math", "tiny", "1 + 2?", "3")
    text = "so 3\n</think>\n<answer>3</answer>"
    rollouts = [Rollout(Row([1], [2] * length), text, FinishReason.STOP) for length in (4, 6)]
    with verifier_reward(job) as reward:
        assert reward(rollouts, [three] * 2) == pytest.approx([1.2, 0.7])


def test_a_file_without_problems_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(JobError, match="does not hold problems"):
        make_stage(make_job(tiny_folder, tmp_path / "text.parquet"))
