"""The `stillhouse` command: every verb parses its words, then calls the flow or query that does the work.

Heavy imports (Prefect, torch, DuckDB) happen inside the verbs, so that `--help` and a recipe's errors answer at
once. Exit codes: 0 done, 1 work failed, 2 usage or recipe error, 130 interrupted.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flows.recipe import Recipe, load_recipe, parse_recipe
from model.errors import RecipeError, StillhouseError

app = typer.Typer(
    name="stillhouse",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file.", show_default=False)]
DatasetFolder = Annotated[Path, typer.Argument(metavar="DATASET", help="The dataset's folder.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrides one recipe value; may be given several times."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"stillhouse {version('stillhouse')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Shows the version.")
    ] = False,
) -> None:
    """Verified reasoning data and distilled students: generate, verify, select, distil, refine, evaluate."""


@app.command(epilog="Example: `stillhouse run deployments/recipes/demo.toml --set generate.replicas=8`")
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    only: Annotated[
        str,
        typer.Option(
            metavar="STAGE,…", help="problems, audit, generate, verify, sft, distill, on_policy, grpo, evaluate"
        ),
    ] = "",
) -> None:
    """Runs the whole recipe, or some of its stages, here and now; what is done already is not done again."""
    from flows.stages import parse_stages

    loaded = load_recipe(recipe, overrides or [])
    stages = parse_stages(only)
    if only.strip():
        _refuse_disabled(loaded, stages)
    from flows.embedded import run_embedded

    run_embedded(loaded, stages)


@app.command(epilog="Example: `stillhouse plan deployments/recipes/r1_distill_qwen_1_5b.toml`")
def plan(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Says what a recipe would cost: shards, samples, tokens, disk, GPU hours, money. Makes nothing."""
    from flows.planning import plan as plan_recipe
    from flows.planning import render
    from flows.student_fit import require_fitting_student

    loaded = load_recipe(recipe, overrides or [])
    require_fitting_student(loaded)
    typer.echo(render(plan_recipe(loaded, _measured_rates(loaded))))


@app.command(epilog="Example: `stillhouse status data/demo`")
def status(dataset: DatasetFolder) -> None:
    """Stages, shards by state, rates, and what failed and why."""
    from flows.screens import status_screen

    status_screen(_existing(dataset))


@app.command(epilog='Example: `stillhouse sql data/demo "select reason, count(*) from rejected group by all"`')
def sql(
    dataset: DatasetFolder,
    query: Annotated[str, typer.Argument(metavar="SQL", help="One statement.", show_default=False)] = "",
    output: Annotated[str, typer.Option("--format", help="table, csv, json or parquet")] = "table",
    file: Annotated[Path | None, typer.Option("-f", "--file", help="Reads the statement from a file.")] = None,
) -> None:
    """Queries the dataset, also while a run is making it. Without SQL: lists the views."""
    from flows.screens import sql_screen

    sql_screen(_existing(dataset), _statement(file) if file else query, output)


@app.command(epilog="Example: `stillhouse rerun data/demo --failed`")
def rerun(
    dataset: DatasetFolder,
    failed: Annotated[bool, typer.Option("--failed", help="The shards that failed, and only those.")] = False,
    where: Annotated[str, typer.Option(metavar="SQL", help="The samples for which this predicate holds.")] = "",
    errors: Annotated[bool, typer.Option("--errors", help="The verdicts that are errors, and only those.")] = False,
    overrides: Overrides = None,
) -> None:
    """Makes new attempts for failed shards, chosen samples or checks in error; every other row stays as it is."""
    if failed + bool(where) + errors != 1:
        raise RecipeError("say which rows: --failed, --errors, or --where \"finish_reason = 'length'\"")
    from flows.embedded import rerun_embedded

    rerun_embedded(_existing(dataset), failed, where, errors, overrides or [])


@app.command(epilog="Example: `stillhouse explain data/demo 3f2a…` (the first digits of an id are enough)")
def explain(
    dataset: DatasetFolder, sample_id: Annotated[str, typer.Argument(metavar="SAMPLE_ID", show_default=False)]
) -> None:
    """Tells one sample's whole history: problem, provenance, text, verdicts, fate."""
    from flows.screens import explain_screen

    explain_screen(_existing(dataset), sample_id)


@app.command(epilog="Example: `stillhouse report data/demo`, then open `data/demo/report.html` in a browser")
def report(
    dataset: DatasetFolder,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where the page goes; default: report.html in DATASET."),
    ] = None,
) -> None:
    """Writes one HTML page that needs nothing else: funnel, reasons, rates, curves, evaluations, samples to read.

    Also while a run is making the dataset: the page says how things stand now.
    """
    from flows.report import write_report

    typer.echo(write_report(_existing(dataset), out))


@app.command(epilog="Example: `stillhouse audit deployments/recipes/demo.toml`, or `stillhouse audit data/demo`")
def audit(
    target: Annotated[
        Path,
        typer.Argument(metavar="DATASET|RECIPE", help="A dataset's folder, or a recipe (TOML).", show_default=False),
    ],
    overrides: Overrides = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 where a gold answer fails.")] = False,
) -> None:
    """Tries every check on its own gold answers, and on corrupted ones, before a GPU is used.

    A recipe's problems are loaded first; a dataset is audited as it is. Problems whose gold fails are quarantined.
    """
    recipe = _audited_recipe(target, overrides or [])
    recipe.audited_checks()
    from flows.embedded import audit_embedded

    failing = audit_embedded(recipe, load_problems=target.suffix == ".toml")
    if strict and failing:
        raise typer.Exit(1)


