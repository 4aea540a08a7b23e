"""Rollouts by an engine: weights that arrive, or an error; tokens as they were drawn. Real vLLM:
tests/tasks/test_real_vllm.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from model.errors import TrainingError
from model.records import FinishReason
from model.training.data import collate
from model.training.forward import Model, completion_log_probs
from model.training.job import GRPOJob, JobError, Precision, Sampler
from model.training.vllm_rollouts import VLLMRollouts, engine_options, open_vllm_rollouts
from tests.model.training.tiny import ALONE, PREFILL, make_model, make_tokenizer
from tests.model.training.tiny_engine import install

CONTEXT = f"q: 1 + 1? {PREFILL}"


@pytest.fixture
def job(tiny_folder: Path, problems_file: Path, tmp_path: Path) -> GRPOJob:
    return make_job(tiny_folder, problems_file, tmp_path)


def make_job(folder: Path, problems: Path, out: Path, **settings: Any) -> GRPOJob:
    base = {"max_tokens": 8, "dtype": Precision.FLOAT32, "rollouts": Sampler.VLLM}
    return GRPOJob(init=folder, out=out, problems=problems, **(base | settings))


@contextmanager
def opened(job: GRPOJob, model: Model | None = None) -> Iterator[VLLMRollouts]:
    with open_vllm_rollouts(job, model or make_model(), make_tokenizer(), ALONE, [CONTEXT]) as rollouts:
        yield rollouts


def move(model: Model, by: float) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + by)


def test_rollouts_are_drawn_from_the_weights_as_they_are_now(job: GRPOJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log-probabilities that come back are the trainer's own, before and after it has moved."""
    (engines, model) = install(monkeypatch), make_model()
    with opened(job, model) as rollouts:
        for by in (0.0, 0.3):
            move(model, by)
            torch.manual_seed(3)
            with rollouts.current() as synced:
                drawn = rollouts.sample([CONTEXT] * 6)
            batch = collate([rollout.row for rollout in drawn], [1.0] * 6, model.device)
            told_N = torch.tensor([log_prob for rollout in drawn for log_prob in rollout.log_probs or ()])
            torch.testing.assert_close(told_N, completion_log_probs(model, batch, 1.0), atol=1e-5, rtol=1e-5)
            assert synced["sync_gap"] < 1e-5
            assert (job.out / "rollout-weights/model.safetensors").exists()
    assert not (job.out / "rollout-weights").exists()
    assert engines[0].calls == ["start", "load", "sleep", "wake", "load", "sleep", "stop"]
    assert len({rollout.text for rollout in drawn}) > 1


def test_the_same_seed_gives_the_same_rollouts(job: GRPOJob, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    drawn = []
    with opened(job) as rollouts:
        for _ in range(2):  # the first load is followed by a check that draws, the second is not
            torch.manual_seed(3)
            with rollouts.current():
                drawn.append(rollouts.sample([CONTEXT] * 4))
    assert drawn[0] == drawn[1]


def test_a_rollout_ends_as_the_trainer_has_it(job: GRPOJob, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    with opened(job) as rollouts, rollouts.current():
        drawn = rollouts.sample([CONTEXT] * 60)
    assert {rollout.finish_reason for rollout in drawn} == {FinishReason.STOP, FinishReason.LENGTH}
    for rollout in drawn:
        ended = rollout.row.completion[-1] == tokenizer.eos_token_id
        assert ended == (rollout.finish_reason is FinishReason.STOP)
        assert rollout.text == tokenizer.decode(rollout.row.completion, skip_special_tokens=True)


def test_weights_that_do_not_arrive_end_the_run(job: GRPOJob, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, deaf=True)
    model = make_model()
    with opened(job, model) as rollouts:
        with rollouts.current():
            pass
        move(model, 1e-6)
        with rollouts.current():
            pass  # less than rounding: no one can tell
        moves = 0

        def go_on_by_small_moves() -> None:
            nonlocal moves
            for moves in range(40):  # noqa: B007 - asked for below
                move(model, 0.00003)
                with rollouts.current():
                    pass

        with pytest.raises(TrainingError, match=r"not have the trainer's weights.*the weights it had before"):
            go_on_by_small_moves()
    assert moves >= 1  # one such move is still too small to see; together they are not


def test_an_engine_with_other_weights_is_refused_at_once(job: GRPOJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a resume, where the engine starts from `init` and the trainer from its checkpoint."""
    install(monkeypatch, deaf=True)
    message = "its weights are others"
    with opened(job, make_model(5)) as rollouts, pytest.raises(TrainingError, match=message), rollouts.current():
        pytest.fail("sampled from other weights")


def test_log_probabilities_at_another_temperature_are_refused(
    tiny_folder: Path, problems_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tiny_folder, problems_file, tmp_path, temperature=0.5)
    model = make_model()
    install(monkeypatch, temperature=0.5)
    with opened(job, model) as rollouts, rollouts.current():
        pass
    install(monkeypatch, temperature=0.5, raw=True)
    message = "start it with --logprobs-mode processed"
    with opened(job, model) as rollouts, pytest.raises(JobError, match=message), rollouts.current():
        pytest.fail("log-probabilities of two distributions were compared")


def test_the_engine_shares_a_gpu_and_has_room_for_the_longest_rollout(job: GRPOJob) -> None:
    cpu, gpu = (engine_options(job, 100, ALONE, cuda=cuda) for cuda in (False, True))
    assert (cpu.logprobs_mode, cpu.extra_args) == ("processed_logprobs", ())
    assert (cpu.gpus, cpu.max_model_len, cpu.dtype, cpu.enforce_eager) == (0, 116, "float32", True)
    assert gpu.extra_args == ("--gpu-memory-utilization", "0.4", "--enable-sleep-mode")
    assert (gpu.gpus, gpu.enforce_eager) == (1, False)


def test_urls_are_for_vllm(tiny_folder: Path, problems_file: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="rollout_urls"):
        make_job(tiny_folder, problems_file, tmp_path, rollouts=Sampler.TRANSFORMERS, rollout_urls=("http://x/v1",))
