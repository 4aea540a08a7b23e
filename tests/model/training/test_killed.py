"""Runs that are killed at drawn steps end as undisturbed ones: losses, weights, and how often each sample was seen."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from model.training.distill import DistillStage
from model.training.job import JOBS, job_from
from tests.model.training.alike import GRPO, PPO, SFT, lines, make_job, write_inputs
from tests.model.training.killed import counts, seen, train_killed
from tests.model.training.pair import RawJob, plain
from tests.model.training.tiny import ALONE, Never, make_tokenizer, teacher_row, write_teacher_rows

EPOCHS, TOP_K = 8, 8
EXAMPLES: RawJob = SFT | {"epochs": EPOCHS, "tokens_per_batch": 120, "checkpoint_every": 3}
ROLLOUTS: RawJob = {"steps": 20, "checkpoint_every": 3}  # 20 × 3 problems of 5: each 12 times
JOBS_KILLED: dict[str, RawJob] = {
    "sft": EXAMPLES,
    "sft of adapters in bfloat16": EXAMPLES | {"lora_rank": 4, "dtype": "bfloat16"},
    "distill from stored rows": EXAMPLES | {"stage": "distill"},
    "grpo": GRPO | ROLLOUTS,
    "ppo": PPO | ROLLOUTS,
}


def store_teacher(folder: Path) -> Path:
    """The likeliest tokens of a live teacher at every completion token; the list of the rows' places."""
    values = plain(make_job(folder, SFT | {"stage": "distill", "teacher": "teacher"}, "live"))
    live = DistillStage(job_from(JOBS[values.pop("stage")], values), make_tokenizer(), ALONE, Never())  # type: ignore[arg-type]
    head_VH = live.teacher.model.get_output_embeddings().weight[: live.vocabulary]
    rows = []
    for index, place in enumerate(live.kept):
        row = live.teacher_row(index)
        with torch.no_grad():
            logits_TV = live.teacher.completion_hidden([row]) @ head_VH.T
        top = logits_TV.log_softmax(-1).topk(TOP_K)
        rows.append(teacher_row(live.examples.sample_ids[int(place)].as_py(), row, top.indices, top.values))
    return write_teacher_rows(folder, rows)


def drawn_steps() -> list[int]:
    """Where a run is killed: perhaps before its first checkpoint is on disk, and certainly after it."""
    return [random.randint(1, 6), random.randint(7, 12)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """The folders of each job: undisturbed, and killed."""
    folder = write_inputs(tmp_path_factory.mktemp("killed"))
    stored = {"stored": store_teacher(folder)}
    jobs, found = [], {}
    for name, settings in JOBS_KILLED.items():
        of_job = settings | (stored if settings["stage"] == "distill" else {})
        whole, killed = (make_job(folder, of_job, f"{kind}/{name}") for kind in ("whole", "killed"))
        jobs += [(whole, []), (killed, drawn_steps())]
        found[name] = Path(whole["out"]), Path(killed["out"])
    train_killed(jobs)
    return found


@pytest.mark.parametrize("name", JOBS_KILLED)
def test_a_run_that_was_killed_ends_as_if_nothing_had_happened(name: str, runs: dict[str, tuple[Path, Path]]) -> None:
    whole, killed = runs[name]
    assert lines(killed) == lines(whole)
    assert len(lines(killed)) >= 20
    weights = "model/model.safetensors"
    assert (killed / weights).read_bytes() == (whole / weights).read_bytes()
    kept = [sorted(path.name for path in (out / "checkpoints").iterdir()) for out in (killed, whole)]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("name", JOBS_KILLED)
def test_every_sample_is_seen_as_often_as_without_the_kills(name: str, runs: dict[str, tuple[Path, Path]]) -> None:
    """In every epoch once; of rollouts, a problem as often as the shuffle draws it, each time by a group of five."""
    whole, killed = runs[name]
    assert seen(killed) == seen(whole)
    assert len(seen(whole)) == len(lines(whole))
    expected = {f"problem-{i}": 12 * 5 for i in range(5)} if "steps" in JOBS_KILLED[name] else None
    assert counts(killed) == (expected or {f"sample-{i}": EPOCHS for i in range(12)})
