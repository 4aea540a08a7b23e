"""Ten steps of every stage on the tiny model against losses that were written down once.

Remake: python -m tests.model.training.test_golden   (and say in the changelog why a number moved)
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch

from model.training.job import JOBS, job_from
from model.training.runner import run_job
from tests.model.training.tiny import PREFILL, Never, save_tiny, write_examples

GOLDEN = Path(__file__).parents[2] / "golden/training/losses.json"
STAGES = {
    "sft": {"max_steps": 10},
    "sft-token": {"max_steps": 10, "normalise": "token"},
    "distill-forward": {"max_steps": 10, "divergence": "forward"},
    "distill-reverse": {"max_steps": 10, "divergence": "reverse"},
    "distill-jsd": {"max_steps": 10, "divergence": "jsd", "beta": 0.1, "temperature": 2.0},
}


def losses(name: str, folder: Path) -> list[float]:
    """The losses of ten float32 steps on one thread."""
    stage = name.split("-")[0]
    raw = {
        "init": str(save_tiny(folder / "init")),
        "examples": str(write_examples(folder / "examples.parquet")),
        "out": str(folder / "out"),
        "prefill": PREFILL,
        "learning_rate": 3e-3,
        "epochs": 9,
        "tokens_per_batch": 100,
        "tokens_per_micro_batch": 60,
        "dtype": "float32",
        "threads": 1,
        **STAGES[name],
    }
    if stage == "distill":
        raw["teacher"] = str(save_tiny(folder / "teacher", seed=1))
    run_job(job_from(JOBS[stage], raw), Never())
    lines = (folder / "out/metrics.jsonl").read_text().splitlines()
    return [round(json.loads(line)["loss"], 6) for line in lines]


@pytest.mark.parametrize("name", list(STAGES))
def test_ten_steps_give_the_golden_losses(name: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())[name]
    assert len(golden) == 10
    assert losses(name, tmp_path) == pytest.approx(golden, rel=5e-3, abs=1e-5)


def remake() -> None:
    """Writes the golden file anew."""
    torch.set_num_threads(1)
    made = {}
    for name in STAGES:
        with tempfile.TemporaryDirectory() as folder:
            made[name] = losses(name, Path(folder))
    GOLDEN.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    remake()
