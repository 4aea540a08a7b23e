"""A child process that a task can watch: its own session, its output in a log file, ended with its parent.

GPU work runs this way, so that a CUDA fault or an out-of-memory kill cannot take the orchestrator down. The
child itself arranges to die with its parent (`model/training/__main__.py`, `model/sampling/reaper.py`); here it
is started, polled, and on any exception in the caller (Ctrl-C included) asked to stop and then made to.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

POLL_SECONDS = 0.5
GRACE_SECONDS = 120.0  # at least, for a child that is asked to stop


def run_watched(
    command: list[str],
    log: Path,
    env: Mapping[str, str],
    on_poll: Callable[[], None],
    cwd: Path | None = None,
    grace_seconds: Callable[[], float] = lambda: GRACE_SECONDS,
) -> int:
    """Runs `command` to its end, calling `on_poll` twice a second; returns its exit status.

    `grace_seconds`: how long it may take to stop, asked when it has to.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **env}, cwd=cwd, start_new_session=True
        )
    try:
        while (status := child.poll()) is None:
            on_poll()
            time.sleep(POLL_SECONDS)
    except BaseException:  # whatever ends the caller must end the child, then go on its way
        stop(child, grace_seconds())
        raise
    on_poll()
    return status


def stop(child: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """SIGTERM, a grace period, then SIGKILL to the whole process group."""
    if child.poll() is not None:
        return
    os.killpg(child.pid, signal.SIGTERM)
    try:
        child.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def last_lines(log: Path, count: int = 15, *, start: int = 0, limit_bytes: int = 64_000) -> list[str]:
    """The last non-empty lines of a log after byte `start`, oldest first; an unreadable log has none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(start, log.stat().st_size - limit_bytes))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()][-count:]
