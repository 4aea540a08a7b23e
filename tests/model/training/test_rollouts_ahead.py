"""Rollouts that are sampled during the update before: their order, their lag, and every one trained on once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from model.losses.mismatch import Mismatch
from model.records import FinishReason
from model.sampling.request import AnyRequest, Completion, ScoreRequest
from model.training.checkpoint import complete_checkpoints
from model.training.data import Row
from model.training.job import GRPOJob, JobError, OnPolicyJob, PPOJob, Sampler
from model.training.process import Stopped
from model.training.rollouts import Rollout
from model.training.rollouts_ahead import RolloutsAhead, as_plain, from_plain
from model.training.runner import open_rollouts
from tests.model.training import tiny_engine
from tests.model.training.test_runner import Stop, read_metrics, run, wait_for
from tests.model.training.tiny import ALONE, PREFILL, make_model, make_tokenizer
from tests.model.training.tiny_engine import TinyEngine

HERE = Path()
STEPS, PROBLEMS, GROUP = 12, 2, 4


class Written:
    """A sampler that writes down what is asked of it, and answers with the context and the first seed."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def sync(self) -> dict[str, float]:
        self.calls.append("sync")
        return {"sync_gap": 0.0}

    def begin(self, contexts: Sequence[str], generator: torch.Generator) -> Callable[[], list[Rollout]]:
        seed = int(torch.randint(2**31, (1,), generator=generator))
        self.calls.append(f"begin {contexts[0]}")

        def awaited() -> list[Rollout]:
            self.calls.append(f"end {contexts[0]}")
            return [Rollout(Row([1], [seed]), context, FinishReason.STOP, [-0.5]) for context in contexts]

        return awaited


def make_ahead(steps: int = 3) -> tuple[RolloutsAhead, list[str]]:
    settings: dict[str, Any] = {"rollouts": Sampler.VLLM, "mismatch": Mismatch.TIS, "rollouts_ahead": 1}
    job = GRPOJob(init=HERE, out=HERE, problems=HERE, steps=steps, **settings)
    written = Written()
    return RolloutsAhead(written, job, lambda step: [str(step)], updates_per_step=2), written.calls


def test_weights_are_given_between_two_sets_of_requests() -> None:
    ahead, calls = make_ahead()
    taken = [ahead.take(step) for step in (1, 2, 3)]
    assert [rollouts[0].text for rollouts, _ in taken] == ["1", "2", "3"]
    assert [metrics["rollout_lag"] for _, metrics in taken] == [0, 2, 2]
    assert calls == ["sync", "begin 1", "end 1", "begin 2", "end 2", "sync", "begin 3", "end 3", "sync"]


def test_a_checkpoint_waits_and_holds_what_was_in_flight() -> None:
    ahead, calls = make_ahead()
    ahead.take(1)
    state = json.loads(json.dumps(ahead.state_dict()))
    assert calls[-1] == "end 2"
    ahead.take(2)
    other, other_calls = make_ahead()
    other.load_state_dict(state)
    rollouts, metrics = other.take(2)
    assert (rollouts[0].text, metrics["rollout_lag"]) == ("2", 2)
    assert other_calls == ["sync", "begin 3"]
    assert other.take(3)[0] == ahead.take(3)[0]  # the same seeds
    assert other.state_dict() == {}


def test_rollouts_of_a_step_that_is_left_out_are_dropped_once_they_are_there() -> None:
    ahead, calls = make_ahead()
    ahead.take(1)
    rollouts, metrics = ahead.take(3)
    assert (rollouts[0].text, metrics["rollout_lag"]) == ("3", 0)
    assert calls[3:] == ["begin 2", "end 2", "sync", "begin 3", "end 3"]


def test_going_back_to_a_checkpoint_waits_for_what_is_in_flight() -> None:
    ahead, calls = make_ahead()
    ahead.take(1)
    state = ahead.state_dict()
    ahead.take(2)
    ahead.load_state_dict(state)
    assert calls[-1] == "end 3"
    assert ahead.take(2)[0][0].text == "2"


def test_a_rollout_survives_a_checkpoint() -> None:
    rollout = Rollout(Row([1, 2], [3]), "c", FinishReason.LENGTH, [-0.1])
    assert from_plain(as_plain(rollout)) == rollout


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        (GRPOJob, {}, "set mismatch = 'tis' or 'icepop'"),
        (GRPOJob, {"mismatch": Mismatch.TIS, "max_refills": 1}, "max_refills exclude each other"),
        (PPOJob, {}, "ppo takes no rollouts_ahead"),
        (GRPOJob, {"rollouts": Sampler.TRANSFORMERS}, "are for rollouts = 'vllm'"),
        (OnPolicyJob, {"teacher": HERE, "rollouts_ahead": 2}, "must be 0 or 1, got 2"),
    ],
)
def test_what_older_rollouts_do_not_go_with(kind: type[GRPOJob], settings: dict[str, Any], says: str) -> None:
    base: dict[str, Any] = {"rollouts": Sampler.VLLM, "rollouts_ahead": 1}
    with pytest.raises(JobError, match=says):
        kind(init=HERE, out=HERE, problems=HERE, **(base | settings))


def test_an_engine_on_the_trainers_gpu_is_refused(
    tiny_folder: Path, problems_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"rollouts": Sampler.VLLM, "rollouts_ahead": 1, "teacher": tiny_folder}
    job = OnPolicyJob(init=tiny_folder, out=HERE, problems=problems_file, **settings)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    opening = open_rollouts(job, make_model(), make_tokenizer(), ALONE)
    with pytest.raises(JobError, match="name them in rollout_urls"), opening:
        pytest.fail("one GPU cannot do both at once")


