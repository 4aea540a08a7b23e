"""KL distillation, from stored log-probabilities and on-policy, from the recipe to the student; fake endpoint."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.fake_endpoint import FakeEndpoint
from tests.model.training.tiny import make_model, make_tokenizer

CHAT = "{% for m in messages %}{{ m['role'][0] }}: {{ m['content'] }} {% endfor %}a: "
DISTILL = """
[distill]
max_length = 256
enabled = true
teacher_logits = "stored"
top_k = 8
max_steps = 2
tokens_per_batch = 500
threads = 1
dtype = "float32"

[on_policy]
enabled = true
init = "distill"
steps = 2
problems_per_step = 3
max_tokens = 8
threads = 1
dtype = "float32"
"""


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A tiny model that knows the letters of the questions."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    make_model().save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    return tmp_path / "student"


def test_a_student_is_distilled_from_what_was_stored_once(
    stillhouse: Callable[..., subprocess.CompletedProcess[str]],
    write_recipe: Callable[..., Path],
    endpoint: FakeEndpoint,
    student: Path,
    tmp_path: Path,
) -> None:
    recipe = write_recipe(endpoint.url, problems=20, extra=DISTILL)
    stages = "problems,generate,verify,distill,on_policy"
    models = ("--set", f"student.model={student}", "--set", f"on_policy.teacher={student}")
    words = ("run", recipe, *models, "--only", stages)
    done = stillhouse(*words, timeout=240)
    assert done.returncode == 0, done.stderr
    dataset = tmp_path / "dataset"
    lines = [json.loads(line) for line in (dataset / "students/distill/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert 0.5 < lines[0]["teacher_mass"] <= 1.0
    assert 0.0 < lines[0]["student_mass"] < 1.0
    [table] = dataset.glob("teacher_rows/*/*.parquet")
    accepted = pq.read_table(next(dataset.glob("selections/distill-teacher-*.parquet"))).num_rows
    assert pq.read_metadata(table).num_rows == accepted > 0
    states = stillhouse("sql", dataset, "select stage, state from shards where stage = 'capture'", "--format", "csv")
    assert states.stdout.splitlines() == ["stage,state", "capture,done"]

    own = [json.loads(line) for line in (dataset / "students/on_policy/metrics.jsonl").read_text().splitlines()]
    assert own[0]["divergence"] > 0  # one step of distillation away from its teacher
    assert {"reverse_kl", "entropy", "reward"} <= own[1].keys()
    job = json.loads((dataset / "students/on_policy/job.json").read_text())
    assert (Path(job["teacher"]), Path(job["init"])) == (student, dataset / "students/distill/model")

    asked, written = len(endpoint.requests), table.stat().st_mtime_ns
    assert stillhouse(*words).returncode == 0
    assert (len(endpoint.requests), table.stat().st_mtime_ns) == (asked, written)
