"""The task around a training process, with real processes that train a tiny random model."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import tasks.train as train_module
from model.errors import TrainingError
from model.sampling import reaper
from model.training import process
from model.training.examples import READING, _Told
from model.training.job import SFTJob, job_from
from model.training.runner import run_job
from tasks import follow, processes
from tasks.attempts import read_attempts
from tasks.progress import Ticker
from tasks.run import Run
from tasks.store import Dataset
from tasks.train import train
from tests.model.training.tiny import PREFILL, Never, save_tiny, write_examples


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Dataset.create(tmp_path / "data"), "run-1")


@pytest.fixture
def job(run: Run, tmp_path: Path) -> dict[str, Any]:
    """Two steps of SFT for a student named `sft`."""
    return {
        "stage": "sft",
        "init": str(save_tiny(tmp_path / "tiny")),
        "out": str(run.dataset.file("students/sft")),
        "examples": str(write_examples(tmp_path / "examples.parquet")),
        "prefill": PREFILL,
        "max_steps": 2,
        "tokens_per_batch": 100,
        "threads": 1,
    }


def states(run: Run) -> list[tuple[str, int, str, int | None]]:
    return [(a.stage, a.attempt, a.state, a.rows) for a in read_attempts(run.dataset)]


def test_a_job_is_trained_once_and_again_when_it_changes(
    run: Run, job: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = train.fn(run, "sft", job)
    assert model == run.dataset.file("students/sft/model")
    first = (model / "model.safetensors").read_bytes()
    assert states(run) == [("sft", 1, "completed", 2)]

    assert train.fn(run, "sft", job | {"checkpoint_every": 7}) == model  # shapes how, not what: still the same job
    assert states(run) == [("sft", 1, "completed", 2)]

    assert train.fn(run, "sft", job | {"learning_rate": 0.01}) == model
    assert states(run) == [("sft", 1, "completed", 2), ("sft", 2, "completed", 2)]
    assert (model / "model.safetensors").read_bytes() != first
    trained_again = run.dataset.file("students/sft/manifest.json").stat().st_mtime
    [old] = run.dataset.file("students").glob("old-sft-*")
    assert (old / "model/model.safetensors").read_bytes() == first

    assert train.fn(run, "sft", job) == model  # back to the first recipe: what it trained is taken up, nothing trained
    assert (model / "model.safetensors").read_bytes() == first
    assert len(states(run)) == 2
    assert run.dataset.file("students/sft/manifest.json").stat().st_mtime > trained_again
    assert "old-sft-" in caplog.text
    assert "learning_rate was" in caplog.text


def test_a_job_that_fails_says_so_in_the_last_words_of_its_log(run: Run, job: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=r"status 2: DivergedError: step 2: .*lower learning_rate") as caught:
        train.fn(run, "sft", job | {"learning_rate": 1e30, "warmup_share": 0.0, "dtype": "float32"})
    assert not caught.value.retryable
    [failed] = read_attempts(run.dataset)
    assert (failed.state, failed.error_type, failed.error) == ("failed", "TrainingError", str(caught.value))
    assert "DivergedError" in run.dataset.file("logs/train-sft.log").read_text()
    assert not run.dataset.file("students/sft/manifest.json").exists()


@pytest.mark.parametrize("for_memory", [True, False])
def test_a_process_that_is_killed_for_memory_goes_on_with_half_the_tokens_at_once(
    run: Run, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, for_memory: bool
) -> None:
    """The kernel kills with SIGKILL and counts it, as is done here; whoever else kills changes nothing of the job."""
    job |= {"max_steps": 100_000, "epochs": 100_000, "tokens_per_micro_batch": 60, "checkpoint_every": 5}
    poll = follow.Follower.poll

    def kill_once(follower: Any) -> None:
        poll(follower)
        if follower.step > 10 and not killed:
            killed.extend(pid for pid in reaper.descendants(os.getpid()) if "model.training" in command_line(pid))
            os.kill(killed[0], signal.SIGKILL)

    killed: list[int] = []
    monkeypatch.setattr(follow.Follower, "poll", kill_once)
    monkeypatch.setattr(process, "memory_kills", lambda: len(killed) if for_memory else 7)
    half = "the next attempt runs at most 30 tokens at once"
    with pytest.raises(TrainingError, match="killed by signal 9") as caught:
        train.fn(run, "sft", job)
    assert (half in str(caught.value)) is for_memory
    train_module._claim(run, "sft", job)
    written = json.loads(run.dataset.file("students/sft/job.json").read_text())
    assert written == job | ({"tokens_that_fit": 30} if for_memory else {})


def test_two_processes_stop_when_asked_and_one_goes_on_with_the_losses_of_one(
    run: Run, job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FSDP2 over gloo, with adapters. How many processes train is no part of what a student is."""
    job |= {"max_steps": 40, "epochs": 40, "dtype": "float32", "lora_rank": 2, "tokens_per_micro_batch": 60}
    poll = follow.Follower.poll

    def ask(follower: Any) -> None:
        poll(follower)
        if follower.step > 1 and not asked:
            asked.extend(pid for pid in reaper.descendants(os.getpid()) if "model.training" in command_line(pid))
            os.kill(asked[0], signal.SIGTERM)  # nearest first: the one that the task has started

    asked: list[int] = []
    monkeypatch.setattr(follow.Follower, "poll", ask)
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.05)
    with pytest.raises(TrainingError, match="status 75: it was asked to stop, and can go on") as caught:
        train.fn(run, "sft", job | {"processes": 2})
    assert caught.value.retryable
    assert len(asked) == 3
    [checkpoint] = run.dataset.file("students/sft/checkpoints").iterdir()
    assert 1 < int(checkpoint.name.removeprefix("step-")) < 40
    for out in (run.dataset.file("students/sft"), tmp_path / "whole"):
        values = {name: value for name, value in job.items() if name != "stage"}
        run_job(job_from(SFTJob, values | {"out": str(out)}), Never())
    assert losses(run.dataset.file("students/sft")) == pytest.approx(losses(tmp_path / "whole"), abs=1e-4)
    assert train_module._claim(run, "sft", job | {"processes": 2})


