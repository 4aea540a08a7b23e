"""`python -m model.training JOB.json [--parent PID]`: one training stage as a process of its own.

Exit status: 0 done (also if it was done before), 1 failed, 2 failed and would again (the job is wrong, the loss
diverged, the disk is full or read-only), 3 out of memory (fewer tokens at once may fit), 75 stopped on request and
resumable.
A job of several `processes` is carried out by as many others, which this one starts and watches; one that `torchrun`
has started is one of them.
With --parent the process ends when that process does. Start it again to go on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import StillhouseError
from model.training.process import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_OUT_OF_MEMORY,
    EXIT_STOPPED,
    EXIT_WRONG_JOB,
    StopRequest,
    die_with,
    say,
)

if TYPE_CHECKING:
    from model.training.job import Job


def main() -> int:
    """Reads the command line, trains, and tells how it ended by the exit status."""
    parser = argparse.ArgumentParser(prog="python -m model.training", description=__doc__)
    parser.add_argument("job", type=Path, help="JSON file with every setting resolved")
    parser.add_argument("--parent", type=int, help="process id to die with")
    parser.add_argument(
        "--rollout-lent", default="", metavar="URL", help="engine of the starter, on a CPU, for rollouts"
    )
    arguments = parser.parse_args()
    if arguments.parent is not None:
        die_with(arguments.parent)
    status = run_file(arguments.job, arguments.rollout_lent)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is over: a late request must not change how it ended
    return status


def run_file(path: Path, rollout_lent: str = "") -> int:
    """Carries out the job of a JSON file, in this process or in several; returns the exit status.

    `rollout_lent`: as in `RolloutJob`; it is not in the file, since it is gone when the starter is.
    """
    stop = StopRequest()
    from model.training.job import RolloutJob, read_job
    from model.training.launch import launch, launched_by_torch

    try:
        job = read_job(path)
        if rollout_lent and isinstance(job, RolloutJob):
            job = replace(job, rollout_lent=rollout_lent)
        if job.processes > 1 and not launched_by_torch():
            command = [sys.executable, "-m", "model.training", str(path), "--parent", str(os.getpid())]
            command += ["--rollout-lent", rollout_lent] if rollout_lent else []
            return launch(command, job.processes, stop)
    except StillhouseError as error:
        say(f"{type(error).__name__}: {error}")
        return EXIT_FAILED if error.retryable else EXIT_WRONG_JOB
    return run_here(job, stop)


def run_here(job: Job, stop: StopRequest) -> int:
    """Carries out a job in this process, alone or as one of several; returns the exit status."""
    from model.training.launch import say_last
    from model.training.out_of_memory import OutOfMemoryError
    from model.training.process import Stopped
    from model.training.runner import run_job

    try:
        run_job(job, stop)
    except Stopped as stopped:
        say_last(str(stopped))
        return EXIT_STOPPED
    except OutOfMemoryError as error:
        say_last(f"{type(error).__name__}: {error}")
        return EXIT_OUT_OF_MEMORY
    except StillhouseError as error:
        say_last(f"{type(error).__name__}: {error}")
        return EXIT_FAILED if error.retryable else EXIT_WRONG_JOB
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
