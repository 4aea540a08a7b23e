"""The promises of a training process, kept by real processes: resume after kill -9, stop, one owner, one job."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import FileSystemReader
from transformers import LlamaConfig, LlamaForCausalLM

from model.errors import TrainingError
from model.training import checkpoint, forward, optimizer, step
from model.training.checkpoint import DiskError, disk_errors
from model.training.data import Row
from model.training.degenerate import DegenerateError
from model.training.distill import DistillStage
from model.training.job import JOBS, DistillJob, JobError, SFTJob, job_from
from model.training.metrics_log import MetricsLog
from model.training.optimizer import learning_rate
from model.training.out_of_memory import OutOfMemoryError
from model.training.process import StopNow, Stopped, StopRequest, StopSignal, sole_owner
from model.training.recovery import DivergedError, StartOverError
from model.training.rollouts import LocalRollouts
from model.training.runner import run_job
from tasks.processes import GRACE_SECONDS
from tests.model.training.tiny import ALONE, PREFILL, make_model, make_tokenizer
from tests.model.training.tiny_engine import install
from tests.preloaded import TRAINERS, Preloaded

MakeJob = Callable[..., dict[str, Any]]


class Stop:
    """Asks for a stop when `after` lines of metrics are there."""

    def __init__(self, metrics: Path | None = None, after: int = 0) -> None:
        self.metrics, self.after = metrics, after

    @property
    def received(self) -> bool:
        return self.metrics is not None and self.metrics.exists() and len(read_metrics(self.metrics)) >= self.after


@pytest.fixture
def make_job(tiny_folder: Path, examples_file: Path, problems_file: Path, tmp_path: Path) -> MakeJob:
    common = {
        "init": tiny_folder,
        "prefill": PREFILL,
        "learning_rate": 3e-3,
        "threads": 1,
        "checkpoint_every": 3,
    }
    examples = {"examples": examples_file, "epochs": 6, "tokens_per_batch": 100, "tokens_per_micro_batch": 60}
    rollouts = {
        "problems": problems_file,
        "steps": 6,
        "problems_per_step": 2,
        "group_size": 4,
        "max_tokens": 6,
    }
    specific = {"sft": examples, "distill": examples | {"teacher": tiny_folder}, "grpo": rollouts, "ppo": rollouts}
    specific["on_policy"] = rollouts | {"teacher": tiny_folder}

    def make(stage: str = "sft", out: str = "out", **settings: Any) -> dict[str, Any]:
        job = {"stage": stage, "out": tmp_path / out, **common, **specific[stage], **settings}
        return {name: str(value) if isinstance(value, Path) else value for name, value in job.items()}

    return make


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preloaded]:
    """What carries out jobs as processes of their own."""
    preloaded = Preloaded(TRAINERS, tmp_path_factory.mktemp("prefect-home"))
    yield preloaded
    preloaded.end()


def run(raw: dict[str, Any], stop: StopSignal | None = None) -> Path:
    raw = dict(raw)
    job = job_from(JOBS[raw.pop("stage")], raw)
    run_job(job, stop or Stop())
    return job.out


def read_metrics(metrics: Path) -> list[dict[str, float]]:
    """Every line, but for what a clock says."""
    clocks = {"seconds", "prepare_seconds", "tokens_per_second"}
    lines = map(json.loads, metrics.read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in clocks} for line in lines]


def read_losses(metrics: Path) -> list[tuple[int, float]]:
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [(line["step"], line["loss"]) for line in map(json.loads, lines)]


def command(raw: dict[str, Any], *arguments: str) -> list[str]:
    return [sys.executable, "-m", "model.training", str(job_file(raw)), *arguments]


def job_file(raw: dict[str, Any]) -> Path:
    path = Path(raw["out"]).with_suffix(".json")
    path.write_text(json.dumps(raw))
    return path


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", ["sft", "distill", "on_policy", "grpo", "ppo"])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(make_job: MakeJob, stage: str, dtype: str) -> None:
    whole = run(make_job(stage, "whole", dtype=dtype))
    parted = make_job(stage, "parted", dtype=dtype)
    with pytest.raises(Stopped, match="after step 4"):
        run(parted, Stop(Path(parted["out"]) / "metrics.jsonl", after=4))
    again = run(parted)
    assert read_metrics(again / "metrics.jsonl") == read_metrics(whole / "metrics.jsonl")
    assert (again / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()


def test_a_stopped_run_with_an_engine_gives_it_the_checkpoints_weights(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = install(monkeypatch)
    whole = run(make_job("grpo", "whole", dtype="float32", rollouts="vllm"))
    parted = make_job("grpo", "parted", dtype="float32", rollouts="vllm")
    with pytest.raises(Stopped, match="after step 4"):
        run(parted, Stop(Path(parted["out"]) / "metrics.jsonl", after=4))
    again = run(parted)
    assert read_losses(again / "metrics.jsonl") == read_losses(whole / "metrics.jsonl")
    assert [engine.calls[-1] for engine in engines] == ["stop"] * 3


def test_kill_9_and_resume_with_refills_gives_the_same_metrics_bit_for_bit(
    make_job: MakeJob, trainers: Preloaded
) -> None:
    """The number of problems a step takes is known only once it is over: the cursor is in the checkpoint.

    By the command itself; other stages: test_killed.py.
    """
    # The tiny model is mostly paid nothing (λ·format alone), so most groups are dropped.
    settings = {"max_refills": 3, "steps": 10, "problems_per_step": 2, "kl_weight": 0.0, "dtype": "float32"}
    whole = run(make_job("grpo", "whole", **settings))
    killed = make_job("grpo", "killed", **settings)
    out = Path(killed["out"])
    process = trainers.start("model.training", [job_file(killed)])
    wait_for(lambda: (out / "checkpoints/step-000006").exists() or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL, process.errors
    assert trainers.run("model.training", [job_file(killed)]).returncode == 0
    assert read_metrics(out / "metrics.jsonl") == read_metrics(whole / "metrics.jsonl")
    lines = read_metrics(out / "metrics.jsonl")
    assert len({line["groups_sampled"] for line in lines}) > 1
    assert sum(line["refills"] for line in lines) > 3


def test_two_threads_come_to_the_same_bits(make_job: MakeJob, tmp_path: Path) -> None:
    """Of float32 tables so large that torch shares them out: it would add up equal tokens' gradients in any order."""
    config = LlamaConfig(
        vocab_size=400, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "init")
    make_tokenizer().save_pretrained(tmp_path / "init")
    large = {"tokens_per_batch": 2000, "tokens_per_micro_batch": 2000, "dtype": "float32", "threads": 2}
    found = [run(make_job(out=f"{n}", init=tmp_path / "init", **large)) / "metrics.jsonl" for n in range(4)]
    assert torch.get_num_threads() == 2
    first, *others = map(read_metrics, found)
    assert all(other == first for other in others)


