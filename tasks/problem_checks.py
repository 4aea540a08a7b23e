"""Checks on the problems themselves, before a sample is made: twins, and overlap with benchmarks.

Each check is one pass over the problem files and one verdict file (`tasks/problem_verdicts.py`), made anew when there
are other problems or other settings. Training problems that fail are left out from then on; held-out ones are judged
too, and only reported. Memory: about 1 KB a problem (0.9 GiB for 800,000: bands, then verdict rows),
besides the texts of those that may have a twin.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from model.records import PROBLEM_SCHEMA, Problem, ProblemVerdict, Status, from_table
from model.rewards import contamination as overlap
from model.rewards import duplicate as twins
from model.rewards.check import Judgement, failed, passed, unscorable
from model.rewards.settings import ContaminationSettings, DuplicateSettings
from model.rewards.texts.benchmark_files import BenchmarkItem
from tasks.problem_verdicts import excluded, stale, verdict_file, write_problem_verdicts
from tasks.progress import Ticker, announce, ticking
from tasks.run import Run
from tasks.store import PROBLEMS, Dataset

BATCH = 2_000  # problems whose tokens are in memory at once

Judged = Iterator[tuple[str, Judgement]]


@task(name="check problems", task_run_name="check problems", cache_policy=NO_CACHE)
def check_problems(
    run: Run, checks: Sequence[str], duplicate: DuplicateSettings, contamination: ContaminationSettings
) -> dict[str, int]:
    """Judges the problems by those of `checks` that are done here and stale; says how many each one excludes now.

    Raises CheckError for a benchmark file that cannot be read.
    """
    if "duplicate" in checks:
        _judge(run.dataset, "duplicate", twins.version(duplicate), lambda tick: _twins(run.dataset, duplicate, tick))
    if "contamination" in checks:
        _check_overlap(run.dataset, contamination)
    return dict(Counter(excluded(run.dataset, checks).values()))


def _judge(dataset: Dataset, check: str, version: str, judge: Callable[[Ticker], Judged]) -> None:
    """Writes the verdicts of one check unless they are there, and says in a line what they exclude."""
    if not stale(dataset, check, version):
        return
    started, total = time.monotonic(), sum(manifest.rows for manifest in dataset.manifests(PROBLEMS))
    with ticking(f"problems: {check}", total, "problems") as ticker:
        judged = list(judge(ticker))
    seconds = time.monotonic() - started
    each = seconds * 1000 / max(len(judged), 1)
    rows = [
        ProblemVerdict(problem, check, version, one.verdict, one.score, one.reason, one.detail, each)
        for problem, one in judged
    ]
    write_problem_verdicts(dataset, check, version, rows, seconds)
    _announce(dataset, check, rows)


def _announce(dataset: Dataset, check: str, rows: Sequence[ProblemVerdict]) -> None:
    failing = excluded(dataset, [check])
    reasons = Counter(row.reason for row in rows if row.verdict == Status.FAIL and row.problem_id in failing)
    if reasons:
        counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        announce(
            f"problems: {len(failing)} excluded by {check} ({counts}); "
            f"""see `select * from problem_verdicts where check_name = '{check}' and verdict = 'fail'`"""
        )


# --- duplicate -------------------------------------------------------------------------------------


def _twins(dataset: Dataset, settings: DuplicateSettings, ticker: Ticker) -> Judged:
    """Every problem in load order, with its twin where it repeats one that is kept."""
    search = twins.TwinSearch(settings)
    for table in _tables(dataset, ["prompt"]):
        search.learn(table.column(0).to_pylist())
        ticker.advance(table.num_rows)
    places = search.settle()
    ticker.describe(f"comparing {len(places)}")
    first = 0
    for table in _tables(dataset, PROBLEM_SCHEMA.names):
        inside = places[(places >= first) & (places < first + table.num_rows)]
        search.recall(inside.tolist(), from_table(table.take(inside - first), Problem))
        first += table.num_rows
    found = dict(search.twins())
    for table in _tables(dataset, ["problem_id"]):
        for problem in table.column(0).to_pylist():
            twin = found.get(problem)
            yield problem, passed("unlike") if twin is None else _repeats(twin)


def _repeats(twin: twins.Twin) -> Judgement:
    return failed(twin.reason, 1.0 - twin.similarity, f"{twin.problem_id} ({twin.similarity:.2f})")


# --- contamination ---------------------------------------------------------------------------------


def _check_overlap(dataset: Dataset, settings: ContaminationSettings) -> None:
    """Without a benchmark there is nothing to say, and older verdicts no longer hold."""
    if settings.files:
        version = overlap.version(settings)
        _judge(dataset, "contamination", version, lambda ticker: _overlaps(dataset, settings, ticker))
    elif dataset.read_manifest(verdict_file("contamination")) is not None:
        dataset.remove_shard(verdict_file("contamination"))


def _overlaps(dataset: Dataset, settings: ContaminationSettings, ticker: Ticker) -> Judged:
    """Every problem in load order; one that is not for training is compared with the files alone, not with itself."""
    files = list(overlap.benchmark_items(settings.files))
    own = list(_reserved_items(dataset)) if overlap.HELD_OUT in settings.files else []
    published = overlap.ContaminationIndex.build(files, settings.ngram, settings.boilerplate)
    everything = overlap.ContaminationIndex.build([*files, *own], settings.ngram, settings.boilerplate)
    for batch in problems_in_order(dataset):
        for problem in batch:
            if problem.split == "train":
                yield problem.problem_id, overlap.judge_problem(problem, everything)
            elif files:
                yield problem.problem_id, overlap.judge_problem(problem, published)
            else:
                yield problem.problem_id, unscorable(problem.split)
        ticker.advance(len(batch))


def _reserved_items(dataset: Dataset) -> Iterator[BenchmarkItem]:
    for batch in problems_in_order(dataset):
        for problem in batch:
            if problem.split != "train":
                yield BenchmarkItem(f"{problem.split}:{problem.problem_id}", problem.prompt, problem.gold or "")


# --- problems in load order, a batch at a time -----------------------------------------------------


def problems_in_order(dataset: Dataset) -> Iterator[list[Problem]]:
    """All problems as they were loaded, a batch at a time."""
    return (from_table(table, Problem) for table in _tables(dataset, PROBLEM_SCHEMA.names))


def _tables(dataset: Dataset, columns: list[str]) -> Iterator[pa.Table]:
    for manifest in dataset.manifests(PROBLEMS):
        table = dataset.read_table(manifest.relative, columns)
        for start in range(0, table.num_rows, BATCH):
            yield table.slice(start, BATCH)
