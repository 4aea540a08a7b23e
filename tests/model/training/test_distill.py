from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.training.data import Row, collate
from model.training.distill import DistillStage, PrefixedModel, require_same_tokens, shared_prefix
from model.training.forward import backward, completion_hidden
from model.training.job import DistillJob, JobError, Precision
from tests.model.training.tiny import LETTERS, PREFILL, make_model, make_tokenizer

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
        return DistillStage(job, make_tokenizer(), CPU)

    return make


def test_the_teacher_sees_its_worked_turns_and_the_same_completion(
    make_stage: Callable[[], DistillStage],
) -> None:
    stage = make_stage()
    tokenizer = make_tokenizer()
    assert tokenizer.decode(stage.teacher.prefix) == "q: 1 + 1? a: 2. q: "
    for student, teacher in zip(stage.rows, stage.teacher_rows, strict=True):
        assert tokenizer.decode(teacher.context) == "q: 1 + 1? a: 2. " + tokenizer.decode(student.context)
        assert teacher.completion == student.completion


def test_with_the_same_prompt_and_weights_there_is_nothing_to_learn(
    make_stage: Callable[[], DistillStage],
) -> None:
    stage, student = make_stage(), make_model()
    stage.teacher_rows = stage.rows
    stage.teacher = PrefixedModel(stage.teacher.model, [], CPU)
    by_head_VH = torch.zeros_like(student.get_output_embeddings().weight)
    for micro in stage.prepare(1).micro_batches:
        loss, metrics = backward(student, micro.tokens, micro.kernel, by_head_VH)
        assert loss == pytest.approx(0.0, abs=1e-6)
        assert metrics["cross_entropy"] > 0
    assert max(g.abs().max().item() for g in (by_head_VH, *(p.grad for p in student.parameters()))) < 1e-6


def test_padding_rows_of_the_vocabulary_get_no_mass(make_stage: Callable[[], DistillStage]) -> None:
    """The tokenizer knows 45 ids, the models' tables have 48 rows."""
    stage, student = make_stage(), make_model()
    assert stage.vocabulary == 45
    micro = stage.prepare(1).micro_batches[0]
    logits_NV = student(input_ids=micro.tokens.tokens_BT).logits.flatten(0, 1)[micro.tokens.positions_N]
    loud_NV = logits_NV.clone()
    loud_NV[:, 45:] = 50.0
    everything = slice(None)
    loud, quiet = (micro.kernel.part(each.detach(), everything) for each in (loud_NV, logits_NV))
    assert loud.loss.item() == quiet.loss.item()
    assert loud.gradient_CV[:, 45:].abs().max().item() == 0.0


def test_another_tokenizer_is_refused() -> None:
    with pytest.raises(JobError, match="different vocabularies"):
        require_same_tokens(make_tokenizer(), make_tokenizer(LETTERS[::-1]), ["a"])
