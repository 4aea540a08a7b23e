"""What the command line prints: the page of results, the status, one sample's history, query results.

All figures come from the catalog's queries at the moment of asking; nothing is remembered from the run.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.errors import RecipeError
from model.rewards.corruption import changed_line
from tasks import catalog
from tasks.audit_report import audit_mistakes, audit_rates, failing_golds, quarantined, unscorable_golds
from tasks.catalog import Connection
from tasks.outdated import Outdated, outdated_students
from tasks.results import FORMATS, write_result
from tasks.snapshot import unit_of
from tasks.store import Dataset
from tasks.summary import (
    checks_that_wait,
    current_evaluations,
    funnel_steps,
    generation_speed,
    other_requirement,
    problem_counts,
    telling_sample,
    training_summary,
)
from tasks.views import PUBLIC

METRIC = "pass@1"
SHOWN = 10  # gold answers that are listed one by one
STAGES = "stages (seconds: wall time in which shards were worked on; rows/s: rows over those seconds)"
NAMES = {
    "teacher": "teacher, shown worked turns",
    "student": "student before training",
    "sft": "after SFT on accepted samples",
    "distill": "after KL distillation",
    "on_policy": "after on-policy distillation",
    "grpo": "after GRPO",
}
VIEWS = f"views: {', '.join(PUBLIC)};\n`describe samples` lists a view's columns"


def results_screen(dataset: Path, complete: bool) -> None:
    """The page at the end of a run: funnel, losses, students, speed, and what to type next."""
    console = Console(width=110 if not sys.stdout.isatty() else None)
    con = catalog.connect(dataset)
    counts = problem_counts(con)
    validation = f", {counts['validation']} for validation" if counts["validation"] else ""
    console.print(f"problems: {counts['train']} to learn from, {counts['held_out']} held out{validation}")
    if not counts["samples"]:
        console.print("nothing is generated yet; `--only generate,verify` makes the samples")
        return
    _print_funnel(console, con)
    _print_agreement(console, con)
    _print_evaluations(console, con, dataset)
    _print_outdated(console, con, Dataset.open(dataset))
    _print_speed(console, con)
    _print_errors(console, con, dataset)
    _print_next(console, con, dataset)
    if complete:
        console.print("All stages of the recipe are done.", style="bold green")


def audit_screen(dataset: Path) -> int:
    """What an audit found, by source and check, with an example of each mistake; returns the golds that fail."""
    console, con = Console(width=120 if not sys.stdout.isatty() else None, highlight=False), catalog.connect(dataset)
    rates = audit_rates(con)
    _print_table(console, "checks on trial", [audit_row(row) for row in rates])
    _print_table(console, "what they got wrong, with an example", [_shortened(row) for row in audit_mistakes(con)])
    _print_table(console, "gold answers that fail their own check", [_shortened(r) for r in failing_golds(con, SHOWN)])
    _print_table(console, "gold answers that could not be judged", [_shortened(r) for r in unscorable_golds(con)])
    failing, out = int(sum(row["golds_failing"] for row in rates)), quarantined(con)
    accepted, rejected = (sum(row[name] for row in rates) for name in ("false_accepts", "false_rejects"))
    console.print(f"false rejects: {rejected}; false accepts: {accepted}; gold answers that fail: {failing}")
    if out["train"]:
        console.print(f"{out['train']} problems are quarantined (`problem_verdicts` says why)", style="bold yellow")
    if out["held_out"]:
        console.print(f"{out['held_out']} held-out problems fail as well; those are reported, never left out")
    query = "select * from audits where verdict <> expected"
    console.print(Text(f"all of them: {program('stillhouse')} sql {dataset} '{query}'"), soft_wrap=True)
    return failing


def status_screen(dataset: Path) -> None:
    """Stages, shards by state, rates, time left, and what failed and why."""
    console = Console(width=120 if not sys.stdout.isatty() else None)
    con = catalog.connect(dataset)
    holder = Dataset.open(dataset).holder()
    doing = f"run {holder.run_id} is working (pid {holder.pid} on {holder.host})" if holder else "no run is working"
    console.print(Text(f"{dataset}: {doing}"))
    rows = catalog.status(con).to_pylist()
    _print_table(console, STAGES, [stage_row(row) for row in rows])
    for check, shards in checks_that_wait(Dataset.open(dataset)).items():
        console.print(f"{shards} pending shards of verify have the verdicts of other checks, but not of {check}")
    _print_table(console, "failed or crashed shards", catalog.failures(con).to_pylist())
    _print_agreement(console, con)
    _print_errors(console, con, dataset)
    _print_share(console, con)
    if not rows:
        console.print("nothing has been planned yet")


def sql_screen(dataset: Path, query: str, output: str) -> None:
    """One statement's result on standard output; without a statement, what can be asked."""
    if output not in FORMATS:
        raise RecipeError(f"--format {output}: use one of {', '.join(FORMATS)}")
    if not query.strip():
        Console().print(
            Text(f"{VIEWS}\nas in: {program('stillhouse')} sql {dataset} 'select * from funnel'"), soft_wrap=True
        )
        return
    write_result(catalog.run_sql(catalog.connect(dataset), query), output, sys.stdout.buffer)


