"""One training stage as a process of its own: write its job, start it, follow its metrics, read how it ended.

The process resumes from its last complete checkpoint by itself, so a retry is the same call again. A stage that
is done (its manifest fits the job) costs nothing; one whose inputs changed is moved aside, never overwritten.
A process that ran out of memory is tried again with half the tokens at once: the global batch, and so the result, is
the same, but for rounding.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from model.errors import TrainingError
from model.training.process import (
    EXIT_DONE,
    EXIT_OUT_OF_MEMORY,
    EXIT_STOPPED,
    EXIT_WRONG_JOB,
    kills_from_now,
)
from tasks.attempts import attempt
from tasks.engine import Engine
from tasks.follow import Follower
from tasks.processes import GRACE_SECONDS, last_lines, run_watched
from tasks.progress import announce, ticking
from tasks.run import Run
from tasks.snapshot import SET_ASIDE
from tasks.store import STUDENTS

# Spinning OpenMP threads beside another busy process fall to 1-3 tokens/s; waiting ones do not.
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}

MEMORY_FILE = "memory.json"  # of a student: how many tokens at once are tried, once more did not fit
STARTED_FILE = "job-started.json"  # of a student: the identity of the job that it is of (model/training/manifest.py)
PLANNED_FILE = "planned.json"  # of a student: how many its trainer ran (model/training/runner.py)


@task(name="train", task_run_name="train {student}", cache_policy=NO_CACHE)
def train(
    run: Run,
    student: str,
    job: Mapping[str, Any],
    engine: Engine | None = None,
    publish: Callable[[], None] | None = None,
) -> Path:
    """Trains one student (or resumes, or finds it done) and returns its model folder.

    `engine`: of the run, lent to the trainer for its rollouts; one that died is started again by the next attempt.
    `publish` is called about once a minute while there are new steps, to show them.

    Raises TrainingError with the process's last words; not retryable when the job itself is wrong.
    """
    out = run.dataset.file(f"{STUDENTS}/{student}")
    if _claim(run, student, job):
        return out / "model"
    lent = ["--rollout-lent", engine.lend()] if engine else []
    job_file = out / "job.json"
    log = run.dataset.file(f"logs/train-{student}.log")
    begun = log.stat().st_size if log.exists() else 0
    with (
        attempt(run.dataset, student, 0, run.run_id) as record,
        ticking(f"train {student}", None, "steps") as ticker,
    ):
        follower = Follower(out / "metrics.jsonl", ticker, publish)
        command = [sys.executable, "-m", "model.training", str(job_file), "--parent", str(os.getpid()), *lent]
        killed_for_memory = kills_from_now()
        status = run_watched(
            command, log, ENVIRONMENT, follower.poll, grace_seconds=lambda: grace_seconds(job, follower.step_seconds)
        )
        if status != EXIT_DONE:
            for_memory = status == EXIT_OUT_OF_MEMORY or (status == -signal.SIGKILL and killed_for_memory())
            error = _failure(student, status, log, begun, for_memory=for_memory)
            if for_memory:
                half = _halve_tokens(run, student, job)
                error.args = (f"{error}; the next attempt runs at most {half} tokens at once",)
            raise error
        record.rows = follower.step
    return out / "model"


def grace_seconds(job: Mapping[str, Any], step_seconds: float) -> float:
    """How long a trainer may take from the request to stop until it has saved a checkpoint.

    One process leaves its step at once, several end it, as does one whose next rollouts are under way. A checkpoint has
    14 bytes for each of the 2 or 4 of a weight in `init`, and is written at 50 MB/s at least.
    """
    weights = sum(path.stat().st_size for path in Path(job["init"]).glob("*.safetensors"))
    return max(GRACE_SECONDS, 2 * step_seconds + weights * 14 / 2 / 50e6)


def _is_done(out: Path, wanted: dict[str, Any]) -> bool:
    """Whether the student in `out` is complete and was trained by this very job, on these very contents."""
    return (out / "manifest.json").is_file() and _begun(out) == wanted


def _claim(run: Run, student: str, job: Mapping[str, Any]) -> bool:
    """Makes the student's folder this job's, and writes the job, unless it is done already: is it?

    What another job began there is set aside, never overwritten, and taken up again by that very job.
    """
    out, wanted = run.dataset.file(f"{STUDENTS}/{student}"), _identity(job)
    if _is_done(out, wanted):
        return True
    if (begun := _begun(out)) is not None and begun != wanted:
        # Imports torch, so not before a training stage needs it.
        from model.training.checkpoint import differences

        aside = out.with_name(f"{SET_ASIDE}{student}-{datetime.now(UTC):%Y%m%dT%H%M%S}")
        out.rename(aside)
        announce(f"{student}: the recipe has changed ({differences(begun, wanted)}): the earlier one is {aside.name}")
    if not (out / STARTED_FILE).exists() and (earlier := _set_aside_of(out, wanted)):
        shutil.rmtree(out, ignore_errors=True)  # a job that was written, and nothing that it made
        earlier.rename(out)
        announce(f"{student}: {earlier.name} was begun by this very job, and is taken up again")
        if _is_done(out, wanted):
            (out / "manifest.json").touch()  # it is the newest again: what failed meanwhile was another job
            return True
    known = {"tokens_that_fit": fit} if (fit := _number(out / MEMORY_FILE, "tokens_that_fit")) else {}
    run.dataset.write_text(f"{STUDENTS}/{student}/job.json", json.dumps({**job, **known}, indent=1))
    return False


def _set_aside_of(out: Path, wanted: dict[str, Any]) -> Path | None:
    """The student that this very job began and another replaced: a finished one, if there is any, else the newest."""
    found = [old for old in out.parent.glob(f"{SET_ASIDE}{out.name}-*") if _begun(old) == wanted]
    return max(found, key=lambda old: (_is_done(old, wanted), old.name), default=None)


def _number(path: Path, name: str) -> int:
    """A number that a file of an earlier attempt holds; 0 where there is none."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))[name])
    except (OSError, ValueError, TypeError, KeyError):
        return 0