@app.command(
    epilog="Example: `stillhouse evaluate data/demo/students/sft/model --recipe deployments/recipes/demo.toml`"
)
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder.", show_default=False)],
    recipe: Annotated[Path, typer.Option(help="Whose held-out problems, template and sampling are used.")],
    name: Annotated[str, typer.Option(help="The model's name in the view `evaluations`.")] = "",
    overrides: Overrides = None,
) -> None:
    """Measures pass@k (unbiased) and cons@N with 95 % intervals on problems that training never saw."""
    loaded = load_recipe(recipe, overrides or [])
    from flows.embedded import evaluate_embedded

    evaluate_embedded(loaded, model, name or Path(model).name)


@app.command(epilog="Example: `stillhouse train job.json`, or `stillhouse train --check-losses`")
def train(
    job: Annotated[
        Path | None, typer.Argument(metavar="JOB", help="One stage's settings, a JSON file.", show_default=False)
    ] = None,
    check_losses: Annotated[
        bool, typer.Option("--check-losses", help="Trains nothing: every loss beside its paper's definition.")
    ] = False,
) -> None:
    """Trains one stage, resuming where it was left; or checks the losses against their papers.

    Exit codes of a job: 0 done, 1 failed, 2 wrong and would fail again, 3 out of memory, 75 stopped
    on request and resumable.
    """
    if (job is None) != check_losses:
        raise RecipeError("say what to do: a JOB (JSON file), or --check-losses")
    if job is None:
        from model.definitions.check import check_losses as rows_of
        from model.definitions.check import table

        rows = rows_of()
        typer.echo(table(rows))
        raise typer.Exit(int(not all(row.agrees for row in rows)))
    from rich.console import Console

    from model.training.__main__ import run_file
    from tasks.follow import followed
    from tasks.progress import LOG, shown

    console = Console(stderr=True)
    if not console.is_terminal:
        LOG.addHandler(logging.StreamHandler())
    with shown(console):
        status = followed(job, run_file)
    raise typer.Exit(status)


@app.command(epilog="Example: `prefect server start` in one terminal, then `stillhouse deploy` in another")
def deploy(
    pool: Annotated[
        str, typer.Option(help="Work pool for the runs, made if it is not there; default: prefect.yaml's.")
    ] = "",
    check: Annotated[bool, typer.Option("--check", help="Also proves that the server schedules runs.")] = False,
) -> None:
    """Registers every flow as a deployment with the Prefect server of the current profile."""
    from flows.deploy import deploy_all

    deploy_all(pool, check)


def _existing(dataset: Path) -> Path:
    if not (dataset / "recipe.json").is_file():
        raise RecipeError(f"{dataset} is not a dataset (no recipe.json there); `stillhouse run RECIPE` makes one")
    return dataset


def _audited_recipe(target: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe that is named, or the one that is stored with the dataset."""
    if target.suffix == ".toml":
        return load_recipe(target, overrides)
    from tasks.store import Dataset

    stored = Dataset.open(_existing(target)).recipe() or {}
    return parse_recipe(stored, [f"dataset={target}", *overrides], str(target))


def _refuse_disabled(recipe: Recipe, stages: Sequence[str]) -> None:
    """A stage that is asked for by name must not be left out in silence."""
    for stage in stages:
        if not getattr(getattr(recipe, stage, None), "enabled", True):
            raise RecipeError(f"{stage}.enabled is false in the recipe; add `--set {stage}.enabled=true` to run it")


def _statement(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error


def _measured_rates(recipe: Recipe) -> dict[str, float] | None:
    """Rates that a pilot run of the same dataset has measured, if there is one, and its problems if they are these."""
    folder = Path(recipe.dataset)
    if not (folder / "recipe.json").is_file():
        return None
    from tasks.catalog import connect
    from tasks.store import Dataset
    from tasks.summary import measured_rates, problem_counts

    con = connect(folder)
    rates, counts = measured_rates(con), problem_counts(con)
    if (Dataset.open(folder).recipe() or {}).get("problems") == recipe.resolved()["problems"]:
        rates |= {split: float(counts[split]) for split in ("train", "validation", "held_out")}
    return rates


def main() -> None:
    """Entry point: our errors become one line and an exit code; usage errors are typer's, with code 2."""
    code = _outcome()
    if "duckdb" in sys.modules:
        _leave_in_silence(code)
    sys.exit(code)


def _outcome() -> int:
    try:
        app()
    except StillhouseError as error:
        typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        return 1 if error.retryable else 2
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    return 0


def _leave_in_silence(code: int) -> None:
    """Ends the process after its exit handlers (Prefect's server is stopped by one) but before module teardown,
    during which DuckDB 2.0's bindings print a page of warnings about leaks. Threads come first, as the interpreter
    itself has it: Prefect sends its last events from there."""
    threading._shutdown()  # type: ignore[attr-defined]  # as public as the atexit call below
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