def explain_screen(dataset: Path, sample: str) -> None:
    """One sample from its problem to its fate."""
    history = catalog.explain_sample(catalog.connect(dataset), sample)
    console = Console(highlight=False, width=110 if not sys.stdout.isatty() else None)
    newest, problem = history.samples[-1], history.problem
    fate = history.outcome + (f" at {history.check}: {history.reason}" if history.check else "")
    console.print(Text(f"sample  {history.sample_id}   {fate}", style="bold"))
    console.print(Text(f"problem {problem.get('problem_id')}   {problem.get('source')}, gold {problem.get('gold')}"))
    console.print(Text(str(problem.get("prompt")), style="cyan"))
    for key in (
        "teacher",
        "teacher_revision",
        "template",
        "temperature",
        "top_p",
        "max_tokens",
        "replica",
        "seed",
    ):
        console.print(Text(f"  {key:<18}{newest[key]}"))
    console.print(Text(f"  {'tokens':<18}{newest['prompt_tokens']} + {newest['completion_tokens']}"))
    console.print(Text(f"  {'ended by':<18}{newest['finish_reason']} after {newest['seconds']:.2f} s"))
    console.print(Text(newest["text"], style="green"))
    keys = ("check", "version", "verdict", "score", "reason", "milliseconds", "shard")
    _print_table(console, "verdicts", [{key: row[key] for key in keys} for row in history.verdicts])
    keys = ("stage", "shard", "attempt", "state", "started_at", "seconds", "error")
    _print_table(console, "attempts", [{key: row[key] for key in keys} for row in history.attempts])


def evaluations_screen(dataset: Path, model: str) -> None:
    """The figures of one model."""
    rows = [r for r in catalog.evaluations(catalog.connect(dataset)).to_pylist() if r["model"] == model]
    keys = ("model", "step", "suite", "metric", "value", "low", "high", "problems", "samples")
    _print_table(Console(), "evaluations", [{key: row[key] for key in keys} for row in rows])


def _print_funnel(console: Console, con: Connection) -> None:
    shown = [
        {
            "step": row["step"],
            "samples": row["samples"],
            "lost": row["lost"],
            "why": ", ".join(f"{reason} {lost}" for reason, lost in row["reasons"].items()),
        }
        for row in funnel_steps(con)
    ]
    _print_table(console, "funnel", shown)


def _print_agreement(console: Console, con: Connection) -> None:
    """The judge beside each rule; nothing where no judge has spoken."""
    rows = catalog.agreement(con).to_pylist()
    _print_table(console, "judge beside rules", [agreement_row(row) for row in rows])


def _print_evaluations(console: Console, con: Connection, dataset: Path) -> None:
    """pass@1 of the last step of each model, on all held-out problems and on each source."""
    rows = [row for row in current_evaluations(con, Dataset.open(dataset)) if row["metric"] == METRIC]
    suites = sorted({row["suite"] for row in rows}, key=lambda name: (name != "all", name))
    shown = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {row["suite"]: row for row in rows if row["model"] == model}
        shown.append({"model": NAMES.get(model, model), **{suite: _interval(own.get(suite)) for suite in suites}})
    _print_table(console, f"held-out accuracy: {METRIC} in %, with its 95 % interval", shown)


def _print_outdated(console: Console, con: Connection, dataset: Dataset) -> None:
    lines = outdated_notes(con, dataset)
    for line in lines:
        console.print(Text(line, style="bold yellow"), soft_wrap=True)
    if lines:
        console.print()


def outdated_notes(con: Connection, dataset: Dataset) -> list[str]:
    """That students and accuracies stand beside a funnel which they do not come from, in a line each."""
    lines = []
    if outdated := outdated_students(con, dataset):
        told: dict[str, list[str]] = {}
        for one in outdated:
            told.setdefault(_outdated(one), []).append(one.student)
        lines.append("; ".join(f"{', '.join(students)} {what}" for what, students in told.items()))
        if differs := dict.fromkeys(change for one in outdated for change in one.differs):
            lines[0] += f" ({'; '.join(differs)})"
    if require := other_requirement(dataset):
        lines.append(f"accuracies are of before: an answer was right that passed {', '.join(require)}")
    return [f"{line}. A whole run makes them anew." for line in lines]


