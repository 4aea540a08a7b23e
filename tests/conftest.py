"""Set-ups that tests share: one Prefect server, one converted model, a fake endpoint, and small recipes.

The Prefect server is a real one on loopback with its database in a temporary folder; flows in this process and
`stillhouse` in child processes use the same. Nothing here reads the user's Prefect profile or data.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from filelock import FileLock

from model.sampling import reaper
from tests.fake_endpoint import FakeEndpoint
from tests.preloaded import COMMANDS, TRAINERS, Preloaded
from tests.small_reward_model import save_reward_model

os.environ.update(
    {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
    }
)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores already: a thread pool in each would only wait for the others. torch reads this once,
    # when it is imported; a vLLM server has its own setting.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's script that starts something in the background has it ignore Ctrl-C, which tests are about to try.
    signal.signal(signal.SIGINT, signal.default_int_handler)

PREFECT_TABLES = "prefect-tables.db"

RECIPE = """
name = "tiny"
dataset = "{dataset}"
seed = 7
[teacher]
type = "openai"
urls = ["{url}"]
model = "fake"
[student]
model = "builtin:smollm2-135m-instruct"
[[problems]]
type = "builtin"
name = "sums-2x1"
limit = {problems}
held_out = 0.3
[template]
system = "You answer arithmetic questions."
[generate]
replicas = 2
temperature = 0.7
top_p = 1.0
max_tokens = 64
shard_size = 20
shards_in_flight = 2
retry_delay_seconds = 0.05
[verify]
checks = ["finish", "format", "math"]
workers = 1
[sft]
enabled = false
[evaluate]
models = ["teacher"]
replicas = 2
k = [1]
"""


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


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Preloaded]]:
    """What carries out `stillhouse` commands, started with the first of them."""
    with ExitStack() as ending:
        yield _one_of(COMMANDS, tmp_path_factory, ending)


@pytest.fixture(scope="session")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Preloaded]]:
    """What carries out training jobs, as processes of their own."""
    with ExitStack() as ending:
        yield _one_of(TRAINERS, tmp_path_factory, ending)


def _one_of(
    modules: Sequence[str], tmp_path_factory: pytest.TempPathFactory, ending: ExitStack
) -> Callable[[], Preloaded]:
    found: list[Preloaded] = []

    def alive() -> Preloaded:
        if not found or found[-1].process.poll() is not None:
            found.append(Preloaded(modules, tmp_path_factory.mktemp("prefect-home")))
            ending.callback(found[-1].end)
        return found[-1]

    return alive


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


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder of this test run: the same for all of pytest-xdist's workers."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(autouse=True)
def _one_at_a_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests marked `vllm` or `machine` do not run beside each other: a vLLM server takes every core, some 3 GiB and
    shared memory, and who watches the machine for an attack's traces must not see another test's. (A group of
    pytest-xdist's would do for vLLM; 3.8 knows no groups with pytest 9.2.)"""
    marked = any(request.node.get_closest_marker(name) for name in ("vllm", "machine"))
    if not marked or "whole_machine" in request.fixturenames:
        yield
        return
    with FileLock(request.getfixturevalue("shared_folder") / "machine.lock"):
        yield


@pytest.fixture(scope="module")
def whole_machine(shared_folder: Path) -> Iterator[None]:
    """The same for a file whose tests share what takes the machine."""
    with FileLock(shared_folder / "machine.lock"):
        yield


@pytest.fixture(scope="session")
def reward_model(shared_folder: Path) -> Path:
    """Folder of a small real reward model (`tests/small_reward_model.py`), made once for all workers."""
    folder = shared_folder / "reward-model"
    with FileLock(shared_folder / "reward-model.lock"):
        if not folder.exists():
            save_reward_model(shared_folder / "reward-model.part").rename(folder)
    return folder


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    """An OpenAI-compatible endpoint on loopback that solves small sums, right three times in four."""
    with FakeEndpoint() as server:
        yield server


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small recipe against an endpoint and returns its path: `write_recipe(url, problems=60)`."""

    def write(url: str, problems: int = 60, dataset: str = "dataset", extra: str = "") -> Path:
        file = tmp_path / f"{dataset}.toml"
        file.write_text(RECIPE.format(dataset=tmp_path / dataset, url=url, problems=problems) + extra)
        return file

    return write


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
