"""The managed server: its command line, life and death, with a stand-in process. Real vLLM:
tests/tasks/test_real_vllm.py."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from model.errors import ModelFolderError, SamplerError
from model.sampling import reaper, vllm_server
from model.sampling.client import CompletionsClient
from model.sampling.request import Request, SamplingParams
from model.sampling.vllm_server import (
    EngineOptions,
    VLLMAt,
    VLLMServer,
    core_ranges,
    describe_death,
    server_environment,
)
from tests.fake_endpoint import FakeEndpoint
from tests.stand_in import looks_like_a_model, write_stand_in

REPOSITORY = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a managed server is Linux only")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return looks_like_a_model(tmp_path / "model")


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    return write_stand_in(tmp_path)


@pytest.fixture
def started() -> Callable[[], list[int]]:
    """The processes below this one that were not there when the test began, nearest first."""
    before = set(reaper.descendants(os.getpid()))
    return lambda: [pid for pid in reaper.descendants(os.getpid()) if pid not in before]


@pytest.fixture(autouse=True)
def _short_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "POLL_SECONDS", 0.05)


def make_server(model: Path | str, tmp_path: Path, python: str, **more: object) -> VLLMServer:
    options = EngineOptions(python=python)
    return VLLMServer(model, "teacher", log_path=tmp_path / "logs" / "vllm.log", options=options, **more)  # type: ignore[arg-type]


def test_a_server_serves_and_leaves_nothing(
    folder: Path, tmp_path: Path, stand_in: str, started: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    phases: list[str] = []
    monkeypatch.setenv("STAND_IN_WAITS_FOR", str(tmp_path / "seen"))

    def on_progress(phase: str, _seconds: float) -> None:
        phases.append(phase)
        if phase == "loading weights":
            (tmp_path / "seen").touch()

    server = make_server(folder, tmp_path, stand_in, on_progress=on_progress)
    with server:
        members = started()
        assert len(members) >= 3  # reaper, server, engine
        assert server.check()
        params = SamplingParams(temperature=0.7)
        with CompletionsClient(
            [server.url], "teacher", params, concurrency=4, timeout_seconds=10, alive=server.check
        ) as client:
            (done,) = client.complete([Request("a", "Calculate 1 + 1.", 0, 64)])
        assert "<answer>" in done.text
    assert not server.alive()
    assert not any(Path(f"/proc/{pid}").exists() for pid in members)
    assert list(dict.fromkeys(phases))[-2:] == ["loading weights", "ready"]


def test_new_weights_and_then_a_fresh_prefix_cache(folder: Path, tmp_path: Path, stand_in: str) -> None:
    with make_server(folder, tmp_path, stand_in) as server:
        server.load_weights(folder)
        wait_until(lambda: "reset_prefix_cache" in server.log_path.read_text())
        log = server.log_path.read_text()
        with pytest.raises(ModelFolderError, match="no model"):
            server.load_weights(tmp_path)
    assert f"'method': 'reload_weights', 'kwargs': {{'weights_path': '{folder}'}}" in log
    repacked = log.index("repack_tied_heads")  # a CPU engine's; see `worker_extension`
    assert log.index("reload_weights") < repacked < log.index("reset_prefix_cache")


def test_a_gpu_engine_sleeps_and_wakes_and_a_cpu_engine_does_neither(
    folder: Path, tmp_path: Path, stand_in: str
) -> None:
    for gpus, calls in ((0, []), (1, ["('/sleep', {})", "('/wake_up', {})"])):
        server = make_server(folder, tmp_path, stand_in)
        server.options = EngineOptions(python=stand_in, gpus=gpus)
        with server:
            server.sleep()
            server.wake_up()
            wait_until(lambda calls=calls, server=server: server.log_path.read_text().count("('/") == len(calls))
            assert [line for line in server.log_path.read_text().splitlines() if line.startswith("('/")] == calls


def test_an_engine_of_ones_own_is_given_weights_by_url(folder: Path) -> None:
    with FakeEndpoint(model="teacher") as endpoint:
        engine = VLLMAt(f"{endpoint.url}/")
        assert engine.check()
        engine.load_weights(folder)
        engine.sleep()
        assert engine.served_name == "teacher"
        VLLMAt(endpoint.url, repack=True).load_weights(folder)
    called = [body.get("method", path) for path, body in endpoint.engine_calls]
    assert called == [
        "reload_weights",
        "/reset_prefix_cache",
        "reload_weights",
        "repack_tied_heads",
        "/reset_prefix_cache",
    ]
    with pytest.raises(SamplerError, match=f"no vLLM answers at {endpoint.url} .*start it, or correct the URL"):
        _ = VLLMAt(endpoint.url).served_name
    with pytest.raises(SamplerError, match=r"did not answer /collective_rpc .*with VLLM_SERVER_DEV_MODE=1\?"):
        engine.load_weights(folder)


def test_a_server_that_dies_while_it_serves(
    folder: Path, tmp_path: Path, stand_in: str, started: Callable[[], list[int]]
) -> None:
    with make_server(folder, tmp_path, stand_in) as server:
        _supervisor, process, *_ = started()
        os.kill(process, signal.SIGKILL)
        wait_until(lambda: not server.alive())
        with pytest.raises(SamplerError, match="vLLM ended while it should serve") as failure:
            server.check()
        assert failure.value.retryable
        with pytest.raises(SamplerError, match="vLLM ended"):
            server.load_weights(folder)


def test_kill_9_of_the_owner_ends_server_and_engine(folder: Path, tmp_path: Path, stand_in: str) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(REPOSITORY), str(folder), str(tmp_path / "log"), stand_in],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert owner.stdout is not None
    members = [int(pid) for pid in owner.stdout.readline().split()]
    assert len(members) == 3
    os.killpg(owner.pid, signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in members))
    owner.communicate()


OWNER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from model.sampling import reaper
from model.sampling.vllm_server import EngineOptions, VLLMServer
folder, log, python = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
with VLLMServer(folder, "teacher", log_path=log, options=EngineOptions(python=python)):
    print(*reaper.descendants(os.getpid()), flush=True)
    time.sleep(600)
"""