def make_raw(folder: Path, problems: Path, out: Path, stage: str = "grpo", **settings: Any) -> dict[str, Any]:
    base = {
        "stage": stage,
        "init": str(folder),
        "out": str(out),
        "problems": str(problems),
        "prefill": PREFILL,
        "learning_rate": 3e-3,
        "threads": 1,
        "checkpoint_every": 3,
        "dtype": "float32",
        "steps": STEPS,
        "problems_per_step": PROBLEMS,
        "group_size": GROUP,
        "max_tokens": 6,
        "rollouts": "vllm",
        "rollouts_ahead": 1,
    }
    special = {"grpo": {"mismatch": "tis"}, "on_policy": {"teacher": str(folder)}}
    return base | special[stage] | settings


def without_clocks(metrics: Path) -> list[dict[str, float]]:
    clocks = {"sync_seconds", "rollout_wait_seconds"}
    return [{name: value for name, value in line.items() if name not in clocks} for line in read_metrics(metrics)]


@pytest.fixture(scope="module")
def engines() -> Iterator[list[TinyEngine]]:
    """Those that were started; each takes a moment to draw, and says when it begins and ends."""
    real = TinyEngine.complete

    def complete(engine: TinyEngine, requests: Sequence[AnyRequest]) -> list[Completion]:
        if isinstance(requests[0], ScoreRequest):
            return real(engine, requests)
        engine.calls.append(f"begin {len(requests)}")
        time.sleep(0.02)
        found = real(engine, requests)
        engine.calls.append("end")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TinyEngine, "complete", complete)
        yield tiny_engine.install(patch)


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, problems_file: Path, engines: list[TinyEngine], tmp_path_factory: Any) -> Path:
    """An undisturbed run, by the first engine."""
    assert not engines
    return run(make_raw(tiny_folder, problems_file, tmp_path_factory.mktemp("ahead") / "whole"))


def drawn(engine: TinyEngine) -> int:
    """Rollouts, apart from those of the check at the start."""
    counts = [int(call.split()[1]) for call in engine.calls if call.startswith("begin")]
    return sum(count for count in counts if count == PROBLEMS * GROUP)


def test_the_engine_samples_while_the_trainer_trains(whole: Path, engines: list[TinyEngine]) -> None:
    lines = without_clocks(whole / "metrics.jsonl")
    assert [line["rollout_lag"] for line in lines] == [0, *[1] * (STEPS - 1)]
    # The engine's numbers are the trainer's own where it has the same weights, and others once an update lies between.
    assert lines[0]["mismatch_log_ratio"] < 1e-5
    moved = [line["mismatch_log_ratio"] for before, line in pairwise(lines) if before["grad_norm"] > 1e-3]
    assert len(moved) > 3
    assert min(moved) > 1e-3
    calls = [call for call in engines[0].calls if call.split()[0] in ("begin", "end", "load")]
    assert "wake" not in engines[0].calls
    assert all(after == "end" for call, after in pairwise(calls) if call.startswith("begin"))
    assert calls.count("load") == STEPS
    assert drawn(engines[0]) == STEPS * PROBLEMS * GROUP


def test_a_stopped_run_goes_on_with_its_rollouts(
    tiny_folder: Path, problems_file: Path, tmp_path: Path, whole: Path, engines: list[TinyEngine]
) -> None:
    before = len(engines)
    parted = make_raw(tiny_folder, problems_file, tmp_path / "parted")
    with pytest.raises(Stopped, match="after step 4"):
        run(parted, Stop(tmp_path / "parted/metrics.jsonl", after=4))
    run(parted)
    assert without_clocks(tmp_path / "parted/metrics.jsonl") == without_clocks(whole / "metrics.jsonl")
    assert [drawn(engine) for engine in engines[before:]] == [5 * PROBLEMS * GROUP, (STEPS - 5) * PROBLEMS * GROUP]


@pytest.mark.usefixtures("engines")
def test_the_first_step_is_that_of_a_run_without_it(tiny_folder: Path, problems_file: Path, tmp_path: Path) -> None:
    files, settings = (tiny_folder, problems_file), {"stage": "on_policy", "steps": 2}
    ahead = without_clocks(run(make_raw(*files, tmp_path / "ahead", **settings)) / "metrics.jsonl")
    plain = without_clocks(run(make_raw(*files, tmp_path / "plain", **settings, rollouts_ahead=0)) / "metrics.jsonl")
    assert plain[0] == {name: value for name, value in ahead[0].items() if name != "rollout_lag"}


RUN = """
import sys
from pathlib import Path

import pytest

from model.training.__main__ import run_file
from tests.model.training.tiny_engine import install

install(pytest.MonkeyPatch())
sys.exit(run_file(Path(sys.argv[1])))
"""


def test_kill_9_and_resume_trains_on_the_very_rollouts_of_the_checkpoint(
    tiny_folder: Path, problems_file: Path, tmp_path: Path, whole: Path, engines: list[TinyEngine]
) -> None:
    raw = make_raw(tiny_folder, problems_file, tmp_path / "killed")
    out, file = Path(raw["out"]), tmp_path / "job.json"
    file.write_text(json.dumps(raw))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen([sys.executable, "-c", RUN, str(file)], env=environment) as process:
        wait_for(lambda: (out / "checkpoints/step-000006").exists() or process.poll() is not None)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    kept = int(complete_checkpoints(out / "checkpoints")[-1].name.removeprefix("step-"))
    run(raw)
    assert without_clocks(out / "metrics.jsonl") == without_clocks(whole / "metrics.jsonl")
    assert drawn(engines[-1]) == (STEPS - kept - 1) * PROBLEMS * GROUP
