"""Commands without their imports, which are most of a short one's time: a process that has imported what they need
forks for each command. What a command does, its output and its exit are its own, as ever.

`python -m tests.preloaded PARENT MODULE...` imports the modules, reads commands as lines of JSON and answers each with
its process's id, at once, and in the end with its exit status. It ends with its parent, and commands end with it.
"""

from __future__ import annotations

import gc
import importlib
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
from model.training.process import die_with

ROOT = Path(__file__).parents[1]
# With what the verbs import only once they need it.
COMMANDS = (
    "flows.cli",
    "flows.factory",
    "flows.rerun",
    "flows.screens",
    "fastapi.encoders",
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect.utilities.visualization",
    "reasoning_gym",
    "transformers.convert_slow_tokenizer",
    "transformers.models.auto.tokenization_auto",
    "transformers.tokenization_utils_tokenizers",
    "typer.rich_utils",
)
TRAINERS = (
    "flows.cli",
    "model.training.__main__",
    "model.training.runner",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_tokenizers",
)


class Preloaded:
    """Such a process. One of its commands is at work at a time."""

    def __init__(self, modules: Sequence[str], home: Path) -> None:
        """`home`: Prefect's, for the imports and for commands that say nothing else."""
        self.home = home
        command = [sys.executable, "-m", "tests.preloaded", str(os.getpid()), *modules]
        environment = os.environ | {"PREFECT_HOME": str(home)}
        self.process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, module: str, words: Sequence[object], *, confined: bool = False, **environment: str) -> Started:
        """As `subprocess.Popen` of `python -m` with these words: in this process's working directory, with its
        environment and more, in a session of its own. `confined`: where no tier of the sandbox can hold."""
        return Started(self, [module, *map(str, words)], confined, environment)

    def run(
        self, module: str, words: Sequence[object], timeout: float = 240, *, confined: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` of the same."""
        started = self.start(module, words, confined=confined, **environment)
        status = started.wait(timeout)
        return subprocess.CompletedProcess(started.words, status, started.output, started.errors)

    def end(self) -> None:
        """Ends it, with the command that it may be carrying out."""
        for pid in (*reaper.descendants(self.process.pid), self.process.pid):
            reaper.send(pid, signal.SIGKILL)
        self.process.communicate()


class Started:
    """A command at work, or ended."""

    def __init__(self, preloaded: Preloaded, words: list[str], confined: bool, environment: Mapping[str, str]) -> None:
        self.preloaded, self.words = preloaded, words
        self.returncode: int | None = None
        self._files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        files = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in self._files]
        environment = os.environ | {"PREFECT_HOME": str(preloaded.home)} | environment
        asked = {"words": words, "cwd": str(Path.cwd()), "files": files, "confined": confined}
        assert preloaded.process.stdin is not None
        print(json.dumps(asked | {"environment": environment}), file=preloaded.process.stdin, flush=True)
        self.pid = self._answer(120)  # the imports come first

    @property
    def output(self) -> str:
        return _text(self._files[0])

    @property
    def errors(self) -> str:
        return _text(self._files[1])

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""
        if self.returncode is None and self._answers_within(0):
            self.returncode = self._answer(0)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The same, which it waits for; ends the command where that takes too long."""
        if self.returncode is None:
            self.returncode = self._answer(timeout)
        return self.returncode

    def _answer(self, timeout: float) -> int:
        if not self._answers_within(timeout):
            self.preloaded.end()
            raise subprocess.TimeoutExpired(self.words, timeout, self.output, self.errors)
        assert self.preloaded.process.stdout is not None
        return int(self.preloaded.process.stdout.readline())

    def _answers_within(self, timeout: float) -> bool:
        return bool(select.select([self.preloaded.process.stdout], [], [], timeout)[0])


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def main() -> None:
    """Forks for every command until there are no more."""
    die_with(int(sys.argv[1]))
    _as_commands_have_it(os.environ)
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or every command would look through what was imported, and copy it
    for line in iter(sys.stdin.readline, ""):
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            die_with(parent)
            _carry_out(**json.loads(line))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _as_commands_have_it(environment: Any) -> None:
    """A command line sets Prefect's settings before it imports Prefect."""
    from flows.embedded import SETTINGS

    for name, value in SETTINGS.items():
        environment.setdefault(name, value)


def _carry_out(words: list[str], cwd: str, files: list[str], confined: bool, environment: dict[str, str]) -> NoReturn:
    os.setsid()
    for number, name in enumerate(("/dev/null", *files)):
        opened = os.open(name, os.O_RDWR)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    _as_commands_have_it(os.environ)
    if "prefect" in sys.modules:
        sys.modules["prefect.context"].refresh_global_settings_context()
    if confined:
        from tests.tasks.without_sandbox import confine

        confine()
    name, *rest = words
    module: Any = importlib.import_module(f"{name}.__main__" if name == "model.training" else name)
    sys.argv = [module.__file__, *rest]
    sys.orig_argv = [sys.executable, "-m", *words]
    sys.exit(module.main())


if __name__ == "__main__":
    main()
