"""Students beside a funnel that they do not come from: told by what they learnt from, not by dates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.screens import results_screen
from tasks.catalog import connect
from tasks.outdated import Outdated, outdated_students
from tasks.run import Run
from tasks.select import select_examples, select_problems
from tasks.store import Dataset
from tasks.summary import CURRENT, other_requirement
from tests.tasks.small_dataset import generate, judge, make_dataset, plan
from tests.tasks.test_select import RENDERING


def set_recipe(dataset: Dataset, **accept: object) -> None:
    dataset.bind({}, {"accept": {"require": ["math"], **accept}, "grpo": {"enabled": True}})


def outdated(dataset: Dataset) -> list[Outdated]:
    return outdated_students(connect(dataset), dataset)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three problems with two right samples each, SFT on all six, and GRPO on the three from there."""
    dataset = make_dataset(tmp_path / "data")
    set_recipe(dataset)
    for shard in plan(dataset):
        generate(dataset, shard)
        judge(dataset, shard, "math")
    run = Run(dataset, "run")
    jobs = {
        "sft": {"examples": str(select_examples.fn(run, RENDERING, "sft")), "init": "/models/base"},
        "grpo": {
            "problems": str(select_problems.fn(run, RENDERING, "grpo", (0.0, 1.0))),
            "init": str(dataset.file("students/sft/model")),
        },
    }
    for student, job in jobs.items():
        dataset.write_text(f"students/{student}/job.json", json.dumps(job))
        dataset.write_text(f"students/{student}/manifest.json", json.dumps({"steps": 1}))
    return dataset


def test_students_of_the_present_rule_are_not_outdated(dataset: Dataset) -> None:
    assert outdated(dataset) == []
    set_recipe(dataset, max_per_problem=2)  # another rule, the same choice
    assert outdated(dataset) == []


def test_another_rule_is_named_with_the_students_it_leaves_behind(dataset: Dataset) -> None:
    set_recipe(dataset, max_per_problem=1)
    sft, grpo = outdated(dataset)
    assert sft == Outdated("sft", learnt=6, kept=3, now=3, differs=("accept.max_per_problem was 0, is 1",))
    assert (grpo.student, grpo.itself, grpo.through) == ("grpo", False, "sft")


def test_new_verdicts_change_what_is_chosen_too(dataset: Dataset) -> None:
    judge(dataset, 0, "math", lambda _: "fail", version="2")
    sft, grpo = outdated(dataset)
    assert (sft.learnt, sft.kept, sft.now, sft.differs) == (6, 4, 4, ())
    assert grpo.through == "sft"


def test_a_student_that_is_switched_off_or_not_finished_is_not_told_of(dataset: Dataset) -> None:
    dataset.bind({}, {"accept": {"require": ["math"], "max_per_problem": 1}, "sft": {"enabled": False}})
    assert [one.student for one in outdated(dataset)] == []
    set_recipe(dataset, max_per_problem=1)
    dataset.file("students/sft/manifest.json").unlink()
    assert outdated(dataset) == []


def test_the_page_says_so_in_a_line(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    dataset.write_text(CURRENT, json.dumps({"keys": [], "require": ["math"]}))
    results_screen(dataset.path, complete=False)
    assert "A whole run makes them anew" not in capsys.readouterr().out
    set_recipe(dataset, require=["math", "format"], max_per_problem=1)
    assert other_requirement(dataset) == ["math"]
    for shard in range(3):
        judge(dataset, shard, "format")
    results_screen(dataset.path, complete=False)
    page = capsys.readouterr().out
    line = next(line for line in page.splitlines() if line.startswith("sft learnt"))
    assert "learnt from 6 samples, not from the 3 that are chosen now (3 are the same); grpo started from sft" in line
    assert "accept.max_per_problem was 0, is 1" in line
    assert "an answer was right that passed math. A whole run" in page
