"""What tasks ask an engine: against real endpoints; the real vLLM server has its own test in tests/model/sampling."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from model.errors import InterruptedRunError, SamplerError
from model.sampling.request import Request, SamplingParams
from model.sampling.vllm_server import EngineOptions
from tasks.engine import Engine, EngineSpec, same_architecture
from tests.fake_endpoint import FakeEndpoint

PARAMS = SamplingParams(temperature=0.7, max_tokens=64)
REQUESTS = [Request(f"r{i}", f"Calculate {i} + 1.<think>\n", i, 64) for i in range(4)]


def engine_at(url: str, tmp_path: Path) -> Engine:
    spec = EngineSpec("fake", urls=(url,))
    return Engine(spec, PARAMS, concurrency=8, timeout_seconds=60, log_path=tmp_path / "vllm.log")


def test_endpoints_answer_in_the_order_of_the_requests(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    done: list[str] = []
    with engine_at(endpoint.url, tmp_path) as engine:
        completions = engine.complete(REQUESTS, on_done=lambda completion: done.append(completion.key))
    assert [completion.key for completion in completions] == ["r0", "r1", "r2", "r3"]
    assert sorted(done) == ["r0", "r1", "r2", "r3"]


def test_serving_another_spec_reaches_another_endpoint(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    with FakeEndpoint() as other, engine_at(endpoint.url, tmp_path) as engine:
        engine.complete(REQUESTS)
        before = len(endpoint.requests)
        engine.serve(EngineSpec("fake", urls=(other.url,)))
        engine.complete(REQUESTS)
        assert len(endpoint.requests) == before
        assert len(other.requests) == len(REQUESTS)


def test_an_engine_that_is_left_interrupts_what_is_under_way(endpoint: FakeEndpoint, tmp_path: Path) -> None:
    endpoint.faults.seconds = 300.0
    errors: list[BaseException] = []

    def ask(engine: Engine) -> None:
        try:
            engine.complete(REQUESTS)
        except InterruptedRunError as error:
            errors.append(error)

    with engine_at(endpoint.url, tmp_path) as engine:
        thread = threading.Thread(target=ask, args=(engine,))
        thread.start()
        while endpoint.in_flight < len(REQUESTS):
            assert thread.is_alive()
    thread.join(20)
    assert len(errors) == 1
    with pytest.raises(InterruptedRunError):
        engine.complete(REQUESTS)


def test_a_start_that_cannot_succeed_is_tried_once(tmp_path: Path) -> None:
    """An interpreter without vLLM: the first shard learns it, the others are told at once."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho started >> "$(dirname $0)/starts"\necho "No module named \'vllm\'"\nexit 1\n')
    python.chmod(0o755)
    spec = EngineSpec("some/model", options=EngineOptions(python=str(python)))
    with Engine(spec, PARAMS, concurrency=8, timeout_seconds=60, log_path=tmp_path / "vllm.log") as engine:
        for _ in range(3):
            with pytest.raises(SamplerError, match="vLLM is not installed") as caught:
                engine.complete(REQUESTS)
            assert not caught.value.retryable
    assert (tmp_path / "starts").read_text().splitlines() == ["started"]


def test_architectures_are_told_apart(tmp_path: Path) -> None:
    folders = []
    for name, hidden in (("a", 64), ("b", 64), ("c", 128)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_size": hidden}))
        folders.append(folder)
    assert same_architecture(folders[0], folders[1])
    assert not same_architecture(folders[0], folders[2])