def _outdated(one: Outdated) -> str:
    """What is to be said of such a student."""
    if not one.itself:
        return f"started from {one.through}"
    what = "problems" if one.student in ("on_policy", "grpo") else "samples"
    return f"learnt from {one.learnt} {what}, not from the {one.now} that are chosen now ({one.kept} are the same)"


def _print_speed(console: Console, con: Connection) -> None:
    made = generation_speed(con)
    if made["tokens_per_second"]:
        rate = f"{made['tokens_per_second']:.0f} tokens/s"
        console.print(f"teacher: {made['samples']} samples, {made['tokens']} completion tokens, {rate}")
    _print_share(console, con)
    for row in training_summary(con):
        console.print(f"{row['stage']}: {row['steps']} steps in {row['seconds']:.0f} s")
    console.print()


def _print_share(console: Console, con: Connection) -> None:
    share = catalog.verification_share(con)
    if share is not None:
        console.print(f"verification added {100 * share:.1f} % to the run", highlight=False)


def _print_errors(console: Console, con: Connection, dataset: Path) -> None:
    """Verdicts that say nothing of their samples, why, and what has them again."""
    rows = catalog.verdict_errors(con).to_pylist()
    if rows:
        listed = ", ".join(f"{row['check']} {row['reason']} {row['verdicts']}" for row in rows)
        again = f"`{program('stillhouse')} rerun {dataset} --errors` redoes those alone"
        total = sum(row["verdicts"] for row in rows)
        console.print(Text(f"{total} verdicts are errors ({listed}): {again}"), soft_wrap=True)


def _print_next(console: Console, con: Connection, dataset: Path) -> None:
    sample, stillhouse = telling_sample(con), program("stillhouse")
    lines = ["next:", f"  {stillhouse} sql {dataset} 'select reason, count(*) from rejected group by all'"]
    lines += [f"  {stillhouse} explain {dataset} {sample}"] if sample else []
    lines.append(f"  {stillhouse} rerun {dataset} --failed")
    lines.append(f"  {stillhouse} report {dataset}     (one page: losses, curves, accuracies, samples to read)")
    lines.append(f"  {program('prefect')} server start     (the Prefect UI; docs/prefect.md says how runs get there)")
    console.print(Text("\n".join(lines)), soft_wrap=True)


def program(name: str) -> str:
    """How to type a command of this environment: its name where the shell finds it, else its path."""
    here = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if found is not None and Path(found).resolve() == here.resolve():
        return name
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(here)


def _print_table(console: Console, title: str, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, int | float) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    console.print(table)
    console.print()


def audit_row(row: dict[str, Any]) -> dict[str, Any]:
    """A check on trial as it is shown."""
    keys = ("source", "check", "golds", "unscorable", "errors")
    return {
        **{key: row[key] for key in keys},
        "golds failing": row["golds_failing"],
        "false rejects": _share(row["false_rejects"], row["right"]),
        "false accepts": _share(row["false_accepts"], row["wrong"]),
    }


def agreement_row(row: dict[str, Any]) -> dict[str, Any]:
    """A rule's verdict beside the judge's, as it is shown."""
    share = row["agreement"]
    return {
        "check": row["check"],
        "rule says": row["rule_verdict"],
        "judge: pass": row["judge_pass"],
        "judge: fail": row["judge_fail"],
        "judge: error": row["judge_error"],
        "judge agrees": "" if share is None else f"{100 * share:.0f} %",
    }


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.2g} %)" if whole else ""


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    """Of programs one line, which for a mutant is the one that differs; ids need not be whole."""
    if "\n" in row.get("answer", ""):
        row = row | {"gold": "(a program)", "answer": changed_line(row["gold"], row["answer"])}
    short = {key: " ".join(value.split())[:60] if isinstance(value, str) else value for key, value in row.items()}
    return short | {"problem_id": row["problem_id"][:10]}


def stage_row(row: dict[str, Any]) -> dict[str, Any]:
    """A stage's status as it is shown."""
    states = ("shards", "done", "running", "pending", "failed", "crashed")
    rate, left = row["rows_per_second"], row["seconds_left"]
    return {
        "stage": row["stage"],
        **{state: row[state] for state in states},
        "rows": row["rows"],
        "unit": unit_of(row["stage"]),
        "seconds": row["seconds"],
        "rows/s": rate,
        "left": None if not left else f"{left:.0f} s",
    }


def _interval(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{100 * row['value']:.0f} [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
