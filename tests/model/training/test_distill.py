from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.losses.head import head_gradients
from model.training.data import Row, collate
from model.training.distill import (
    DistillStage,
    PrefixedModel,
    StoredDistillStage,
    require_same_tokens,
    shared_prefix,
)
from model.training.forward import backward, completion_hidden
from model.training.job import DistillJob, JobError, Precision
from model.training.runner import run_job
from tests.model.training.tiny import (
    ALONE,
    LETTERS,
    PREFILL,
    Never,
    head_of,
    make_model,
    make_tokenizer,
    plain_logits,
    save_tiny,
    teacher_row,
    write_teacher_rows,
)

CPU = torch.device("cpu")
ROWS = [Row([3, 4, 5, 6], [7, 8]), Row([3, 4, 9], [10, 11, 12, 0]), Row([3, 4, 13, 14, 15], [16])]


def test_the_prefix_is_what_all_contexts_open_with_and_never_a_whole_context() -> None:
    assert shared_prefix([row.context for row in ROWS]) == [3, 4]
    assert shared_prefix([[3, 4], [3, 4]]) == [3]
    assert shared_prefix([[3], [4]]) == []


@pytest.mark.parametrize("prefix", [[3, 4], [3], []])
def test_a_prefix_run_once_equals_whole_rows(prefix: list[int]) -> None:
    model = make_model()
    whole_NH = completion_hidden(model, collate(ROWS, [1.0] * 3, CPU))
    prefixed = PrefixedModel(model, prefix, CPU)
    for _ in range(2):  # the second batch proves that the first left the prefix as it was
        torch.testing.assert_close(prefixed.completion_hidden(ROWS), whole_NH, atol=1e-5, rtol=1e-4)


@pytest.fixture
def make_stage(tiny_folder: Path, examples_file: Path, tmp_path: Path) -> Callable[[], DistillStage]:
    def make() -> DistillStage:
        job = DistillJob(
            init=tiny_folder,
            teacher=tiny_folder,
            examples=examples_file,
            out=tmp_path,
            prefill=PREFILL,
            dtype=Precision.FLOAT32,
            tokens_per_batch=200,
            tokens_per_micro_batch=100,
        )
        return DistillStage(job, make_tokenizer(), ALONE, Never())

    return make


def test_the_teacher_sees_its_worked_turns_and_the_same_completion(
    make_stage: Callable[[], DistillStage],
) -> None:
    stage = make_stage()
    tokenizer = make_tokenizer()
    assert tokenizer.decode(stage.teacher.prefix) == "q: 1 + 1? a: 2. q: "
    for student, teacher in ((stage.row(i), stage.teacher_row(i)) for i in range(len(stage.kept))):
        assert tokenizer.decode(teacher.context) == "q: 1 + 1? a: 2. " + tokenizer.decode(student.context)
        assert teacher.completion == student.completion


def test_with_the_same_prompt_and_weights_there_is_nothing_to_learn(
    make_stage: Callable[[], DistillStage],
) -> None:
    stage, student = make_stage(), make_model()
    stage.teacher_row = stage.row  # type: ignore[method-assign]
    stage.teacher = PrefixedModel(stage.teacher.model, [], CPU)
    head = head_of(student)
    for micro in stage.prepare(1).micro_batches:
        loss, metrics = backward(student, micro.tokens, micro.kernel, head)
        assert loss == pytest.approx(0.0, abs=1e-6)
        assert metrics["cross_entropy"] > 0
    assert max(g.abs().max().item() for g in (head.gradient_VH, *(p.grad for p in student.parameters()))) < 1e-6


def test_padding_rows_of_the_vocabulary_get_no_mass(make_stage: Callable[[], DistillStage]) -> None:
    """The tokenizer knows 45 ids, the models' tables have 48 rows."""
    stage, student = make_stage(), make_model()
    assert stage.vocabulary == 45
    micro = stage.prepare(1).micro_batches[0]
    hidden_NH = completion_hidden(student, micro.tokens).detach()
    quiet_VH = student.get_output_embeddings().weight.detach()
    loud_VH = torch.cat([quiet_VH[:45], 50 * torch.ones(3, quiet_VH.shape[1])])
    loud, quiet = (head_gradients(hidden_NH, head_VH, micro.kernel) for head_VH in (loud_VH, quiet_VH))
    assert loud.loss == quiet.loss
    assert loud.weight_VH is not None
    assert loud.weight_VH.shape == quiet_VH.shape
    assert loud.weight_VH[45:].abs().max().item() == 0.0


def test_a_teacher_whose_head_has_more_rows_is_the_same_teacher(
    make_stage: Callable[[], DistillStage], tmp_path: Path
) -> None:
    """As Qwen2.5's sizes: one tokenizer of 45 ids, the student's table padded to 48 rows and the teacher's to 60."""
    padded = make_model(vocabulary=60)
    with torch.no_grad():
        for weight, plain in zip(padded.parameters(), make_model().parameters(), strict=True):
            weight.fill_(9.0)
            weight[: len(plain)] = plain
    folder = save_tiny(tmp_path / "padded")
    padded.save_pretrained(folder)
    found = []
    for teacher in (make_stage().job.teacher, folder):
        stage = DistillStage(replace(make_stage().job, teacher=teacher), make_tokenizer(), ALONE, Never())
        student = make_model(seed=1)
        place = head_of(student)
        losses = [backward(student, each.tokens, each.kernel, place)[0] for each in stage.prepare(1).micro_batches]
        found.append((losses, [place.gradient_VH, *(weight.grad for weight in student.parameters())]))
    (losses, gradients), (others, theirs) = found
    assert others == losses
    assert all(torch.equal(one, other) for one, other in zip(gradients, theirs, strict=True))


