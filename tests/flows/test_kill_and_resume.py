"""A run that is killed at any instant, again and again, ends as if nothing had happened.

The whole process group is killed (SIGKILL: nothing can be tidied up) against a fake endpoint whose answers depend
on the prompt and the seed alone, each time a random moment after the run was seen at work; then the same command is
given again.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model.sampling import reaper
from tasks.catalog import connect
from tests.fake_endpoint import FakeEndpoint
from tests.flows.conftest import fill_prefect_home, own_prefect_server
from tests.preloaded import Preloaded, Started

KILLS = 5
LEAST_HITS = 3  # attempts that a kill cut short; the later kills find less and less left to do


@pytest.fixture(scope="module")
def prefect_api(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path) -> Iterator[str]:
    """A server of its own: requests that a kill cuts off may keep a server's SQLite locked for a minute (Prefect 3.7;
    docs/prefect.md), and other tests would wait for it."""
    with own_prefect_server(tmp_path_factory.mktemp("server") / "prefect", shared_folder) as url:
        yield url


def test_five_kills_lose_nothing_and_double_nothing(
    stillhouse: Callable[..., subprocess.CompletedProcess[str]],
    preloaded: Callable[[], Preloaded],
    write_recipe: Callable[..., Path],
    endpoint: FakeEndpoint,
    prefect_api: str,
    tmp_path: Path,
) -> None:
    endpoint.faults.seconds = 0.2  # a run then takes long enough to be hit anywhere
    undisturbed, disturbed = (
        write_recipe(endpoint.url, dataset="calm"),
        write_recipe(endpoint.url, dataset="rough"),
    )
    done = stillhouse("run", undisturbed)
    assert done.returncode == 0, done.stderr

    rng = random.Random(4)
    for _ in range(KILLS):
        run = preloaded().start("flows.cli", ("run", disturbed), PREFECT_API_URL=prefect_api)
        before = len(endpoint.requests)
        while len(endpoint.requests) == before and run.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.6))
        os.killpg(run.pid, signal.SIGKILL)
        run.wait(60)
    done = stillhouse("run", disturbed)
    assert done.returncode == 0, done.stderr

    crashed = "select count(*) from attempts where state = 'crashed'"
    assert connect(tmp_path / "rough").execute(crashed).fetchall() >= [(LEAST_HITS,)]
    calm, rough = _contents(tmp_path / "calm"), _contents(tmp_path / "rough")
    assert calm["accepted"]
    assert rough == calm


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_soon_and_says_how_to_go_on(
    number: signal.Signals,
    stillhouse: Callable[..., subprocess.CompletedProcess[str]],
    preloaded: Callable[[], Preloaded],
    write_recipe: Callable[..., Path],
    endpoint: FakeEndpoint,
    prefect_api: str,
    tmp_path: Path,
) -> None:
    endpoint.faults.seconds = 300.0  # as hour-long answers: nothing ends by itself
    recipe = write_recipe(endpoint.url)
    run = _at_work(preloaded(), recipe, endpoint, PREFECT_API_URL=prefect_api)
    run.send_signal(number)
    assert run.wait(60) == 130, run.errors
    assert "go on with: " in run.errors
    assert f"stillhouse run {recipe}" in run.errors.replace("\n", "")
    states = connect(tmp_path / "dataset").execute("select distinct state from attempts").fetchall()
    assert states == [("interrupted",)]

    endpoint.faults.seconds = 0.0
    assert stillhouse("run", recipe).returncode == 0


def test_ctrl_c_in_a_terminal_spares_the_temporary_server(
    preloaded: Callable[[], Preloaded],
    write_recipe: Callable[..., Path],
    endpoint: FakeEndpoint,
    shared_folder: Path,
    tmp_path: Path,
) -> None:
    endpoint.faults.seconds = 300.0
    (tmp_path / "home").mkdir()
    fill_prefect_home(tmp_path / "home", shared_folder)
    run = _at_work(preloaded(), write_recipe(endpoint.url), endpoint, PREFECT_HOME=str(tmp_path / "home"))
    server = [pid for pid in reaper.descendants(run.pid) if "uvicorn" in _command_line(pid)]
    os.killpg(run.pid, signal.SIGINT)  # as the terminal does
    assert run.wait(60) == 130, run.errors
    assert "Stopping" in run.errors
    assert "go on with: " in run.errors
    assert "Traceback" not in run.errors
    assert server
    assert not [pid for pid in server if "uvicorn" in _command_line(pid)]


def _at_work(preloaded: Preloaded, recipe: Path, endpoint: FakeEndpoint, **environment: str) -> Started:
    """A run in a session of its own that has asked the endpoint for something."""
    run = preloaded.start("flows.cli", ("run", recipe), **environment)
    while not endpoint.in_flight:
        assert run.poll() is None, run.errors
        time.sleep(0.1)
    return run


def _command_line(pid: int) -> str:
    """The words of a process, or nothing where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").replace("\0", " ")
    except OSError:
        return ""


def _contents(dataset: Path) -> dict[str, list[object]]:
    con = connect(dataset)
    queries = {
        "samples": "select sample_id, text from samples order by all",
        "verdicts": 'select sample_id, "check", verdict, reason from verdicts order by all',
        "accepted": "select sample_id from accepted order by all",
        "problems": "select problem_id, split from problems order by all",
        "evaluations": "select model, suite, metric, value, low, high from evaluations order by all",
    }
    contents = {name: con.execute(query).fetchall() for name, query in queries.items()}
    ids = [row[0] for row in contents["samples"]]
    assert len(ids) == len(set(ids)), "a sample is there twice"
    return contents
