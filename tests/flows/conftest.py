"""Set-ups that tests of flows share: one Prefect server, and a process that carries out commands.

The server is a real one on loopback with its database in a temporary folder; flows in this process and `stillhouse` in
child processes use the same. Nothing here reads the user's Prefect profile or data.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from filelock import FileLock

from model.sampling import reaper
from tests.preloaded import COMMANDS, Preloaded

PREFECT_TABLES = "prefect-tables.db"


@pytest.fixture(scope="session")
def prefect_api(shared_folder: Path) -> Iterator[str]:
    """The API URL of a Prefect server that lives as long as one of the run's processes needs it.

    The first to need it starts it, and ends it once no other holds the lock on `users`.
    """
    home, starting = shared_folder / "prefect", FileLock(shared_folder / "prefect.lock")
    with ExitStack() as ending:
        with starting:
            if not home.exists():
                home.mkdir()
                ending.callback(_end_when_unused, _start_prefect(home, shared_folder), home, starting)
            users = ending.enter_context((home / "users").open("a"))
            fcntl.flock(users, fcntl.LOCK_SH)
            url = (home / "url").read_text()
        yield url


@contextmanager
def own_prefect_server(home: Path, shared_folder: Path) -> Iterator[str]:
    """The API URL of a Prefect server that nobody else uses."""
    home.mkdir()
    server = _start_prefect(home, shared_folder)
    try:
        yield (home / "url").read_text()
    finally:
        _stop(server)


def fill_prefect_home(home: Path, shared_folder: Path) -> None:
    """Gives a server's home the tables that the run's first server has made: that is half of what a start takes."""
    if (shared_folder / PREFECT_TABLES).exists():
        shutil.copy(shared_folder / PREFECT_TABLES, home / "prefect.db")


def _keep_prefect_tables(home: Path, shared_folder: Path) -> None:
    part = shared_folder / f"{PREFECT_TABLES}.part"
    with closing(sqlite3.connect(home / "prefect.db")) as made, closing(sqlite3.connect(part)) as kept:
        made.backup(kept)
    part.rename(shared_folder / PREFECT_TABLES)


def _start_prefect(home: Path, shared_folder: Path) -> subprocess.Popen[bytes]:
    fill_prefect_home(home, shared_folder)
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    env = os.environ | {"PREFECT_HOME": str(home), "PREFECT_API_URL": url}
    # Ctrl-C kills pytest-xdist's workers without their fixtures' ends: the reaper ends the server all the same.
    command = [sys.executable, "-I", reaper.__file__, str(os.getpid()), "--"]
    command += [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(f"{url}/health", server, home / "server.log")
        with FileLock(shared_folder / f"{PREFECT_TABLES}.lock"):
            if not (shared_folder / PREFECT_TABLES).exists():
                _keep_prefect_tables(home, shared_folder)
    except BaseException:
        _stop(server)
        raise
    (home / "url").write_text(url)
    return server


def _end_when_unused(server: subprocess.Popen[bytes], home: Path, starting: FileLock) -> None:
    with (home / "users").open("a") as users:
        fcntl.flock(users, fcntl.LOCK_EX)
        with starting:
            _stop(server)
            shutil.rmtree(home, ignore_errors=True)


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(15)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


@pytest.fixture(scope="package")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Preloaded]]:
    """What carries out `stillhouse` commands, started with the first of them."""
    with ExitStack() as ending:
        found: list[Preloaded] = []

        def alive() -> Preloaded:
            if not found or found[-1].process.poll() is not None:
                found.append(Preloaded(COMMANDS, tmp_path_factory.mktemp("prefect-home")))
                ending.callback(found[-1].end)
            return found[-1]

        yield alive


@pytest.fixture
def stillhouse(prefect_api: str, preloaded: Callable[[], Preloaded]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the real command in a child process: `stillhouse("run", recipe)`."""

    def run(*words: object, timeout: float = 240, **more: Any) -> subprocess.CompletedProcess[str]:
        return preloaded().run("flows.cli", words, timeout, **{"PREFECT_API_URL": prefect_api} | more)

    return run


@pytest.fixture
def cli(preloaded: Callable[[], Preloaded]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same without a Prefect server: for what must be told before any is started."""

    def run(*words: object, timeout: float = 60, **more: Any) -> subprocess.CompletedProcess[str]:
        return preloaded().run("flows.cli", words, timeout, **more)

    return run


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.fail(f"the Prefect server ended: {log.read_text()[-2000:]}")
        try:
            if httpx.get(url, timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"the Prefect server did not answer within {seconds} s: {log.read_text()[-2000:]}")
