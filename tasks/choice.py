"""Which problems a student learns from, and by which settings samples and problems are chosen.

The choice of samples is the view `accepted`. Without Prefect, so that a page may compare what was chosen with what
would be.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from model.records import Problem
from tasks.catalog import Connection, pass_rates, stored_rule
from tasks.inputs import problems_of_split
from tasks.problem_verdicts import excluded
from tasks.store import Dataset

SELECTIONS = "selections"  # where what was chosen for a student lies, relative to the dataset


def problems_to_learn_from(con: Connection, dataset: Dataset, band: tuple[float, ...]) -> list[Problem]:
    """The training problems with a gold answer whose pass rate lies in `band`.

    A band of everything also takes problems that have no samples, and so no pass rate. Those that the accept rule
    excludes are left out.
    """
    low, high = band
    left_out = excluded(dataset, stored_rule(dataset).problems)
    rates = {row["problem_id"]: row["pass_rate"] for row in pass_rates(con).to_pylist()}

    def chosen(problem: Problem) -> bool:
        rate = rates.get(problem.problem_id)
        wanted = bool(problem.gold) and problem.problem_id not in left_out
        return wanted and ((low, high) == (0.0, 1.0) or (rate is not None and low <= rate <= high))

    return [problem for problem in problems_of_split(dataset, "train") if chosen(problem)]


def chosen_by(dataset: Dataset, band: tuple[float, ...] | None = None, student: str = "") -> dict[str, Any]:
    """The settings that a choice follows, by dotted key, as JSON values: noted beside it, to tell a later change."""
    settings = {f"accept.{name}": value for name, value in asdict(stored_rule(dataset)).items()}
    if band is not None:
        settings[f"{student}.pass_rate"] = band
    return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