def _halve_tokens(run: Run, student: str, job: Mapping[str, Any]) -> int:
    """Half of what did not fit, kept for the next attempt; it is no part of the job's identity."""
    # Imports torch, so not before a training stage needs it.
    from model.training.job import Job

    out = run.dataset.file(f"{STUDENTS}/{student}")
    asked = job.get("tokens_per_micro_batch", Job.tokens_per_micro_batch)
    # The trainer may have run fewer by itself, having found that no more would fit.
    earlier = _number(out / MEMORY_FILE, "tokens_that_fit"), _number(out / PLANNED_FILE, "tokens_at_once")
    tried = [asked, *filter(None, earlier)]
    half: int = max(1, min(tried) // 2)
    run.dataset.write_text(f"{STUDENTS}/{student}/{MEMORY_FILE}", json.dumps({"tokens_that_fit": half}))
    return half


def _identity(job: Mapping[str, Any]) -> dict[str, Any]:
    """What the trainer will bind its folder to: settings and contents, no paths, so a dataset may be moved."""
    # Imports torch, so not before a training stage needs it.
    from model.training.job import JOBS, job_from
    from model.training.manifest import identity

    values = dict(job)
    wanted: dict[str, Any] = json.loads(json.dumps(identity(job_from(JOBS[values.pop("stage")], values))))
    return wanted


def _begun(out: Path) -> dict[str, Any] | None:
    """The identity of the job that this folder is bound to, if any."""
    try:
        begun: dict[str, Any] = json.loads((out / STARTED_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return begun


def _failure(student: str, status: int, log: Path, begun: int, *, for_memory: bool) -> TrainingError:
    """What this attempt wrote last; the log holds earlier attempts too, up to byte `begun`."""
    lines = last_lines(log, start=begun)
    why = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no output")
    if status < 0:
        why = f"killed by signal {-status}" + (" (out of memory?)" if for_memory else "")
    if status == EXIT_STOPPED:
        why = "it was asked to stop, and can go on"
    error = TrainingError(f"training {student} ended with status {status}: {why} (log: {log})")
    error.retryable = status != EXIT_WRONG_JOB
    return error