def test_a_stop_is_waited_for_as_long_as_a_checkpoint_takes(tmp_path: Path) -> None:
    """1.5B weights in bfloat16: 14 bytes each at 50 MB/s, and two steps."""
    for name in ("one", "two"):
        with (tmp_path / f"{name}.safetensors").open("wb") as file:
            file.truncate(1_500_000_000)  # a hole: it takes no room
    assert train_module.grace_seconds({"init": str(tmp_path)}, 30.0) == pytest.approx(60 + 420)
    assert train_module.grace_seconds({"init": str(tmp_path / "none")}, 0.0) == 120


def test_what_is_waited_for_follows_the_last_step(
    run: Run, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    real = processes.stop

    def stop(child: Any, grace_seconds: float) -> None:
        waited.append(grace_seconds)
        real(child, grace_seconds)

    def interrupted(follower: Any) -> None:
        poll(follower)
        if follower.step:
            follower.step_seconds = 100.0
            raise KeyboardInterrupt

    poll = follow.Follower.poll
    monkeypatch.setattr(processes, "stop", stop)
    monkeypatch.setattr(follow.Follower, "poll", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.fn(run, "sft", job | {"max_steps": 1000, "epochs": 1000})
    assert waited == [pytest.approx(200, abs=1)]
    assert list(run.dataset.file("students/sft/checkpoints").iterdir())


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_before_the_first_step_the_bar_tells_how_many_examples_are_tokenised(tmp_path: Path) -> None:
    ticker = Ticker("train sft", None, "steps")
    follower = follow.Follower(tmp_path / "metrics.jsonl", ticker)
    (tmp_path / "tokens").mkdir()
    told = _Told(tmp_path / "tokens" / READING, 9000, leads=True)
    told.last -= 2
    told.count(4096)
    follower.poll()
    assert ticker.note == "tokenises examples: 4,096 of 9,000"
    told.end()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    follower.poll()
    assert ticker.note == "loss 2.5"
