"""Nothing outlives its owner: real processes, real signals, children that hide in sessions of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from model.sampling import reaper

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the reaper is Linux only")

# Like vLLM, only worse: the command forks a worker that forks again, each in its own session, deaf to
# SIGTERM, while the process in between exits. Every pid is written to a file.
TREE = """
import os, signal, sys, time
def note():
    with open(sys.argv[1], "a") as pids:
        print(os.getpid(), file=pids, flush=True)
note()
if os.fork() == 0:
    os.setsid()
    note()
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note()
        time.sleep(600)
    os._exit(0)
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note()
    time.sleep(600)
time.sleep(float(sys.argv[2]))
"""
PROCESSES = 4  # one of them (between the two forks) exits at once

# Stands for `stillhouse run`: starts the reaper as VLLMServer does, then waits to be killed.
OWNER = """
import os, subprocess, sys, time
command = [sys.executable, "-I", sys.argv[1], str(os.getpid()), "--", *sys.argv[2:]]
subprocess.Popen(command, start_new_session=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _short_grace(tmp_path: Path) -> None:
    """The reaper is a plain file, so a copy with a shorter grace period is still the reaper."""
    source = Path(reaper.__file__).read_text().replace("GRACE_SECONDS = 5.0", "GRACE_SECONDS = 0.5")
    assert "GRACE_SECONDS = 0.5" in source
    (tmp_path / "reaper.py").write_text(source)


def tree(tmp_path: Path, seconds: float = 600) -> list[str]:
    script = tmp_path / "tree.py"
    script.write_text(textwrap.dedent(TREE))
    return [sys.executable, str(script), str(tmp_path / "pids"), str(seconds)]


def reaped(tmp_path: Path, command: list[str], parent: int | None = None) -> list[str]:
    return [sys.executable, "-I", str(tmp_path / "reaper.py"), str(parent or os.getpid()), "--", *command]


def pids(tmp_path: Path) -> list[int]:
    """The tree's pids, once all of them are written."""
    wait_until(
        lambda: len((tmp_path / "pids").read_text().split()) == PROCESSES if (tmp_path / "pids").exists() else False
    )
    return [int(pid) for pid in (tmp_path / "pids").read_text().split()]


def running(pid: int) -> bool:
    """Whether a process is there and more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_kill_9_of_the_owner_ends_the_whole_tree(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path / "reaper.py"), *tree(tmp_path)]
    owner = subprocess.Popen(command, start_new_session=True)
    members = pids(tmp_path)
    assert sum(map(running, members)) == PROCESSES - 1
    os.killpg(owner.pid, signal.SIGKILL)
    # The owner stays a zombie meanwhile: nobody has waited for it.
    wait_until(lambda: not any(map(running, members)))
    owner.wait()


def test_sigterm_ends_the_whole_tree(tmp_path: Path) -> None:
    process = subprocess.Popen(reaped(tmp_path, tree(tmp_path)))
    members = pids(tmp_path)
    process.terminate()
    assert process.wait(10) == 128 + signal.SIGTERM
    assert not any(map(running, members))


def test_what_a_command_leaves_behind_is_ended_and_its_exit_code_passed_on(tmp_path: Path) -> None:
    process = subprocess.Popen(reaped(tmp_path, tree(tmp_path, seconds=0.5)))
    members = pids(tmp_path)
    assert process.wait(10) == 0
    assert not any(map(running, members))


def test_the_exit_code_is_the_commands(tmp_path: Path) -> None:
    assert subprocess.call(reaped(tmp_path, ["sh", "-c", "exit 7"])) == 7
    assert subprocess.call(reaped(tmp_path, ["sh", "-c", "kill -KILL $$"])) == 128 + signal.SIGKILL


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    done = subprocess.run(reaped(tmp_path, ["/no/such/python"]), capture_output=True, text=True, check=False)
    assert done.returncode == reaper.COMMAND_NOT_RUN
    assert done.stderr == "reaper: cannot run /no/such/python: No such file or directory\n"


def test_an_owner_that_is_already_gone_gets_no_tree(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    start = time.monotonic()
    assert subprocess.call(reaped(tmp_path, ["sleep", "600"], parent=gone.pid)) == 128 + signal.SIGTERM
    assert time.monotonic() - start < 5


def test_signals_are_not_blocked_in_the_command(tmp_path: Path) -> None:
    """The reaper blocks the signals it waits for; a command that inherits that mask could not be stopped."""
    show = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    done = subprocess.run(reaped(tmp_path, [sys.executable, "-c", show]), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_descendants_are_found_through_proc() -> None:
    child = subprocess.Popen(["sleep", "600"])
    assert child.pid in reaper.descendants(os.getpid())
    child.kill()
    child.wait()
    assert child.pid not in reaper.descendants(os.getpid())
