"""Set-ups that tests share: one converted model, a fake endpoint, and small recipes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.fake_endpoint import FakeEndpoint
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
