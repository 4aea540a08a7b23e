"""Students whose training data are not what would be chosen now: the accept rule, a check or the samples changed.

Nothing is trained by this: a run does that. Compared are ids, so a changed rule that chooses the same changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tasks.catalog import Connection, run_sql
from tasks.choice import SELECTIONS, chosen_by, problems_to_learn_from
from tasks.store import STUDENTS, Dataset

_STUDENTS = ("sft", "distill", "on_policy", "grpo")  # in the order in which one may start from another


@dataclass(frozen=True, slots=True)
class Outdated:
    """A student that learnt from `learnt` samples or problems, of which `kept` are among the `now` chosen ones.

    `differs` names the settings that chose otherwise, where those were noted; `through` the outdated student that this
    one started from.
    """

    student: str
    learnt: int
    kept: int
    now: int
    differs: tuple[str, ...] = ()
    through: str = ""

    @property
    def itself(self) -> bool:
        """Whether its own data have changed."""
        return self.kept < max(self.learnt, self.now)


def outdated_students(con: Connection, dataset: Dataset) -> list[Outdated]:
    """Finished students of the last recipe that would be trained on something else now, or start from one of those."""
    recipe = dataset.recipe() or {}
    found: dict[str, Outdated] = {}

    @cache
    def accepted() -> set[str]:
        return set(run_sql(con, "select sample_id from accepted").column(0).to_pylist())

    for student in _STUDENTS:
        job = dataset.read_json(f"{STUDENTS}/{student}/job.json")
        finished = dataset.read_json(f"{STUDENTS}/{student}/manifest.json") is not None
        enabled = recipe.get(student, {}).get("enabled", True)
        if isinstance(job, dict) and finished and enabled:
            now = _compared(con, dataset, accepted, student, job)
            if now is not None and (now.itself or now.through in found):
                found[student] = now
    return list(found.values())


def _compared(
    con: Connection, dataset: Dataset, accepted: Callable[[], set[str]], student: str, job: dict[str, Any]
) -> Outdated | None:
    """None where what the student learnt from is not there any more."""
    kind, column = ("problems", "problem_id") if "problems" in job else ("examples", "sample_id")
    selection = f"{SELECTIONS}/{Path(job.get(kind, '')).name}"  # by name: a dataset may be moved
    manifest = dataset.read_manifest(selection)
    if manifest is None:
        return None
    learnt = set(dataset.read_table(selection, [column]).column(0).to_pylist())
    band: tuple[float, ...] | None = None
    if kind == "problems":
        band = tuple((dataset.recipe() or {}).get(student, {}).get("pass_rate", (0.0, 1.0)))
        now = {problem.problem_id for problem in problems_to_learn_from(con, dataset, band)}
    else:
        now = accepted()
    before, after = manifest.extra.get("chosen_by", {}), chosen_by(dataset, band, student)
    differs = tuple(f"{key} was {before[key]}, is {after[key]}" for key in before if before[key] != after.get(key))
    through = Path(job.get("init", "")).parent
    return Outdated(
        student,
        learnt=len(learnt),
        kept=len(learnt & now),
        now=len(now),
        differs=differs,
        through=through.name if through.parent.name == STUDENTS else "",
    )
