"""`stillhouse report`, one dataset as one HTML file that needs nothing else. To read, to keep and to hand on.

Every figure comes from the dataset at the moment of asking, by the queries that the screens and the Prefect UI use, so
a report can be made while a run goes on. It changes nothing but its own file, which is there whole or not at all.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import Any

from flows.curves import as_svg, stage_curves, stages_with_curves
from flows.page import render
from flows.screens import METRIC, NAMES, agreement_row, audit_row, outdated_notes, stage_row
from model.errors import RecipeError
from tasks import catalog, durable
from tasks.audit_report import audit_rates
from tasks.catalog import Connection
from tasks.store import Dataset
from tasks.summary import (
    Rows,
    accepted_preview,
    checks_that_wait,
    completion_lengths,
    current_evaluations,
    failed_attempts,
    funnel_steps,
    generation_speed,
    newest_evaluations,
    pass_rates_by_source,
    problem_counts,
    rejected_preview,
    teacher_on_validation,
    training_summary,
)

FILE = "report.html"
ACCEPTED, REJECTED = 6, 40  # samples to read; of the rejected ones one for each reason
FAILURES = 50  # shards and errors that are listed one by one
ALL = "all"  # the suite over all sources
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s\"]+(?=@)")

# How a reader gets each table again: SQL over the public views, the newest data each time.
QUERIES = {
    "funnel": "select step, samples, lost, reason from funnel",
    "problem_funnel": "select step, problems, lost, reason from problem_funnel",
    "reasons": "select check_name, reason, count(*) as samples from rejected group by all order by samples desc",
    "sources": "select source, count(*) as problems, sum(samples) as samples, avg(pass_rate) as pass_rate, "
    "count(*) filter (pass_rate = 0) as never, count(*) filter (pass_rate = 1) as always "
    "from pass_rates join problems using (problem_id) group by source order by pass_rate desc",
    "lengths": "select check_name is null as accepted, count(*) as samples, "
    "quantile_cont(completion_tokens, [0.05, 0.5, 0.95, 1]) as tokens from outcomes group by accepted",
    "agreement": "from agreement",
    "audits": "select * from audits where verdict <> expected",
    "errors": "select check_name, reason, count(*) as verdicts from verdicts "
    "where current and verdict = 'error' group by all order by verdicts desc",
    "training": "from training order by stage, step",
    "evaluations": "select model, step, suite, metric, value, low, high, problems, samples from evaluations",
    "stages": "select stage, state, count(*) as shards, sum(rows) as rows from shards group by all order by all",
    "failures": "select stage, shard, attempts, error_type, error from shards where state in ('failed', 'crashed')",
    "attempts": "select stage, shard, attempt, started_at, error_type, error from attempts "
    "where state in ('failed', 'crashed') order by started_at desc",
    "accepted": "select sample_id, text from accepted order by sample_id limit 10",
    "rejected": "select sample_id, text from rejected where reason = 'not_equal' limit 10",
}


def write_report(dataset: Path, out: Path | None = None) -> Path:
    """Writes the page to `out`, by default into the dataset's folder, and says where it is.

    Raises RecipeError for a place where a file of the dataset could be, StoreError for one that cannot be written.
    """
    target = out or dataset / FILE
    if target.suffix.lower() not in (".html", ".htm") and target.resolve().is_relative_to(dataset.resolve()):
        raise RecipeError(f"--out {target} is among the dataset's own files: a report there must end in .html")
    durable.write_beside(target.absolute(), page(dataset))
    return target


def page(dataset: Path) -> bytes:
    """The whole page, as UTF-8."""
    store, con = Dataset.open(dataset), catalog.connect(dataset)
    recipe, folder = store.recipe() or {}, shlex.quote(str(dataset))
    heading = {
        "name": recipe.get("name") or store.path.name,
        "dataset": folder,
        "made_at": datetime.now(UTC),
        "version": version("stillhouse"),
        "run": store.holder(),
        "recipe": _shown_recipe(recipe),
        "queries": {name: f'stillhouse sql {folder} "{query}"' for name, query in QUERIES.items()},
    }
    sections = [_choice(con), _checks(con), _students(con, store, recipe), _work(con, store), _samples(con)]
    return render("report.html.jinja", heading | {name: value for part in sections for name, value in part.items()})


def _choice(con: Connection) -> dict[str, Any]:
    """What was made and what of it is kept."""
    steps = funnel_steps(con)
    return {
        "counts": problem_counts(con),
        "funnel": steps,
        "kept": steps[-1]["samples"],
        "problem_funnel": [row for row in catalog.problem_funnel(con).to_pylist() if row["reason"] is None],
        "reasons": catalog.reasons(con).to_pylist(),
        "sources": pass_rates_by_source(con),
        "lengths": completion_lengths(con),
        "speed": generation_speed(con),
        "verification_share": catalog.verification_share(con),
    }


def _checks(con: Connection) -> dict[str, Any]:
    """How far the checks can be trusted."""
    return {
        "agreement": [agreement_row(row) for row in catalog.agreement(con).to_pylist()],
        "audits": [audit_row(row) for row in audit_rates(con)],
        "errors": catalog.verdict_errors(con).to_pylist(),
    }


def _students(con: Connection, dataset: Dataset, recipe: dict[str, Any]) -> dict[str, Any]:
    """What the students learnt."""
    teacher = teacher_on_validation(con)
    current, others = _evaluations(con, dataset)
    return {
        "curves": [
            {"stage": stage.value, "picture": base64.b64encode(as_svg(stage_curves(dataset, stage, teacher))).decode()}
            for stage in stages_with_curves(dataset)
        ],
        "training": {row["stage"]: row for row in training_summary(con)},
        "evaluated": suites(current),
        "evaluated_otherwise": suites(others),
        "confidence": recipe.get("evaluate", {}).get("confidence", 0.95),
        "outdated": outdated_notes(con, dataset),
        "names": NAMES,
    }


def _work(con: Connection, dataset: Dataset) -> dict[str, Any]:
    """How the work stands, and what went wrong with it."""
    failures = [_without_users(row) for row in catalog.failures(con).to_pylist()]
    return {
        "stages": [stage_row(row) for row in catalog.status(con).to_pylist()],
        "waiting": checks_that_wait(dataset),
        "failures": failures[:FAILURES],
        "more_failures": len(failures[FAILURES:]),
        "attempts": [_without_users(row) for row in failed_attempts(con, FAILURES)],
    }


def _samples(con: Connection) -> dict[str, Any]:
    return {"accepted": accepted_preview(con, ACCEPTED), "rejected": rejected_preview(con, REJECTED)}


def _without_users(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose error names addresses, without the names and passwords in them."""
    return row | {"error": row["error"] and _USER_IN_URL.sub("…", row["error"])}