@pytest.fixture
def live_stage(make_stage: Callable[[], DistillStage], tmp_path: Path) -> DistillStage:
    """With a teacher that prefers some tokens; half precision tells uniform probabilities least well."""
    folder = save_tiny(tmp_path / "teacher", seed=2)
    teacher = make_model(seed=2)
    teacher.get_output_embeddings().weight.data.mul_(20.0)
    teacher.save_pretrained(folder)
    return DistillStage(replace(make_stage().job, teacher=folder), make_tokenizer(), ALONE, Never())


@pytest.fixture
def stored_stage(live_stage: DistillStage, tmp_path: Path) -> StoredDistillStage:
    """The stage of the same job with all that its live teacher says written down: k = V."""
    live = live_stage
    stored = []
    for index, place in enumerate(live.kept):
        row = live.teacher_row(index)
        log_probs_TK, ids_TK = _teacher_log_probs(live, row).sort(descending=True)
        stored.append(teacher_row(live.examples.sample_ids[int(place)].as_py(), row, ids_TK, log_probs_TK))
    job = replace(live.job, teacher=None, stored=write_teacher_rows(tmp_path, stored))
    return StoredDistillStage(job, make_tokenizer(), ALONE, Never())


@torch.no_grad()
def _teacher_log_probs(live: DistillStage, row: Row) -> torch.Tensor:
    hidden_TH = live.teacher.completion_hidden([row])
    weight_VH = live.teacher.model.get_output_embeddings().weight[: live.vocabulary]
    return (hidden_TH @ weight_VH.T).log_softmax(-1)


def test_all_tokens_stored_are_the_live_teacher(live_stage: DistillStage, stored_stage: StoredDistillStage) -> None:
    """Loss and gradients of a step, but for log-probabilities in half precision: k = V is the worst case, for what
    the stored probabilities lack of 1 is then told from a tail of nothing."""
    results = []
    for stage in (live_stage, stored_stage):
        student = make_model(seed=1)
        place = head_of(student)
        parts = [backward(student, micro.tokens, micro.kernel, place) for micro in stage.prepare(1).micro_batches]
        gradient = torch.cat([parameter.grad.flatten() for parameter in student.parameters()])
        results.append((sum(loss for loss, _ in parts), gradient))
    (one, one_gradient), (other, other_gradient) = results
    assert other == pytest.approx(one, rel=2e-3)
    assert (other_gradient - one_gradient).norm() < 2e-3 * one_gradient.norm()


def test_unrounded_the_stored_kernel_is_the_live_one(
    live_stage: DistillStage, stored_stage: StoredDistillStage
) -> None:
    live, everything = live_stage, slice(None)
    indices, weights = live.step_rows(1)[0]
    batch, rows = live.collate(indices, weights), [live.teacher_row(i) for i in indices]
    log_probs_NV = torch.cat([_teacher_log_probs(live, row) for row in rows])
    ids_NV = torch.arange(live.vocabulary).expand_as(log_probs_NV)
    logits_NV = plain_logits(make_model(seed=1), batch).detach()[:, : live.vocabulary]
    hidden_NH = live.teacher.completion_hidden(rows)
    one = live.kernel(batch, hidden_NH).part(logits_NV.clone(), everything)
    other = stored_stage.kernel(batch, ids_NV, log_probs_NV).part(logits_NV.clone(), everything)
    assert other.loss.item() == pytest.approx(one.loss.item(), rel=1e-5)
    torch.testing.assert_close(other.gradient_CV, one.gradient_CV, atol=1e-7, rtol=1e-4)
    assert other.sums["teacher_mass"].item() == pytest.approx(batch.token_count)


def test_stored_rows_train_without_a_teacher_and_tell_their_masses(
    stored_stage: StoredDistillStage, tmp_path: Path
) -> None:
    job = replace(stored_stage.job, out=tmp_path / "out", max_steps=2, threads=1)
    run_job(job, Never())
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert line["teacher_mass"] == pytest.approx(1.0, abs=1e-3)
        assert line["student_mass"] == pytest.approx(1.0, abs=1e-3)
        assert line["divergence"] >= 0


def test_a_row_of_another_text_stops_the_stage_at_once(stored_stage: StoredDistillStage, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="stored for sample sample-0 are of another context"):
        StoredDistillStage(
            replace(stored_stage.job, prefill="a:", out=tmp_path / "other"), make_tokenizer(), ALONE, Never()
        )


def test_another_tokenizer_is_refused() -> None:
    with pytest.raises(JobError, match="different vocabularies"):
        require_same_tokens(make_tokenizer(), make_tokenizer(LETTERS[::-1]), ["a"])
