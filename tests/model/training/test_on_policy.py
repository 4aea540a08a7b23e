"""The student's own tokens, the teacher's distributions: gradients by hand, and a distance that falls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from model.losses.kl import Divergence, divergence
from model.records import TAUGHT_PROBLEM_SCHEMA, FinishReason, Problem, TaughtProblem, to_table
from model.training.data import Row, collate
from model.training.degenerate import degenerate
from model.training.distill import divergence_kernel
from model.training.forward import backward
from model.training.job import JobError, OnPolicyJob, Precision, Sampler
from model.training.manifest import identity
from model.training.on_policy import OnPolicyStage, up_to_unknown
from model.training.optimizer import MasterAdamW
from model.training.rollouts import LocalRollouts, Rollout
from model.training.step import run_step
from tests.model.training.tiny import ALONE, PREFILL, head_of, make_model, make_tokenizer, plain_logits, save_tiny

WORKED = "q: 1 + 1? a: 2. "
ROLLOUTS = [
    Rollout(Row([3, 4], [5, 6, 7]), "", FinishReason.LENGTH),
    Rollout(Row([3, 8], [9]), "", FinishReason.STOP),
]


@pytest.fixture
def taught_file(tmp_path: Path) -> Path:
    """Three problems, which the teacher reads behind a worked turn."""
    prompts = [f"q: {i} + 1? " for i in range(3)]
    rows = [
        TaughtProblem(str(i), "math", "tiny", prompt, str(i + 1), teacher_prompt=WORKED + prompt)
        for i, prompt in enumerate(prompts)
    ]
    pq.write_table(to_table(rows, TAUGHT_PROBLEM_SCHEMA), tmp_path / "taught.parquet")
    return tmp_path / "taught.parquet"


def make_job(folder: Path, problems: Path, **settings: Any) -> OnPolicyJob:
    base = {
        "problems_per_step": 4,
        "group_size": 2,
        "max_tokens": 8,
        "prefill": PREFILL,
        "dtype": Precision.FLOAT32,
        "learning_rate": 1e-2,
        "warmup_share": 0.0,
        "teacher": folder,
    }
    return OnPolicyJob(init=folder, out=folder, problems=problems, **(base | settings))


def make_stage(job: OnPolicyJob, seed: int = 0) -> OnPolicyStage:
    model, tokenizer = make_model(seed), make_tokenizer()
    settings = {"temperature": job.temperature, "max_tokens": job.max_tokens, "stop": []}
    rollouts = LocalRollouts(model, tokenizer, ALONE, **settings)
    return OnPolicyStage(job, model, tokenizer, rollouts, ALONE)


def test_two_tokens_by_hand() -> None:
    """q = (1/4, 3/4), p = (1/2, 1/2), and the student has written the second token.

    ∂KL(q‖p)/∂z_1 = q_1 (log(q_1/p_1) − KL), with KL = ¼ log ½ + ¾ log 3/2.
    """
    batch = collate([Row([0], [1])], [1.0], torch.device("cpu"))
    kernel = divergence_kernel(
        batch, torch.ones(1, 1), torch.zeros(2, 1), 2, Divergence.REVERSE, beta=0.5, temperature=1.0, own_text=True
    )
    part = kernel.part(torch.tensor([[0.0, math.log(3)]]), slice(0, 1))
    distance = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)
    slope = 0.25 * (math.log(1 / 2) - distance)
    assert part.loss.item() == pytest.approx(distance)
    assert part.gradient_CV[0].tolist() == pytest.approx([slope, -slope])
    told = {name: value.item() for name, value in part.sums.items()}
    assert told == pytest.approx({"divergence": distance, "entropy": -math.log(3 / 4), "reverse_kl": math.log(3 / 2)})


@pytest.mark.parametrize("kind", [Divergence.REVERSE, Divergence.FORWARD, Divergence.JSD])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    kind: Divergence, tiny_folder: Path, problems_file: Path
) -> None:
    """A file of plain problems: the teacher reads what the student does."""
    stage = make_stage(make_job(tiny_folder, problems_file, divergence=kind))
    head = head_of(stage.model)
    work = stage.prepare(1)
    for micro in work.micro_batches:
        loss, metrics = backward(stage.model, micro.tokens, micro.kernel, head)
        assert (loss, metrics["divergence"]) == pytest.approx((0.0, 0.0), abs=1e-5)
        assert metrics["entropy"] > 0
    gradients = [head.gradient_VH, *(weight.grad for weight in stage.model.parameters())]
    assert max(gradient.abs().max().item() for gradient in gradients) < 1e-5


def test_the_gradient_is_the_distances_at_tokens_that_are_given(tiny_folder: Path, taught_file: Path) -> None:
    """Under autograd, each rollout run whole and alone behind its own context; sampling has no share in it."""
    stage = make_stage(make_job(tiny_folder, taught_file, normalise="sequence"), seed=1)
    chosen = stage.problems[:2]
    (micro,) = stage.micro_batches(ROLLOUTS, chosen)
    loss, _ = backward(stage.model, micro.tokens, micro.kernel, head_of(stage.model))

    whole, teacher, tokenizer = make_model(1), make_model(), make_tokenizer()
    contexts = [tokenizer(p.teacher_prompt + PREFILL, add_special_tokens=False)["input_ids"] for p in chosen]
    losses = []
    for rollout, context in zip(ROLLOUTS, contexts, strict=True):
        own, theirs = (
            collate([row], [1.0], whole.device) for row in (rollout.row, Row(context, rollout.row.completion))
        )
        student_NV, teacher_NV = plain_logits(whole, own)[:, :45], plain_logits(teacher, theirs)[:, :45]
        losses.append(divergence(student_NV, teacher_NV.detach(), Divergence.REVERSE).mean())
    expected = torch.stack(losses).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for found, exact in zip(stage.model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(found.grad, exact.grad, atol=1e-6, rtol=1e-4)


def test_the_teacher_reads_its_worked_turn_and_what_was_cut_counts(tiny_folder: Path, taught_file: Path) -> None:
    stage = make_stage(make_job(tiny_folder, taught_file))
    assert make_tokenizer().decode(stage.teacher.prefix) == WORKED + "q: "
    (micro,) = stage.micro_batches(ROLLOUTS, stage.problems[:2])
    weights = sorted(micro.tokens.weights_N.tolist())
    assert weights == pytest.approx([1 / 6] * 3 + [1 / 2])  # 1 / (2 rollouts · its tokens), cut or not


@pytest.mark.parametrize("kind", [Divergence.REVERSE, Divergence.JSD])
def test_the_student_comes_nearer_to_its_teacher(
    kind: Divergence, tiny_folder: Path, taught_file: Path, tmp_path: Path
) -> None:
    """A teacher that is sure of itself: tiny random models alike say next to nothing."""
    other = make_model(5)
    with torch.no_grad():
        other.base_model.norm.weight.mul_(12)
    other.save_pretrained(save_tiny(tmp_path / "other"))
    job = make_job(tiny_folder, taught_file, steps=20, divergence=kind, teacher=tmp_path / "other")
    stage = make_stage(job)
    optimizer = MasterAdamW(stage.model, 0.0)
    lines = [run_step(job, stage, stage.model, optimizer, step) for step in range(1, 21)]
    for name in ("divergence", "reverse_kl"):
        assert sum(line[name] for line in lines[-3:]) < 0.8 * sum(line[name] for line in lines[:3])


def test_rewards_are_measured_where_there_are_any(tiny_folder: Path, problems_file: Path) -> None:
    stage = make_stage(make_job(tiny_folder, problems_file))
    assert "reward" not in stage.prepare(1).metrics

    def half(rollouts: Sequence[Rollout], _problems: Sequence[Problem]) -> list[float]:
        return [1.0, 0.0, *[math.nan] * (len(rollouts) - 2)]

    stage.reward = half
    assert stage.prepare(1).metrics["reward"] == 0.5
    stage.reward = lambda rollouts, _: [math.nan] * len(rollouts)
    assert "reward" not in stage.prepare(1).metrics


def test_completions_that_are_all_cut_stop_the_run_and_rewards_do_not() -> None:
    here = Path()
    job = OnPolicyJob(init=here, out=here, problems=here, teacher=here, degenerate_window=2)
    healthy = {"truncated_share": 0.1, "entropy": 0.5, "reward": 0.0}
    assert not degenerate(job, [healthy] * 2)
    (cut,) = degenerate(job, [healthy | {"truncated_share": 1.0}] * 2)
    assert "were cut at max_tokens = 48" in cut
    (collapsed,) = degenerate(job, [healthy | {"entropy": 0.0}] * 2)
    assert "or take another divergence" in collapsed


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"divergence": Divergence.ULD}, "is for distill"),
        ({"beta": 1.0}, r"beta must lie in \(0, 1\)"),
        ({"divergence_temperature": 0.0}, "divergence_temperature above 0"),
        ({"rollouts_ahead": 1}, "are for rollouts = 'vllm'"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(JobError, match=says):
        make_job(Path(), Path(), **settings)


def test_another_tokenizer_is_refused(tiny_folder: Path, problems_file: Path, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "other")
    make_tokenizer("".join(reversed("abcdefg"))).save_pretrained(tmp_path / "other")
    with pytest.raises(JobError, match="different vocabularies"):
        make_stage(make_job(tiny_folder, problems_file, teacher=tmp_path / "other"))


def test_the_identity_names_teacher_and_divergence(tiny_folder: Path, problems_file: Path) -> None:
    job = make_job(tiny_folder, problems_file)
    assert identity(job)["divergence"] == "reverse"
    assert identity(job)["teacher"] == identity(job)["init"]
    assert "rollouts_ahead" not in identity(job)  # came later than folders that are still good
    assert identity(replace(job, rollouts=Sampler.VLLM, rollouts_ahead=1))["rollouts_ahead"] == 1


def test_a_token_that_no_text_has_ends_what_is_learned() -> None:
    """The tiny model's head has 48 rows, the tokenizer knows 45."""
    row = Row([3], [4, 44, 45, 5])
    assert up_to_unknown(row, 45, 0) == Row([3], [4, 44, 0])
    assert up_to_unknown(Row([3], [47]), 45, 0) == Row([3], [0])
    assert up_to_unknown(row, 46, 0) is row