def test_a_run_that_learns_nothing_is_stopped_with_its_reason_and_its_checkpoint(make_job: MakeJob) -> None:
    settings = {"degenerate_window": 2, "degenerate_truncated_share": 0.0, "checkpoint_every": 100}
    job = make_job("grpo", **settings)
    for _ in range(2):  # the second time it does not go on either
        with pytest.raises(DegenerateError, match=r"after step 2, .* were cut at max_tokens = 6: raise it") as caught:
            run(job)
        assert not caught.value.retryable
        assert [path.name for path in (Path(job["out"]) / "checkpoints").iterdir()] == ["step-000002"]
    out = run(job | {"degenerate_window": 0})
    assert [step["step"] for step in read_metrics(out / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("victim", ["model/model.safetensors", "trainer/__0_0.distcp", "checksums.json"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    make_job: MakeJob, victim: str, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = run(make_job(out="whole"))
    parted = make_job(out="parted")
    with pytest.raises(Stopped, match="after step 7"):
        run(parted, Stop(Path(parted["out"]) / "metrics.jsonl", after=7))
    newest = Path(parted["out"]) / "checkpoints/step-000007" / victim
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    again = run(parted)
    assert "step-000007 is damaged" in capfd.readouterr().err
    assert read_losses(again / "metrics.jsonl") == read_losses(whole / "metrics.jsonl")


def test_damaged_checkpoints_do_not_outlive_sound_ones(make_job: MakeJob) -> None:
    """With all of them damaged a run begins anew; what it then writes has lower steps, and is what stays."""
    whole = run(make_job(out="whole", max_steps=8))
    parted = make_job(out="parted", max_steps=8)
    out = Path(parted["out"])
    with pytest.raises(Stopped, match="after step 7"):
        run(parted, Stop(out / "metrics.jsonl", after=7))
    for name in ("step-000006", "step-000007"):
        (out / "checkpoints" / name / "stage.pt").write_bytes(b"")
    (out / "metrics.jsonl").unlink()  # whose lines would stop the next one before it began
    for after in (4, 5):
        with pytest.raises(Stopped, match=f"after step {after}"):
            run(parted, Stop(out / "metrics.jsonl", after))
        assert (out / f"checkpoints/step-{after:06d}").exists()
    run(parted)
    kept = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert kept == ["aside-000006", "aside-000007", "step-000005", "step-000006"]
    assert read_losses(out / "metrics.jsonl") == read_losses(whole / "metrics.jsonl")


def test_as_many_checkpoints_stay_as_are_asked_for(make_job: MakeJob) -> None:
    """And how many that is does not make another job of it."""
    job = make_job(max_steps=5, checkpoint_every=1, keep_checkpoints=1)
    with pytest.raises(Stopped, match="after step 2"):
        run(job, Stop(Path(job["out"]) / "metrics.jsonl", after=2))
    assert [path.name for path in (Path(job["out"]) / "checkpoints").iterdir()] == ["step-000002"]
    out = run(job | {"keep_checkpoints": 3})
    kept = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert kept == ["step-000002", "step-000003", "step-000004"]


def test_layers_that_are_run_again_change_no_bit_and_are_run_again(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    real, calls = LlamaMLP.forward, [0]

    def counted(self: Any, hidden: Any) -> Any:
        calls[0] += 1
        return real(self, hidden)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    plain, once = run(make_job(out="plain")), calls[0]
    again = run(make_job(out="again", activation_checkpointing=True))
    assert calls[0] - once == 2 * once
    assert read_metrics(again / "metrics.jsonl") == read_metrics(plain / "metrics.jsonl")
    assert (again / "model/model.safetensors").read_bytes() == (plain / "model/model.safetensors").read_bytes()


def test_a_model_with_dropout_is_not_put_into_training_mode(
    make_job: MakeJob, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "drops"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.1}))
    with pytest.raises(JobError, match="would turn on the model's dropout"):
        run(make_job(init=folder, activation_checkpointing=True))


def test_out_of_memory_is_told_by_its_name_and_may_be_tried_again(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A petabyte is more than any machine has: torch's own error, in torch's own words."""
    monkeypatch.setattr(forward, "completion_hidden", lambda *_: torch.empty(1 << 50, dtype=torch.uint8))
    with pytest.raises(OutOfMemoryError, match="tokens_per_micro_batch = 60 does not fit: lower it") as caught:
        run(make_job())
    assert caught.value.retryable


def break_update(monkeypatch: pytest.MonkeyPatch, which: int, value: float = torch.inf) -> list[float]:
    """The process's update of that number fills a weight with a value; the norms of all gradients."""
    real = optimizer.MasterAdamW.step

    def step(self: Any, rate: float, *limits: float) -> float:
        norm = real(self, rate, *limits)
        norms.append(norm)
        if len(norms) == which:
            with torch.no_grad():
                self.masters[0].fill_(value)
            self._publish()
        return norm

    norms: list[float] = []
    monkeypatch.setattr(optimizer.MasterAdamW, "step", step)
    return norms


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The update of step 5 makes weights infinite; the norms of all steps' gradients."""
    return break_update(monkeypatch, 5)


def assert_left_out(out: Path, step: int) -> None:
    """The run came to its end with the update of one step alone left out, and a model of numbers."""
    lines = read_metrics(out / "metrics.jsonl")
    assert [each["step"] for each in json.loads((out / "skipped.json").read_text())] == [step]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert [line["step"] for line in lines if "skipped" in line] == [step]
    assert all(math.isfinite(line["loss"]) for line in lines if "skipped" not in line)
    assert optimizer.all_finite(load_file(out / "model/model.safetensors").values())


@pytest.mark.usefixtures("breaking")
def test_a_batch_that_breaks_the_weights_is_left_out_from_the_last_checkpoint(
    make_job: MakeJob, capfd: pytest.CaptureFixture[str]
) -> None:
    """Steps 6 and 7 give no numbers."""
    assert_left_out(run(make_job()), 5)
    said = "step 7: loss or gradient is no number: back to the checkpoint of step 3, without step 5"
    assert said in capfd.readouterr().err.splitlines()


# 1e30 is a number, so that a checkpoint takes it, but no gradient comes of it: the checkpoint is set aside.
@pytest.mark.parametrize(("value", "aside"), [(torch.nan, []), (1e30, ["aside-000005"])])
def test_a_batch_that_breaks_the_weights_where_a_checkpoint_is_due(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, value: float, aside: list[str]
) -> None:
    break_update(monkeypatch, 5, value)
    out = run(make_job(checkpoint_every=1, max_steps=10))
    assert_left_out(out, 5)
    kept = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert kept == [*aside, "step-000008", "step-000009"]


@pytest.mark.parametrize("value", [torch.nan, 1e30])
def test_weights_that_break_before_the_first_checkpoint_are_trained_from_the_beginning_once(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    job = make_job(checkpoint_every=5, max_steps=10)
    with monkeypatch.context() as patched:
        break_update(patched, 5, value)
        with pytest.raises(
            StartOverError, match=r"step 7: .* after step 5, and no checkpoint lies before it"
        ) as caught:
            run(job)
    assert caught.value.retryable
    shutil.copytree(job["out"], tmp := Path(job["out"]).with_name("other"))
    assert_left_out(run(job), 5)
    break_update(monkeypatch, 3)
    with pytest.raises(DivergedError, match=r"leaving out steps \[5\] did not help"):
        run(job | {"out": str(tmp)})


def test_a_last_batch_without_numbers_is_no_reason_to_doubt_the_weights(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = optimizer.MasterAdamW.step

    def step(self: Any, rate: float, *limits: float) -> float:
        calls.append(rate)
        if len(calls) == 8:
            self.masters[0].grad.fill_(torch.nan)
        return real(self, rate, *limits)

    calls: list[float] = []
    monkeypatch.setattr(optimizer.MasterAdamW, "step", step)
    out = run(make_job(max_steps=8))
    lines = read_metrics(out / "metrics.jsonl")
    assert [line["step"] for line in lines if "nonfinite" in line] == [8]
    assert len(lines) == 8
    assert not (out / "skipped.json").exists()
    assert optimizer.all_finite(load_file(out / "model/model.safetensors").values())


@pytest.mark.parametrize(("which", "value"), [(7, torch.nan), (7, 1e30), (8, torch.nan)])
def test_weights_that_break_at_the_end_do_not_become_the_model(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, which: int, value: float
) -> None:
    """By the last update, or by the one before it, after which only the last step gives no numbers."""
    break_update(monkeypatch, which, value)
    assert_left_out(run(make_job(max_steps=8)), which)


def test_a_stop_after_a_step_without_numbers_keeps_the_checkpoint_before(
    make_job: MakeJob, breaking: list[float]
) -> None:
    """Whoever goes on from there would have broken weights only."""

    class AtStepSix:
        @property
        def received(self) -> bool:
            return len(breaking) >= 6

    job = make_job(checkpoint_every=4)
    with pytest.raises(Stopped, match="stopped after step 6"):
        run(job, AtStepSix())  # type: ignore[arg-type]
    assert [path.name for path in (Path(job["out"]) / "checkpoints").glob("step-*")] == ["step-000004"]


@dataclass
class Mishaps:
    """What goes wrong in a run, by a step's learning rate, whoever makes the step."""

    long: set[float] = field(default_factory=set)  # its gradients are a thousand times as long as they were
    breaks: set[float] = field(default_factory=set)  # its update makes a weight thirty times as large


@pytest.fixture
def mishaps(monkeypatch: pytest.MonkeyPatch) -> Mishaps:
    real = optimizer.MasterAdamW.step

    def step(self: Any, rate: float, *limits: float) -> float:
        if rate in chosen.long:
            for master in self.masters:
                master.grad.mul_(1000)
        norm = real(self, rate, *limits)
        if rate in chosen.breaks:
            with torch.no_grad():
                self.masters[0].mul_(30)
            self._publish()
        return norm

    chosen = Mishaps()
    monkeypatch.setattr(optimizer.MasterAdamW, "step", step)
    return chosen


SPIKING = {"max_steps": 60, "epochs": 20, "spike_ratio": 10.0, "checkpoint_every": 10}


@pytest.fixture
def rates(make_job: MakeJob) -> list[float]:
    """Of steps 0 to 60 of a spiking job."""
    job = job_from(SFTJob, {name: value for name, value in make_job(**SPIKING).items() if name != "stage"})
    return [0.0] + [learning_rate(job, step, 60) for step in range(1, 61)]


def returns_of(out: Path) -> list[tuple[int, int]]:
    """The steps that were left out, and when that was found."""
    file = out / "skipped.json"
    return [(each["step"], each["noticed"]) for each in json.loads(file.read_text())] if file.exists() else []


def test_a_spike_makes_no_update(make_job: MakeJob, mishaps: Mishaps, rates: list[float]) -> None:
    usual = read_metrics(run(make_job(out="usual", **SPIKING)) / "metrics.jsonl")
    mishaps.long.add(rates[40])
    out = run(make_job(**SPIKING))
    lines = read_metrics(out / "metrics.jsonl")
    assert lines[:39] == usual[:39]
    assert [line["step"] for line in lines if "skipped" in line] == [40]
    assert lines[39] == usual[39] | {
        "grad_norm": pytest.approx(1000 * usual[39]["grad_norm"]),
        "skipped": 1,
        "updates": 0,
        "spikes": 1,
    }
    assert returns_of(out) == []


def test_batches_that_spike_in_a_row_send_training_back_once(
    make_job: MakeJob, mishaps: Mishaps, rates: list[float]
) -> None:
    """The weights are not at fault: going back does not help, and training goes on without them."""
    mishaps.long |= {rates[40], rates[41], rates[42]}
    out = run(make_job(**SPIKING))
    lines = read_metrics(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert [line["step"] for line in lines if "skipped" in line] == [39, 40, 41, 42]
    assert returns_of(out) == [(39, 42)]


def test_a_batch_after_which_losses_spike_is_left_out(make_job: MakeJob, mishaps: Mishaps, rates: list[float]) -> None:
    """They are numbers still, and no use: in the middle of a run, and at its end, where one spike must do."""
    mishaps.breaks |= {rates[35], rates[59]}
    out = run(make_job(**SPIKING))
    assert returns_of(out) == [(35, 37), (59, 60)]
    lines = read_metrics(out / "metrics.jsonl")
    assert [line["step"] for line in lines if "skipped" in line] == [35, 59]
    assert lines[-1]["loss"] < 3


def test_stops_do_not_change_what_spikes_are_taken_for(make_job: MakeJob, mishaps: Mishaps, rates: list[float]) -> None:
    """Two batches that spike, 35 and 36, and an update that breaks the weights, where a checkpoint is due."""
    mishaps.long |= {rates[35], rates[36]}
    mishaps.breaks.add(rates[50])
    whole = run(make_job(out="whole", **SPIKING))
    parted = make_job(out="parted", **SPIKING)
    out = Path(parted["out"])
    for stop in (35, 41, 51):
        with pytest.raises(Stopped):
            run(parted, Stop(out / "metrics.jsonl", after=stop))
    run(parted)
    assert returns_of(out) == returns_of(whole) == [(34, 36), (50, 52)]
    assert read_metrics(out / "metrics.jsonl") == read_metrics(whole / "metrics.jsonl")


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_moments_are_kept_as_the_job_says(make_job: MakeJob, stage: str) -> None:
    settings = {"max_steps": 2} if stage == "sft" else {"steps": 2}
    out = run(make_job(stage, optimizer_state="bfloat16", checkpoint_every=1, **settings))
    written = FileSystemReader(out / "checkpoints/step-000001/trainer").read_metadata().state_dict_metadata
    narrow = {name for name, kept in written.items() if kept.properties.dtype == torch.bfloat16}
    assert narrow == {name for name in written if "exp_avg" in name}
    assert any(name.startswith("beside.") for name in narrow) == (stage == "ppo")


def test_it_dies_with_its_parent(make_job: MakeJob) -> None:
    job = make_job(epochs=100_000)
    metrics = Path(job["out"]) / "metrics.jsonl"
    starter = (
        "import os, subprocess, sys, time; child = subprocess.Popen([*sys.argv[1:], '--parent', str(os.getpid())]);"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", starter, *command(job)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_for(lambda: len(read_losses(metrics)) > 1 or parent.poll() is not None)
        parent.kill()
    wait_for(lambda: not is_running(child), seconds=10)


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_sigterm_writes_a_checkpoint_and_asks_to_be_resumed(make_job: MakeJob, trainers: Preloaded) -> None:
    job = make_job(epochs=100_000, checkpoint_every=1_000_000)
    out = Path(job["out"])
    process = trainers.start("model.training", [job_file(job)])
    wait_for(lambda: len(read_losses(out / "metrics.jsonl")) > 1 or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    assert process.wait(GRACE_SECONDS) == 75, process.errors
    assert "start the same job to go on" in process.errors
    last = read_losses(out / "metrics.jsonl")[-1][0]
    assert [p.name for p in (out / "checkpoints").iterdir()] == [f"step-{last:06d}"]


def test_a_wrong_job_is_one_line_and_exit_2(make_job: MakeJob) -> None:
    done = subprocess.run(command(make_job(epoch=3)), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "JobError: a sft job has no field 'epoch'; the nearest is 'epochs'\n"


def _other_tokenizer(folder: Path) -> None:
    make_model(vocabulary=3000).save_pretrained(folder)


def _unknown_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"WordLevel"', '"Unheard"'))


def _no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _no_end_of_turn(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token"}))


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            _other_tokenizer,
            "knows token ids up to 44, the model 3000: this is another model's tokenizer; ",
        ),
        (_unknown_tokenizer, "does not hold a model with its tokenizer (Exception: "),
        (_no_tokenizer, "does not hold a model with its tokenizer ("),
        (_no_end_of_turn, "the tokenizer names no eos_token: set it to what ends a turn (tokenizer_config.json)"),
        (_cut_weights, "does not hold a model with its tokenizer (SafetensorError: "),
    ],
)
def test_a_spoilt_model_folder_is_one_line_of_the_command_and_exit_2(
    make_job: MakeJob, trainers: Preloaded, tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    folder = shutil.copytree(make_job()["init"], tmp_path / "spoilt")
    spoil(folder)
    done = trainers.run("flows.cli", ["train", job_file(make_job(init=folder))])
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert str(folder) in line
    assert told in line
    assert not (tmp_path / "out/metrics.jsonl").exists()


def _with_teacher_prompts(examples: Path, path: Path, prompt_of: Callable[[int], str]) -> None:
    table = pq.read_table(examples)
    place = table.schema.get_field_index("teacher_prompt")
    prompts = [prompt_of(i) for i in range(len(table))]
    pq.write_table(table.set_column(place, table.schema.field(place), [prompts]), path)


def test_wrong_data_is_one_line_of_the_command_and_exit_2(
    make_job: MakeJob, trainers: Preloaded, examples_file: Path, tmp_path: Path
) -> None:
    """Nothing accepted, rows beyond the budget (a student's, a live teacher's), a folder of another recipe."""
    pq.write_table(pq.read_table(examples_file).slice(0, 0), tmp_path / "none.parquet")
    # They open with the same 48 tokens, at least.
    _with_teacher_prompts(examples_file, tmp_path / "long.parquet", lambda i: "q: 1 + 1? a: 2. " * (3 + i))
    run(make_job(out="begun", max_steps=1))
    wrong = {
        "holds no training examples: loosen the recipe's [accept] rule": make_job(examples=tmp_path / "none.parquet"),
        "tokens_per_micro_batch = 20: raise it to": make_job(out="short", tokens_per_micro_batch=20),
        "the teacher may read": make_job("distill", "taught", examples=tmp_path / "long.parquet"),
        "another job's training (learning_rate was 0.003, now 0.5)": make_job(
            out="begun", max_steps=1, learning_rate=0.5
        ),
    }
    for told, job in wrong.items():
        done = trainers.run("flows.cli", ["train", job_file(job)])
        assert (done.returncode, done.stdout) == (2, ""), told
        [line] = done.stderr.splitlines()
        assert told in line


def test_what_a_teacher_reads_beyond_the_student_counts_in_the_packs(make_job: MakeJob, examples_file: Path) -> None:
    """Its prompts share no opening here, so each is run whole: no pass runs more than the budget."""
    long = Path(make_job()["out"]).with_name("long.parquet")
    _with_teacher_prompts(examples_file, long, lambda i: chr(ord("a") + i) * 30)  # beside 10 to 20 of the student's
    raw = make_job("distill", examples=long, tokens_per_batch=200, tokens_per_micro_batch=120)
    job = job_from(JOBS[raw.pop("stage")], raw)
    assert isinstance(job, DistillJob)
    stage = DistillStage(job, make_tokenizer(), ALONE, Stop())
    packs = [indices for n in range(1, stage.total_steps + 1) for indices, _ in stage.step_rows(n)]
    read = [sum(stage.teacher_row(i).length for i in pack) for pack in packs]
    assert max(read) <= 120 < max(sum(stage.teacher_row(i).length for i in step) for step in stage.batches)
    assert max(map(len, packs)) > 1


def test_the_verb_train_carries_out_the_same_file(make_job: MakeJob, trainers: Preloaded) -> None:
    job = make_job("ppo", steps=1)
    for ends in ("done: 1 steps, model in", "done before: 1 steps, model in"):
        found = trainers.run("flows.cli", ["train", job_file(job)])
        assert found.returncode == 0
        assert found.stderr.splitlines()[-1] == f"{ends} {job['out']}/model"
    assert json.loads((Path(job["out"]) / "manifest.json").read_text())["steps"] == 1


def test_a_finished_job_is_not_run_again(make_job: MakeJob) -> None:
    out = run(make_job())
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    run(make_job())
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["steps"] == len(read_losses(out / "metrics.jsonl"))
    assert "model.safetensors" in manifest["model_files"]


def test_the_final_folder_is_a_model_that_has_learned(make_job: MakeJob) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Where 80 epochs end depends on the processor: one kind answers, another is a few steps short of it.
    out = run(make_job(epochs=160, dtype="float32", checkpoint_every=1000))
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    context = make_tokenizer()("q: 2 + 2? a: ", add_special_tokens=False)["input_ids"]
    tokens = model.generate(torch.tensor([context]), max_new_tokens=12, do_sample=False)[0, len(context) :].tolist()
    assert tokenizer.decode(tokens, skip_special_tokens=True).endswith("4.")
    assert tokens[-1] == tokenizer.eos_token_id


def test_a_job_that_came_to_no_step_may_be_mended_in_its_folder(make_job: MakeJob) -> None:
    """Its tokens, of the other setting, are made anew."""
    with pytest.raises(JobError, match="longer than max_length = 5 tokens: raise it"):
        run(make_job(max_length=5))
    assert (Path(make_job()["out"]) / "tokens").exists()
    out = run(make_job(prefill="a:"))
    whole = run(make_job(out="whole", prefill="a:"))
    assert read_losses(out / "metrics.jsonl") == read_losses(whole / "metrics.jsonl")


def test_weights_that_give_no_numbers_from_the_first_are_no_learning_rates_fault(
    make_job: MakeJob, tmp_path: Path
) -> None:
    broken = make_model()
    broken.model.norm.weight.data.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    make_tokenizer().save_pretrained(tmp_path / "broken")
    with pytest.raises(DivergedError, match=r"step 2: .*no update was made yet, so the weights or the data"):
        run(make_job(init=tmp_path / "broken"))


def test_another_job_in_the_same_folder_is_refused_field_by_field(make_job: MakeJob) -> None:
    run(make_job())
    run(make_job(checkpoint_every=99))
    with pytest.raises(JobError, match=r"another job's training \(learning_rate was 0\.003, now 0\.001\)"):
        run(make_job(learning_rate=1e-3))
    told = r"0\.003, now 0\.001; schedule was 'cosine', now 'linear'; optimizer_state was the default, now 'bfloat16'\)"
    with pytest.raises(JobError, match=told):
        run(make_job(learning_rate=1e-3, schedule="linear", optimizer_state="bfloat16"))


def test_a_checkpoint_of_another_job_is_refused_field_by_field(make_job: MakeJob) -> None:
    """Whoever copies checkpoints from one folder into another, or removes what binds them to a job."""
    with pytest.raises(Stopped):
        run(job := make_job(), Stop(Path(job["out"]) / "metrics.jsonl", after=4))
    other = make_job(out="other", learning_rate=1e-3)
    shutil.copytree(Path(job["out"]) / "checkpoints", Path(other["out"]) / "checkpoints")
    (Path(job["out"]) / "job-started.json").unlink()
    for wrong in (other, job | {"learning_rate": 1e-3}):
        with pytest.raises(JobError, match=r"step-000004 is of another job \(learning_rate was 0\.003, now 0\.001\)"):
            run(wrong)


def test_a_checkpoint_is_written_while_training_goes_on(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writing waits for two later steps, and it holds the weights of its own; the run comes to the same bits."""
    job = make_job(max_steps=8, checkpoint_every=3)
    plain = run(make_job(out="plain", max_steps=8, checkpoint_every=1, keep_checkpoints=8))
    real, metrics = checkpoint.write_folder, Path(job["out"]) / "metrics.jsonl"

    def write(folder: Path, *others: Any, **named: Any) -> None:
        if folder.name == "step-000003":
            wait_for(lambda: len(read_losses(metrics)) >= 5)
        real(folder, *others, **named)

    monkeypatch.setattr(checkpoint, "write_folder", write)
    out = run(job)
    for name in ("checkpoints/step-000003/model/model.safetensors", "model/model.safetensors"):
        assert (out / name).read_bytes() == (plain / name).read_bytes()


def test_examples_that_are_all_too_long_are_refused(make_job: MakeJob) -> None:
    with pytest.raises(JobError, match="all 12 examples are longer than max_length = 10"):
        run(make_job(max_length=10))


def test_a_folder_has_one_owner(make_job: MakeJob) -> None:
    job = make_job()
    with sole_owner(Path(job["out"])), pytest.raises(TrainingError, match="another process is training"):
        run(job)


def test_a_loss_that_is_no_number_stops_the_run(make_job: MakeJob) -> None:
    with pytest.raises(DivergedError, match="lower learning_rate") as caught:
        run(make_job(learning_rate=1e30, warmup_share=0.0, dtype="float32"))
    assert not caught.value.retryable


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: the kernel refuses the write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# The tiny model's weights are smaller than 100 kB, its trainer state (float32 weights and two moments) is larger: the
# first limit stops safetensors, the second one torch, and the two say so in different ways.
@pytest.mark.parametrize("size", [20_000, 100_000])
def test_a_disk_that_takes_no_more_is_not_tried_again(make_job: MakeJob, size: int) -> None:
    job = make_job()
    with (
        pytest.raises(DiskError, match=r"cannot write \S+/step-000003 \(File too large\); free some space") as caught,
        file_size_limit(size),
    ):
        run(job)
    assert not caught.value.retryable
    partial = Path(job["out"]) / "checkpoints/.step-000003.partial"
    assert (partial / "trainer").exists() == (size == 100_000)
    assert (run(job) / "manifest.json").exists()


def test_a_line_of_metrics_that_does_not_fit_on_the_disk(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", ALONE)
    log.keep(0)
    log.path.unlink()
    log.path.symlink_to("/dev/full")
    with pytest.raises(DiskError, match=r"metrics\.jsonl \(No space left on device\)"):
        log.append({"step": 1})


@pytest.mark.parametrize(
    ("number", "retryable"),
    [(errno.ENOSPC, False), (errno.EDQUOT, False), (errno.EROFS, False), (errno.EACCES, False), (errno.EIO, True)],
)
def test_which_refusals_of_the_disk_a_retry_may_mend(tmp_path: Path, number: int, retryable: bool) -> None:
    with pytest.raises(TrainingError, match=os.strerror(number)) as caught, disk_errors(tmp_path):
        raise OSError(number, os.strerror(number))
    assert caught.value.retryable is retryable


def test_the_exit_status_is_told_even_where_the_log_is_on_the_full_disk(make_job: MakeJob) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command(make_job(epoch=3)), stderr=full, check=False)
    assert done.returncode == 2


@pytest.fixture
def request_to_stop() -> Iterator[StopRequest]:
    """A real one: it comes by signal."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield StopRequest()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_stop_request_is_remembered(request_to_stop: StopRequest) -> None:
    assert not request_to_stop.received
    os.kill(os.getpid(), signal.SIGTERM)
    assert request_to_stop.received
    with pytest.raises(StopNow), request_to_stop.ends():
        pytest.fail("it came before the block")


def test_a_block_that_a_request_ends_is_not_interrupted_on_its_way_out(request_to_stop: StopRequest) -> None:
    left = []

    def interrupted() -> None:
        with request_to_stop.ends():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                left.append("it had gone on")
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                left.append("tidied up")

    with pytest.raises(StopNow):
        interrupted()
    assert left == ["tidied up"]


REFILLED = {"max_refills": 3, "steps": 8, "problems_per_step": 2, "kl_weight": 0.0}


@pytest.mark.parametrize(
    ("stage", "settings", "place"),
    [
        ("sft", {"epochs": 8}, (step, "backward")),
        ("grpo", {"steps": 8}, (step, "backward")),
        ("grpo", REFILLED, (LocalRollouts, "_sample_at_once")),  # the cursor has moved when it comes
    ],
)
def test_a_request_does_not_wait_for_the_step_in_progress(
    make_job: MakeJob,
    request_to_stop: StopRequest,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    settings: dict[str, int],
    place: tuple[Any, str],
) -> None:
    """Whatever takes long in it: the checkpoint is of the step before, and the same bits come of it."""
    common = settings | {"dtype": "float32", "checkpoint_every": 100}
    whole = run(make_job(stage, "whole", **common))
    job = make_job(stage, "left", **common)
    metrics = Path(job["out"]) / "metrics.jsonl"
    real = getattr(*place)

    def ask(*args: Any, **named: Any) -> Any:
        found = real(*args, **named)
        if metrics.exists() and len(read_metrics(metrics)) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(*place, ask)
        with pytest.raises(Stopped, match="after step 3 of"):
            run(job, request_to_stop)
    assert [path.name for path in (metrics.parent / "checkpoints").iterdir()] == ["step-000003"]
    run(job)
    assert read_metrics(metrics) == read_metrics(whole / "metrics.jsonl")


def test_a_row_counts_both_its_parts() -> None:
    assert Row([1, 2], [3]).length == 3
