"""How the command line runs flows: in this process, with Prefect's own temporary server and no other.

Prefect's log goes to the dataset's logs/run.log; the terminal shows progress bars and, at the end, a page of
results. Ctrl-C (and SIGTERM) stops the engine and the trainer, keeps what is finished, and says how to resume.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

from flows.recipe import Recipe, parse_recipe
from flows.stages import ALL_STAGES, Stage
from model.errors import RecipeError
from tasks.durable import store_errors
from tasks.progress import shown
from tasks.store import Dataset

INTERRUPTED = 130  # exit code: 128 + SIGINT
# A run needs no account, no telemetry, and no server that outlives it.
SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
}
_LOGGERS = ("prefect", "prefect.flow_runs", "prefect.task_runs", "uvicorn", "stillhouse")
_LATE = ("EventsWorker", "APILogWorker")  # warn, after our own last line, where Prefect's threads are slow to end


def run_embedded(recipe: Recipe, stages: Sequence[Stage]) -> None:
    """Runs the recipe's stages and prints the page of results."""
    from flows.screens import results_screen

    def work() -> None:
        from flows.factory import factory

        factory(recipe, tuple(stages))

    _run(recipe, work)
    results_screen(Path(recipe.dataset), complete=tuple(stages) == ALL_STAGES)


def rerun_embedded(dataset: Path, failed: bool, where: str, errors: bool, overrides: Sequence[str]) -> None:
    """Makes new attempts for failed shards, chosen samples or checks in error, under the dataset's own recipe."""
    recipe = parse_recipe(Dataset.open(dataset).recipe() or {}, [f"dataset={dataset}", *overrides], str(dataset))
    made: list[int] = []

    def work() -> None:
        from flows.rerun import rerun

        made.extend(rerun(recipe, failed, where, errors))

    _run(recipe, work)
    which = f"shards {', '.join(map(str, made))}" if made else "nothing: no row was chosen"
    Console().print(f"re-run: {which}")


def audit_embedded(recipe: Recipe, load_problems: bool) -> int:
    """Puts the recipe's checks on trial, prints what was found, and returns how many gold answers fail."""
    from flows.screens import audit_screen

    def work() -> None:
        from flows.audit import audit

        audit(recipe, load_problems)

    _run(recipe, work)
    return audit_screen(Path(recipe.dataset))


def evaluate_embedded(recipe: Recipe, model: str, name: str) -> None:
    """Measures one model folder on a recipe's held-out problems and prints the figures."""
    from flows.screens import evaluations_screen

    def work() -> None:
        from flows.evaluate import evaluate

        evaluate(recipe, model, name)

    _run(recipe, work)
    evaluations_screen(Path(recipe.dataset), name)


def _run(recipe: Recipe, work: Callable[[], None]) -> None:
    from flows.screens import program

    console = Console(stderr=True)
    dataset = Dataset.create(recipe.dataset)
    _check_accept_rule(recipe, dataset)
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    with _stoppable(), _log_to(dataset.file("logs/run.log"), console), shown(console):
        try:
            _start_server()
            work()
        except KeyboardInterrupt:
            command = shlex.join([program("stillhouse"), *sys.argv[1:]])
            hint = f"\nInterrupted. What was finished is kept; go on with: {command}"
            console.print(hint, highlight=False, markup=False, soft_wrap=True)
            raise SystemExit(INTERRUPTED) from None


def _start_server() -> None:
    """A temporary one, which ends with this process, unless the Prefect profile names a server."""
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        # Takes two seconds to import, which a run with a server of its own need not wait for.
        from flows.temporary_server import TemporaryServer

        TemporaryServer().start()


def _check_accept_rule(recipe: Recipe, dataset: Dataset) -> None:
    """A predicate that DuckDB refuses must not get into the dataset's recipe, which every query reads.

    Raises RecipeError.
    """
    if recipe.accept.where.strip():
        from tasks.catalog import QueryError, connect
        from tasks.views import AcceptRule

        try:
            connect(dataset, AcceptRule.of(recipe.resolved()["accept"])).close()
        except QueryError as error:
            raise RecipeError(f"accept.where: {error}") from error


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM alike end the run by KeyboardInterrupt, so that engine and trainer are stopped in order."""

    def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
        # Not through the console: a progress bar of another thread may hold its lock.
        os.write(sys.stderr.fileno(), b"\nStopping: what is finished is kept ...\n")
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _LogFile(logging.FileHandler):
    """Leaves out what the disk does not take: that it is full is told by whatever else could not be written."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name of logging's own
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def _log_to(file: Path, console: Console) -> Iterator[None]:
    """Prefect's and our log records go to a file; a terminal has the bars, a pipe gets our own lines too."""
    with store_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        to_file = _LogFile(file, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    import prefect.logging.configuration  # noqa: F401  # Prefect sets its handlers on import; ours replace them

    for name in (*_LOGGERS, *_LATE):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [to_file], False
        logger.setLevel(logging.INFO)
    if not console.is_terminal:
        logging.getLogger("stillhouse").addHandler(logging.StreamHandler(sys.stderr))
    try:
        yield
    finally:
        to_file.close()
