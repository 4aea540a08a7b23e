"""Commands without their imports, which are most of a short one's time: a process that has imported `flows.cli` and
what its verbs import forks for each command. What a command does, its output and its exit are its own, as ever.

`python -m tests.preloaded` reads commands as lines of JSON and answers each with its exit status.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from model.sampling import reaper

ROOT = Path(__file__).parents[1]


class Preloaded:
    """Such a process, with one environment for all of its commands."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "tests.preloaded"]
        self.process = subprocess.Popen(
            command, env=dict(environment), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, words: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` of `python -m flows.cli` with these words, in this process's working directory."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            files = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, errors)]
            print(json.dumps({"words": list(words), "cwd": str(Path.cwd()), "files": files}), file=self.process.stdin)
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], timeout)[0]:
                self.end()
                raise subprocess.TimeoutExpired(list(words), timeout, _text(out), _text(errors))
            status = int(self.process.stdout.readline())
            return subprocess.CompletedProcess(list(words), status, _text(out), _text(errors))

    def end(self) -> None:
        """Ends it, with the command that it may be carrying out."""
        for pid in (*reaper.descendants(self.process.pid), self.process.pid):
            reaper.send(pid, signal.SIGKILL)
        self.process.communicate()


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def main() -> None:
    """Forks for every command until there are no more."""
    import prefect  # noqa: F401

    import flows.cli
    import flows.factory
    import flows.screens  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _carry_out(**json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _carry_out(words: list[str], cwd: str, files: list[str]) -> NoReturn:
    cli: Any = sys.modules["flows.cli"]
    for number, name in enumerate(("/dev/null", *files)):
        opened = os.open(name, os.O_RDWR)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(cwd)
    sys.argv = [cli.__file__, *words]
    sys.orig_argv = [sys.executable, "-m", "flows.cli", *words]
    cli.main()
    sys.exit()


if __name__ == "__main__":
    main()
