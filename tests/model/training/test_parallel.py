"""Two processes (FSDP2 over gloo, started as `torchrun` starts them) train as one does."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.training.data import micro_batches
from model.training.job import JOBS, job_from
from model.training.parallel import World
from model.training.runner import run_job
from tests.model.training.tiny import PREFILL, Never, make_model, save_tiny

CPU = torch.device("cpu")


def plain(job: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in job.items()}


def together(job: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    path = Path(job["out"]).with_suffix(".json")
    path.write_text(json.dumps(plain(job)))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*start, "-m", "model.training", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def alone(job: dict[str, Any]) -> None:
    """In the test's own process: starting one costs seconds."""
    values = plain(job)
    run_job(job_from(JOBS[values.pop("stage")], values), Never())


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def job(tiny_folder: Path, examples_file: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "stage": "sft",
        "init": tiny_folder,
        "out": tmp_path / "out",
        "examples": examples_file,
        "prefill": PREFILL,
        "learning_rate": 3e-3,
        "threads": 1,
        "epochs": 4,
        "tokens_per_batch": 150,
        "tokens_per_micro_batch": 60,
        "checkpoint_every": 4,
        "dtype": "float32",
    }


@pytest.mark.parametrize("tied", [True, False])
def test_two_processes_have_the_losses_and_weights_of_one(job: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    if not tied:
        model = make_model(tied=False)
        model.save_pretrained(save_tiny(tmp_path / "untied"))
        job["init"] = tmp_path / "untied"
    one, two = job | {"out": tmp_path / "one"}, job | {"out": tmp_path / "two"}
    alone(one)
    done = together(two)
    assert done.returncode == 0, done.stderr
    assert losses(two["out"]) == pytest.approx(losses(one["out"]), abs=1e-4)
    of_one, of_two = (load_file(raw["out"] / "model/model.safetensors") for raw in (one, two))
    assert of_one.keys() == of_two.keys()
    for name, weight in of_one.items():
        torch.testing.assert_close(of_two[name], weight, atol=2e-3, rtol=0, msg=name)


def test_a_live_teacher_and_bfloat16(job: dict[str, Any], tmp_path: Path) -> None:
    job |= {"stage": "distill", "teacher": save_tiny(tmp_path / "teacher", seed=5), "dtype": "bfloat16", "epochs": 2}
    one, two = job | {"out": tmp_path / "one"}, job | {"out": tmp_path / "two"}
    alone(one)
    done = together(two)
    assert done.returncode == 0, done.stderr
    assert losses(two["out"]) == pytest.approx(losses(one["out"]), rel=0.02)


def test_another_number_of_processes_goes_on_from_a_checkpoint(job: dict[str, Any], tmp_path: Path) -> None:
    job |= {"checkpoint_every": 2}
    whole = job | {"out": tmp_path / "whole"}
    alone(whole)
    parted = job | {"out": tmp_path / "parted"}
    assert together(parted).returncode == 0
    # As if it had been killed after its first checkpoint.
    (parted["out"] / "manifest.json").unlink()
    first, *later = sorted((parted["out"] / "checkpoints").glob("step-*"))
    assert later
    for checkpoint in later:
        checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.partial"))
    alone(parted)
    assert losses(parted["out"]) == pytest.approx(losses(whole["out"]), abs=1e-4)
    assert len(losses(parted["out"])) > int(first.name.removeprefix("step-"))


def test_a_stage_for_one_process_says_so(job: dict[str, Any], problems_file: Path) -> None:
    kept = {name: job[name] for name in ("init", "out", "threads")}
    done = together(kept | {"stage": "grpo", "problems": problems_file})
    assert done.returncode != 0
    assert "JobError: grpo trains in one process; 2 were started" in done.stderr


def test_every_process_gets_as_many_packs_and_every_row_once() -> None:
    for rows in (1, 2, 3, 7, 20):
        lengths = [3 + i % 5 for i in range(rows)]
        shares = [World(CPU, rank, 4, None).share(micro_batches(lengths, 12, 4)) for rank in range(4)]
        assert len({len(share) for share in shares}) == 1
        assert sorted(i for share in shares for pack in share for i in pack) == list(range(rows))


def test_processes_are_not_left_idle_where_the_budget_would_take_all() -> None:
    shares = [World(CPU, rank, 2, None).share(micro_batches([4, 4, 4, 4], 1000, 2)) for rank in range(2)]
    assert [len(pack) for share in shares for pack in share] == [2, 2]


def test_processes_wait_for_one_another_little() -> None:
    """Each step of packs takes what its longest takes: together hardly more than all tokens shared evenly."""
    draw = random.Random(0)
    for size in (2, 4, 8):
        lengths = [int(draw.lognormvariate(6, 0.8)) for _ in range(600)]
        packs = micro_batches(lengths, 8192, size)
        tokens = [sum(lengths[i] for i in pack) for pack in packs]
        waited = sum(max(tokens[at : at + size]) for at in range(0, len(tokens), size))
        assert waited * size <= 1.02 * sum(lengths)
