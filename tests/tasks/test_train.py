"""The task around a training process, with real processes that train a tiny random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.errors import TrainingError
from tasks.attempts import read_attempts
from tasks.run import Run
from tasks.store import Dataset
from tasks.train import train
from tests.model.training.tiny import PREFILL, save_tiny, write_examples


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


def test_a_job_is_trained_once_and_again_when_it_changes(run: Run, job: dict[str, Any]) -> None:
    model = train.fn(run, "sft", job)
    assert model == run.dataset.file("students/sft/model")
    first = (model / "model.safetensors").read_bytes()
    assert states(run) == [("sft", 1, "completed", 2)]

    assert train.fn(run, "sft", job | {"checkpoint_every": 7}) == model  # shapes how, not what: still the same job
    assert states(run) == [("sft", 1, "completed", 2)]

    assert train.fn(run, "sft", job | {"learning_rate": 0.01}) == model
    assert states(run) == [("sft", 1, "completed", 2), ("sft", 2, "completed", 2)]
    assert (model / "model.safetensors").read_bytes() != first
    [old] = run.dataset.file("students").glob("old-sft-*")
    assert (old / "model/model.safetensors").read_bytes() == first


def test_a_job_that_fails_says_so_in_the_last_words_of_its_log(run: Run, job: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=r"status 2: DivergedError: step 2: .*lower learning_rate") as caught:
        train.fn(run, "sft", job | {"learning_rate": 1e30, "warmup_share": 0.0, "dtype": "float32"})
    assert not caught.value.retryable
    [failed] = read_attempts(run.dataset)
    assert (failed.state, failed.error_type, failed.error) == ("failed", "TrainingError", str(caught.value))
    assert "DivergedError" in run.dataset.file("logs/train-sft.log").read_text()
    assert not run.dataset.file("students/sft/manifest.json").exists()