def _shown_recipe(recipe: dict[str, Any]) -> str:
    """The recipe as JSON, without the names and passwords that an address may hold: a page is handed on."""
    return _USER_IN_URL.sub("…", json.dumps(recipe, indent=2, ensure_ascii=False))


def _evaluations(con: Connection, dataset: Dataset) -> tuple[Rows, Rows]:
    """The metrics of the last evaluation of the whole recipe, and of whatever else was measured.

    Before the first whole evaluation is done, what there is.
    """
    current, newest = current_evaluations(con, dataset), newest_evaluations(con)
    if not current:
        return newest, []
    known = {(row["model"], row["step"]) for row in current}
    return current, [row for row in newest if (row["model"], row["step"]) not in known]


@dataclass(frozen=True, slots=True)
class Suite:
    """One suite's results: a row per model and step, and where the axis of its picture ends.

    Of `rows` each is (model, step, the metrics by name); `shown` is the metric that the picture shows.
    """

    name: str
    metrics: list[str]
    rows: list[tuple[str, int, dict[str, dict[str, Any]]]]

    @property
    def shown(self) -> str:
        """pass@1 where it was measured."""
        return METRIC if METRIC in self.metrics else self.metrics[0]

    @property
    def end(self) -> float:
        """The next tenth above all intervals, in (0, 1]: an axis that begins at 0, and fits hard suites as well."""
        highest: float = max(metrics[self.shown]["high"] for _, _, metrics in self.rows if self.shown in metrics)
        return min(1.0, max(1, ceil(10 * highest - 1e-9)) / 10)


def suites(rows: Iterable[dict[str, Any]]) -> list[Suite]:
    """Rows of `evaluations` by suite, the one over all sources first; models stay in their order."""
    found: dict[str, dict[tuple[str, int], dict[str, dict[str, Any]]]] = {}
    for row in rows:
        found.setdefault(row["suite"], {}).setdefault((row["model"], row["step"]), {})[row["metric"]] = row
    return [
        Suite(name, sorted({metric for one in found[name].values() for metric in one}, key=_order), _flat(found[name]))
        for name in sorted(found, key=lambda name: (name != ALL, name))
    ]


def _flat(models: dict[tuple[str, int], dict[str, Any]]) -> list[tuple[str, int, dict[str, Any]]]:
    return [(model, step, metrics) for (model, step), metrics in models.items()]


def _order(metric: str) -> tuple[bool, str, int]:
    """pass@1, pass@2, pass@16, cons@16: pass@k first, each by its number."""
    name, _, number = metric.partition("@")
    return name != "pass", name, int(number) if number.isdecimal() else 0
