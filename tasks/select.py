"""From the dataset to what a trainer reads: rendered prompts and accepted completions, frozen for one student.

The choice itself is the view `accepted`; this file only renders it with the two views of the template (the
teacher saw the worked turns, the student does not) and writes it beside the student it is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from model.errors import NothingToLearnError, ProblemsError
from model.records import SCHEMAS, Problem, TaughtProblem, TrainingExample, rows_hash, to_table
from model.templates import ChatTokenizer, PromptTemplate
from tasks.catalog import connect, training_rows
from tasks.choice import SELECTIONS, chosen_by, problems_to_learn_from
from tasks.inputs import problems_of_split
from tasks.problems import VALIDATION
from tasks.run import Run


@dataclass(frozen=True)
class Rendering:
    """How prompts become text for one student: its tokenizer and the template, worked turns included."""

    tokenizer: ChatTokenizer
    template: PromptTemplate


@task(name="select", task_run_name="select for {student}", cache_policy=NO_CACHE)
def select_examples(run: Run, rendering: Rendering, student: str) -> Path:
    """Writes the accepted samples as training examples; NothingToLearnError when there is not one.

    They are read twice, once for the name and once to be written, and never held whole.
    """
    con = connect(run.dataset)

    def examples() -> Iterator[list[TrainingExample]]:
        teacher, alone, rows = rendering.template, rendering.template.without_shots(), []
        for rows in training_rows(con):
            yield [
                TrainingExample(
                    sample_id=row["sample_id"],
                    problem_id=row["problem_id"],
                    prompt=alone.render(rendering.tokenizer, row["prompt"]),
                    teacher_prompt=teacher.render(rendering.tokenizer, row["prompt"]),
                    completion=row["text"],
                    gold=row["gold"],
                )
                for row in rows
            ]
        if not rows:
            raise NothingToLearnError(
                "not one sample is accepted, so there is nothing to train on; "
                f'see `stillhouse sql {run.dataset.path} "select * from funnel"`'
            )

    return _write(run, student, TrainingExample, examples, chosen_by(run.dataset))


@task(name="select problems", task_run_name="select problems for {student}", cache_policy=NO_CACHE)
def select_problems(
    run: Run, rendering: Rendering, student: str, band: tuple[float, ...], *, taught: bool = False
) -> Path:
    """Writes the problems to learn from, rendered for the student, and where it is `taught` for its teacher too.

    NothingToLearnError for none.
    """
    alone = rendering.template.without_shots()
    chosen = problems_to_learn_from(connect(run.dataset), run.dataset, band)
    rows = [replace(problem, prompt=alone.render(rendering.tokenizer, problem.prompt)) for problem in chosen]
    if taught:
        asked = [rendering.template.render(rendering.tokenizer, problem.prompt) for problem in chosen]
        rows = [TaughtProblem(**asdict(row), teacher_prompt=text) for row, text in zip(rows, asked, strict=True)]
    if not rows:
        low, high = band
        raise NothingToLearnError(
            "no training problem that is not excluded has a gold answer and a pass rate "
            f"from {low:g} to {high:g}: widen {student}.pass_rate"
        )
    return _write(run, student, type(rows[0]), lambda: [rows], chosen_by(run.dataset, band, student))


@task(name="select validation", task_run_name="select for validation", cache_policy=NO_CACHE)
def select_validation(run: Run, rendering: Rendering) -> Path:
    """Writes the problems kept for validation that can be judged, rendered for the student. ProblemsError for none."""
    alone = rendering.template.without_shots()
    rows = [
        replace(problem, prompt=alone.render(rendering.tokenizer, problem.prompt))
        for problem in problems_of_split(run.dataset, VALIDATION)
        if problem.gold or problem.tests
    ]
    if not rows:
        raise ProblemsError(
            "no problem with a gold answer or tests is kept for validation: raise `validation` on a [[problems]], or "
            "set validate_every = 0"
        )
    return _write(run, VALIDATION, Problem, lambda: [rows], {})


def _write(
    run: Run, student: str, kind: type, parts: Callable[[], Iterable[Sequence[Any]]], settings: dict[str, Any]
) -> Path:
    """Named by its content: a job that names the file has said what it is trained on."""
    schema = SCHEMAS[kind]
    digest = rows_hash("selection", (asdict(row) for rows in parts() for row in rows), digits=12)
    relative = f"{SELECTIONS}/{student}-{digest}.parquet"
    if run.dataset.read_manifest(relative) is None:
        tables = (to_table(list(rows), schema) for rows in parts())
        run.dataset.write_shard(relative, tables, schema=schema, fingerprint=digest, extra={"chosen_by": settings})
    return run.dataset.file(relative)
