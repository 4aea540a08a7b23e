"""From accepted samples and problems to the files that trainers read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from model.errors import TrainingError
from model.records import PlannedSample, Problem, ProblemVerdict, Status, TaughtProblem, TrainingExample, from_table
from model.templates import PromptTemplate
from tasks.problem_verdicts import write_problem_verdicts
from tasks.run import Run
from tasks.select import Rendering, select_examples, select_problems
from tasks.store import Dataset
from tests.tasks.small_dataset import generate, judge, make_dataset, plan, problem

TEMPLATE = PromptTemplate("plain", system="Add.", shots=(("1 + 1?", "2"),))


class RoleTokenizer:
    """A chat template that writes each turn as `role:content|`, and ends where the assistant begins."""

    chat_template = "roles"

    def apply_chat_template(self, conversation: Any, **_: Any) -> str:
        return "".join(f"{turn['role']}:{turn['content']}|" for turn in conversation) + "assistant:"


RENDERING = Rendering(RoleTokenizer(), TEMPLATE)


def is_kept(row: PlannedSample) -> bool:
    """Of the two samples: problem 0 passes with both, problem 1 with the first, problem 2 with none."""
    passing = {problem(0).problem_id: 2, problem(1).problem_id: 1, problem(2).problem_id: 0}
    return row.replica < passing[row.problem_id]


def set_rule(dataset: Dataset, **accept: object) -> None:
    dataset.bind({}, {"accept": {"require": ["math"], **accept}})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Three problems of pass rates 1, 1/2 and 0, with two samples each."""
    dataset = make_dataset(tmp_path / "data")
    set_rule(dataset)
    for shard in plan(dataset):
        generate(dataset, shard, text=lambda row: f"{row.problem_id} {row.replica}")
        judge(dataset, shard, "math", lambda row: "pass" if is_kept(row) else "fail")
    return Run(dataset, "run-1")


def problems_in(path: Path) -> dict[str, str]:
    return {row.problem_id: row.prompt for row in from_table(pq.read_table(path), Problem)}


def test_accepted_samples_become_examples_in_both_renderings(run: Run) -> None:
    file = select_examples.fn(run, RENDERING, "sft")
    examples = {e.completion: e for e in from_table(pq.read_table(file), TrainingExample)}
    wholly, half = problem(0), problem(1)
    assert set(examples) == {f"{wholly.problem_id} 0", f"{wholly.problem_id} 1", f"{half.problem_id} 0"}
    example = examples[f"{half.problem_id} 0"]
    assert example.prompt == "system:Add.|user:Calculate 1 + 1.|assistant:"
    assert example.teacher_prompt == "system:Add.|user:1 + 1?|assistant:2|user:Calculate 1 + 1.|assistant:"
    assert (example.problem_id, example.gold) == (half.problem_id, "2")


def test_a_file_is_named_by_what_it_holds(run: Run) -> None:
    first = select_examples.fn(run, RENDERING, "sft")
    written = first.stat().st_mtime_ns
    assert select_examples.fn(run, RENDERING, "sft") == first
    assert first.stat().st_mtime_ns == written
    set_rule(run.dataset, max_per_problem=1)
    other = select_examples.fn(run, RENDERING, "sft")
    assert other != first
    assert pq.read_metadata(other).num_rows == 2
    assert first.exists()
    set_rule(run.dataset)
    assert select_examples.fn(run, RENDERING, "sft") == first


@pytest.mark.parametrize("accept", [{"pass_rate": [0.6, 0.9]}, {"where": "completion_tokens > 1000"}])
def test_nothing_accepted_is_an_error_that_names_the_funnel(run: Run, accept: Mapping[str, object]) -> None:
    set_rule(run.dataset, **accept)
    with pytest.raises(TrainingError, match=r"not one sample is accepted.*select \* from funnel"):
        select_examples.fn(run, RENDERING, "sft")


@pytest.mark.parametrize(
    ("band", "chosen"),
    [((0.0, 1.0), [0, 1, 2]), ((0.1, 0.9), [1]), ((0.5, 1.0), [0, 1]), ((0.0, 0.0), [2])],
)
def test_problems_are_chosen_by_pass_rate_ends_included(run: Run, band: tuple[float, float], chosen: list[int]) -> None:
    file = select_problems.fn(run, RENDERING, "grpo", band)
    wanted = {problem(i).problem_id: f"system:Add.|user:Calculate {i} + 1.|assistant:" for i in chosen}
    assert problems_in(file) == wanted


def test_excluded_problems_are_not_trained_on(run: Run) -> None:
    rows = [
        ProblemVerdict(problem(i).problem_id, "audit", "1", Status("fail" if i else "pass"), None, "said")
        for i in (0, 1)
    ]
    write_problem_verdicts(run.dataset, "audit", "1", rows, 0.1)
    everything = select_problems.fn(run, RENDERING, "grpo", (0.0, 1.0))
    assert set(problems_in(everything)) == {problem(0).problem_id, problem(2).problem_id}
    examples = from_table(pq.read_table(select_examples.fn(run, RENDERING, "sft")), TrainingExample)
    assert {example.problem_id for example in examples} == {problem(0).problem_id}
    set_rule(run.dataset, problems=["duplicate"])
    assert len(problems_in(select_problems.fn(run, RENDERING, "grpo", (0.0, 1.0)))) == 3


def test_a_band_without_problems_is_an_error(run: Run) -> None:
    with pytest.raises(TrainingError, match=r"pass rate from 0\.6 to 0\.9: widen grpo\.pass_rate"):
        select_problems.fn(run, RENDERING, "grpo", (0.6, 0.9))


def test_a_taught_problem_is_rendered_for_both(run: Run) -> None:
    file = select_problems.fn(run, RENDERING, "on_policy", (0.1, 0.9), taught=True)
    (row,) = from_table(pq.read_table(file), TaughtProblem)
    assert row.prompt == "system:Add.|user:Calculate 1 + 1.|assistant:"
    assert row.teacher_prompt == "system:Add.|user:1 + 1?|assistant:2|user:Calculate 1 + 1.|assistant:"
    assert row.gold == "2"
    with pytest.raises(TrainingError, match=r"widen on_policy\.pass_rate"):
        select_problems.fn(run, RENDERING, "on_policy", (0.6, 0.9), taught=True)
