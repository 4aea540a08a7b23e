"""`python -m model.training JOB.json [--parent PID]`: one training stage as a process of its own.

Exit status: 0 done (also if it was done before), 1 failed, 2 failed and would again (the job is wrong, the loss
diverged, the disk is full or read-only), 3 out of memory (fewer tokens at once may fit), 75 stopped on request and
resumable.
With --parent the process ends when that process does. Start it again to go on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path

from model.errors import StillhouseError
from model.training.process import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_OUT_OF_MEMORY,
    EXIT_STOPPED,
    EXIT_WRONG_JOB,
    StopRequest,
    die_with,
)


def main() -> int:
    """Reads the command line, trains, and tells how it ended by the exit status."""
    parser = argparse.ArgumentParser(prog="python -m model.training", description=__doc__)
    parser.add_argument("job", type=Path, help="JSON file with every setting resolved")
    parser.add_argument("--parent", type=int, help="process id to die with")
    arguments = parser.parse_args()
    if arguments.parent is not None:
        die_with(arguments.parent)
    return run_file(arguments.job)


def run_file(path: Path) -> int:
    """Carries out the job of a JSON file in this process; returns the exit status."""
    stop = StopRequest()
    from model.training.job import read_job
    from model.training.loop import Stopped
    from model.training.runner import OutOfMemoryError, run_job

    try:
        run_job(read_job(path), stop)
    except Stopped as stopped:
        say(str(stopped))
        return EXIT_STOPPED
    except OutOfMemoryError as error:
        say(f"{type(error).__name__}: {error}")
        return EXIT_OUT_OF_MEMORY
    except StillhouseError as error:
        say(f"{type(error).__name__}: {error}")
        return EXIT_FAILED if error.retryable else EXIT_WRONG_JOB
    return EXIT_DONE


def say(line: str) -> None:
    """One line on stderr, if it can be: on a full disk the log is full too, and the exit status must still be told."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))


if __name__ == "__main__":
    sys.exit(main())