def test_a_server_that_does_not_start_gives_its_reason(
    folder: Path,
    tmp_path: Path,
    stand_in: str,
    started: Callable[[], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STAND_IN_DIES", "1")
    with pytest.raises(SamplerError, match="ValueError: the KV cache is too small"):
        make_server(folder, tmp_path, stand_in).start()
    assert started() == []


def test_a_server_that_is_never_ready(folder: Path, tmp_path: Path, started: Callable[[], list[int]]) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
    sleeper.chmod(0o755)
    with pytest.raises(SamplerError, match="not ready after 0 s"):
        make_server(folder, tmp_path, str(sleeper), start_seconds=0.3).start()
    assert started() == []


def test_an_interpreter_without_vllm(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')  # no site-packages
    bare.chmod(0o755)
    with pytest.raises(SamplerError, match=r"vLLM is not installed in .*bare; `pip install") as failure:
        make_server(folder, tmp_path, str(bare)).start()
    assert not failure.value.retryable


def test_an_interpreter_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SamplerError, match="cannot run /no/such/python"):
        make_server(folder, tmp_path, "/no/such/python").start()


def test_a_folder_without_a_model_starts_nothing(tmp_path: Path, stand_in: str) -> None:
    with pytest.raises(ModelFolderError, match="holds no model"):
        make_server(tmp_path, tmp_path, stand_in).start()
    assert not (tmp_path / "logs").exists()


def test_a_reserved_port_can_be_bound_by_the_server_and_is_given_to_nobody_else() -> None:
    port, reservation = vllm_server._reserve_port()
    with reservation, socket.socket() as server:
        others = [vllm_server._reserve_port() for _ in range(200)]
        assert port not in {other for other, _ in others}
        for _, other in others:
            other.close()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as vLLM does
        server.bind(("127.0.0.1", port))
        server.listen()
        with (
            socket.create_connection(("127.0.0.1", port), timeout=1) as caller,
            server.accept()[0] as accepted,
        ):
            assert accepted.getpeername() == caller.getsockname()


def test_the_command_line_on_cpu_and_gpu() -> None:
    cpu = vllm_server.server_arguments("org/model", "teacher", 8000, EngineOptions(revision="abc"))
    assert cpu[:4] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "org/model"]
    assert cpu[cpu.index("--host") + 1] == "127.0.0.1"
    assert cpu[cpu.index("--revision") + 1] == "abc"
    assert "--tensor-parallel-size" not in cpu
    assert "--no-enable-chunked-prefill" in cpu
    assert cpu[cpu.index("--max-logprobs") + 1] == "20"
    assert cpu[cpu.index("--block-size") + 1] == "32"
    options = EngineOptions(gpus=2, enforce_eager=False, max_logprobs=64, extra_args=("--swap-space", "8"))
    gpu = vllm_server.server_arguments("org/model", "teacher", 8000, options)
    assert gpu[gpu.index("--tensor-parallel-size") + 1] == "2"
    assert gpu[-2:] == ["--swap-space", "8"]
    assert gpu[gpu.index("--max-logprobs") + 1] == "64"
    assert "--enforce-eager" not in gpu
    assert "--no-enable-chunked-prefill" not in gpu
    assert "--block-size" not in gpu


def test_every_prompt_fits_into_one_prefill_step_on_the_cpu() -> None:
    long = vllm_server.server_arguments("m", "t", 1, EngineOptions(max_model_len=32768))
    assert long[long.index("--max-num-batched-tokens") + 1] == "32768"


def test_the_environment() -> None:
    cpu = server_environment(EngineOptions(), local=True, given=[])
    assert cpu["VLLM_CPU_OMP_THREADS_BIND"] == core_ranges(os.sched_getaffinity(0))
    assert (cpu["HF_HUB_OFFLINE"], cpu["VLLM_SERVER_DEV_MODE"]) == ("1", "1")
    gpu = server_environment(EngineOptions(gpus=1, devices="2,3"), local=False, given=[])
    assert gpu["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert not {"VLLM_CPU_OMP_THREADS_BIND", "HF_HUB_OFFLINE"} & set(gpu)
    chosen = server_environment(EngineOptions(), local=True, given=["VLLM_CPU_KVCACHE_SPACE"])
    assert "VLLM_CPU_KVCACHE_SPACE" not in chosen  # the user's own value wins


@pytest.mark.parametrize(
    ("cores", "text"), [({0, 1}, "0-1"), ({3}, "3"), ({0, 1, 2, 5, 7, 8}, "0-2,5,7-8"), (set(), "")]
)
def test_core_ranges(cores: set[int], text: str) -> None:
    assert core_ranges(cores) == text


def test_a_death_is_explained_by_its_first_cause_and_not_by_the_echoes() -> None:
    head = "(Worker pid=11660) ERROR 11-23 07:00:24 [multiproc_executor.py:1063] "
    echo = "(APIServer pid=1) ERROR 11-23 07:00:34 [e.py:54] vllm.v1.EngineDeadError: see above\n"
    log = f"INFO started\n{head}Traceback (most recent call last):\n{head}RuntimeError: no offset\n" + 50 * echo
    error = describe_death(log, "python", Path("vllm.log"))
    assert str(error) == (
        "vLLM ended while it should serve\n  RuntimeError: no offset\n"
        "  vllm.v1.EngineDeadError: see above\n  (log: vllm.log)"
    )
    assert error.retryable


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "the GPU is too small"),
        ("api_server.py: error: unrecognized arguments: --swap", "check teacher.extra_args"),
    ],
)
def test_a_known_cause_comes_with_its_remedy(line: str, remedy: str) -> None:
    error = describe_death(line, "python", Path("vllm.log"))
    assert remedy in str(error).splitlines()[0]
    assert line in str(error)
    assert not error.retryable


def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
