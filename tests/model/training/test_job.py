from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.losses.normalise import Normalise
from model.training.job import DistillJob, GRPOJob, JobError, SFTJob, as_json, job_from, read_job


@pytest.fixture
def raw(tiny_folder: Path, examples_file: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "stage": "sft",
        "init": str(tiny_folder),
        "examples": str(examples_file),
        "out": str(tmp_path / "out"),
    }


def read(raw: dict[str, Any], tmp_path: Path) -> Any:
    (tmp_path / "job.json").write_text(json.dumps(raw))
    return read_job(tmp_path / "job.json")


def test_a_job_is_read_with_its_types(raw: dict[str, Any], tmp_path: Path) -> None:
    job = read(raw | {"learning_rate": 1, "normalise": "token", "epochs": 2}, tmp_path)
    assert isinstance(job, SFTJob)
    assert (job.learning_rate, job.normalise, job.epochs) == (1.0, Normalise.TOKEN, 2)


def test_the_stage_chooses_the_kind(raw: dict[str, Any], tmp_path: Path) -> None:
    distill = read(raw | {"stage": "distill", "teacher": raw["init"]}, tmp_path)
    assert type(distill) is DistillJob
    grpo = {
        "stage": "grpo",
        "init": raw["init"],
        "out": raw["out"],
        "problems": raw["examples"],
        "stop": ["</answer>"],
    }
    job = read(grpo, tmp_path)
    assert type(job) is GRPOJob
    assert job.stop == ("</answer>",)


def test_a_job_survives_being_written(raw: dict[str, Any], tmp_path: Path) -> None:
    job = read(raw, tmp_path)
    plain = json.loads(json.dumps(as_json(job)))
    plain.pop("stage")
    assert job_from(SFTJob, plain) == job


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rat": 1e-4}, "no field 'learning_rat'; the nearest is 'learning_rate'"),
        ({"epochs": "3"}, "epochs: '3' is not an integer"),
        ({"epochs": True}, "epochs: True is not an integer"),
        ({"spike_ratio": float("nan")}, "spike_ratio: nan is no finite number"),
        ({"learning_rate": float("inf")}, "learning_rate: inf is no finite number"),
        ({"normalise": "tokens"}, "normalise: 'tokens' is none of token, sequence, constant"),
        ({"max_steps": -1}, "max_steps = -1: at least 0"),
        ({"checkpoint_every": 0}, "checkpoint_every = 0: at least 1"),
        ({"threads": -1}, "threads = -1: at least 0"),
        ({"warmup_share": 2.0}, "warmup_share = 2.0: at most 1"),
        ({"grad_clip": 0.0}, "grad_clip = 0.0: more than 0"),
        ({"validation_stop": [1]}, "validation_stop: 1 is not a text"),
        ({"init": "/nowhere"}, "init: there is no /nowhere"),
        ({"stage": "dpo"}, "stage is 'dpo', expected one of sft, distill, on_policy, grpo, ppo"),
        ({"stage": "distill"}, "a distill job needs either the field 'teacher' or the field 'stored'"),
        ({"spike_ratio": 0.5}, "spike_ratio = 0.5 would skip usual steps: more than 1, or 0 for none"),
        ({"keep_checkpoints": 0}, "keep_checkpoints = 0: at least one must stay to go on from"),
    ],
)
def test_one_clear_line(raw: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message.replace("(", r"\(")):
        read(raw | change, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"divergence": "reverse"}, "allow divergence = 'forward' and temperature = 1 only"),
        ({"temperature": 2.0}, "allow divergence = 'forward' and temperature = 1 only"),
        ({"stored": None}, "needs either the field 'teacher' or the field 'stored'"),
    ],
)
def test_what_stored_log_probabilities_cannot_teach(
    raw: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    stored = raw | {"stage": "distill", "stored": raw["examples"]}
    assert read(stored, tmp_path).teacher is None
    with pytest.raises(JobError, match=message):
        read(stored | change, tmp_path)


def test_a_file_that_is_no_job(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(JobError, match="cannot read the job"):
        read_job(tmp_path / "job.json")
