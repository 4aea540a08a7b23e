"""What tasks ask an engine: against real endpoints; a real vLLM: test_real_vllm.py."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.errors import InterruptedRunError, SamplerError
from model.sampling import reaper, vllm_server
from model.sampling.request import Request, SamplingParams
from model.sampling.vllm_server import EngineOptions, VLLMServer
from tasks.engine import Engine, EngineSpec, Standby, same_architecture
from tests.fake_endpoint import FakeEndpoint
from tests.stand_in import looks_like_a_model, write_stand_in

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


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"rope_theta": 1e4}, {"rope_theta": 1e6}, False),  # two 7B models that differ in nothing else
        (
            {"rope_theta": 1e4, "rope_scaling": None},
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
            True,
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}},
            False,
        ),
        ({"rms_norm_eps": 1e-5}, {"rms_norm_eps": 1e-6}, False),
        ({"attention_bias": False}, {}, True),  # an older file leaves out what is as ever
        ({"transformers_version": "4", "eos_token_id": 1}, {"transformers_version": "5", "eos_token_id": 2}, True),
    ],
)
def test_what_changes_a_forward_pass_makes_another_architecture(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], same: bool
) -> None:
    for name, config in (("one", one), ("other", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"hidden_size": 64, **config}))
    assert same_architecture(tmp_path / "one", tmp_path / "other") is same


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., EngineSpec]:
    """What serves a folder of that name, by a stand-in for vLLM."""
    python = write_stand_in(tmp_path)

    def make(name: str, **options: int) -> EngineSpec:
        folder = tmp_path / name
        return EngineSpec(
            str(folder if folder.exists() else looks_like_a_model(folder)),
            options=EngineOptions(python=python, **options),  # type: ignore[arg-type]
        )

    return make


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[EngineSpec, Standby], Engine]:
    """An engine that leaves its server to a standby."""
    monkeypatch.setattr(vllm_server, "POLL_SECONDS", 0.05)

    def make(spec: EngineSpec, standby: Standby) -> Engine:
        log = tmp_path / "vllm.log"
        return Engine(spec, PARAMS, concurrency=8, timeout_seconds=60, log_path=log, standby=standby)

    return make


def loads(tmp_path: Path) -> list[str]:
    """The folders whose weights were put into the running server."""
    lines = (tmp_path / "vllm.log").read_text().splitlines()
    return [line.split("'weights_path': '")[1].split("'")[0] for line in lines if "weights_path" in line]


def test_one_server_serves_engine_after_engine(
    tmp_path: Path, spec: Callable[..., EngineSpec], kept: Callable[[EngineSpec, Standby], Engine]
) -> None:
    before = set(reaper.descendants(os.getpid()))
    with Standby() as standby:
        with kept(spec("teacher"), standby) as engine:
            engine.complete(REQUESTS)
        server = set(reaper.descendants(os.getpid())) - before
        with kept(spec("teacher"), standby) as engine:
            engine.complete(REQUESTS)
        with kept(spec("student"), standby) as engine:
            engine.complete(REQUESTS)
            assert set(reaper.descendants(os.getpid())) - before == server
            engine.lend()
        with kept(spec("student"), standby) as engine:  # nobody knows what a borrower has left in it
            engine.complete(REQUESTS)
        assert set(reaper.descendants(os.getpid())) - before == server
        _until(lambda: loads(tmp_path) == [str(tmp_path / "student")] * 2)
    assert server
    assert not set(reaper.descendants(os.getpid())) - before


def test_an_engine_whose_weights_are_not_known_answers_nothing(
    tmp_path: Path,
    spec: Callable[..., EngineSpec],
    kept: Callable[[EngineSpec, Standby], Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A swap that failed, and an engine that was lent: both end in one that has the weights that are asked for."""
    before = set(reaper.descendants(os.getpid()))
    with Standby() as standby, kept(spec("teacher"), standby) as engine:
        engine.ready()
        first = set(reaper.descendants(os.getpid())) - before
        with monkeypatch.context() as broken:
            broken.setattr(VLLMServer, "load_weights", _refuse)
            with pytest.raises(SamplerError, match="no memory"):
                engine.serve(spec("student"))
        assert not first & set(reaper.descendants(os.getpid()))
        engine.serve(spec("student"))
        engine.complete(REQUESTS)
        lent = engine.lend()
        assert engine.lend() != lent  # the first may be what that attempt failed of
        engine.serve(spec("student"))
        engine.complete(REQUESTS)
        _until(lambda: loads(tmp_path) == [str(tmp_path / "student")])
    assert not set(reaper.descendants(os.getpid())) - before


def _refuse(_server: VLLMServer, _folder: Path) -> None:
    raise SamplerError("no memory for it")


def test_a_server_that_does_not_fit_or_was_left_in_an_error_is_stopped(
    spec: Callable[..., EngineSpec], kept: Callable[[EngineSpec, Standby], Engine]
) -> None:
    before = set(reaper.descendants(os.getpid()))
    with Standby() as standby:
        with kept(spec("teacher"), standby) as engine:
            engine.ready()
        first = set(reaper.descendants(os.getpid())) - before
        with kept(spec("teacher", max_model_len=64), standby) as engine:
            engine.ready()
            assert not first & set(reaper.descendants(os.getpid()))
            with pytest.raises(KeyError), engine:
                raise KeyError
        assert not set(reaper.descendants(os.getpid())) - before


def _until(holds: Callable[[], bool]) -> None:
    for _ in range(200):
        if holds():
            return
        threading.Event().wait(0.05)
    raise AssertionError
