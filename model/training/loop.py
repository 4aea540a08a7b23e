"""The one training loop. A stage (sft, distill, grpo) says only how a step's data become a loss.

    for every step: prepare micro-batches → gradients of each, summed → clip → AdamW → one line of metrics

The loss is a plain sum over tokens with weights made for the whole global batch, so cutting it into micro-batches
changes neither value nor gradient. A step is a function of (weights, optimizer state, job seed, step number): a run
that was killed and resumed from a checkpoint gives the same losses, bit for bit on a CPU with one thread.
One process, one device; sharding over GPUs is not done here.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from model.errors import TrainingError
from model.losses.head import Kernel
from model.training.checkpoint import disk_errors, restore_checkpoint, save_checkpoint, stage_state, write_file
from model.training.data import TokenBatch, Tokenizer
from model.training.degenerate import degenerate, require_healthy
from model.training.forward import Model, backward
from model.training.job import Job
from model.training.optimizer import MasterAdamW, learning_rate


@dataclass(frozen=True)
class MicroBatch:
    """Tokens that are run at once, and what their logits cost."""

    tokens: TokenBatch
    kernel: Kernel


@dataclass(frozen=True)
class StepWork:
    """One step's whole global batch, gone through `updates` times."""

    micro_batches: Sequence[MicroBatch]
    updates: int = 1
    metrics: Mapping[str, float] = field(default_factory=dict)  # known before the first update


class Stage(Protocol):
    """What a training stage has to say."""

    left_out: int  # examples that could not be used

    @property
    def total_steps(self) -> int: ...

    def prepare(self, step: int) -> StepWork:
        """The work of step 1 … total_steps, a function of the step, the current weights and a Resumable's state."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """A stage that remembers more than the step number; its state goes into every checkpoint."""

    def state_dict(self) -> dict[str, int]: ...

    def load_state_dict(self, state: Mapping[str, int]) -> None: ...


class Stopped(Exception):  # noqa: N818 - a request that was met, not an error
    """The process was asked to stop, and has written a checkpoint."""


class DivergedError(TrainingError):
    """The loss is no longer a number. Steps are reproducible, so a retry would come to the same one."""

    retryable = False


class StopSignal(Protocol):
    """Has someone asked the process to stop?"""

    received: bool


def train(job: Job, stage: Stage, model: Model, tokenizer: Tokenizer, stop: StopSignal) -> dict[str, float]:
    """Trains `model` in place from the last checkpoint to the last step; returns the last step's metrics.

    Raises:
        Stopped: `stop` was received; a checkpoint of the step that had just ended is on disk.
        DivergedError: the loss is no longer a number.
        DegenerateError: the run learns nothing; a checkpoint of its last step is on disk.
        DiskError: the disk takes no more.
    """
    optimizer = MasterAdamW(model, job.weight_decay)
    checkpoints = job.out / "checkpoints"
    begun = restore_checkpoint(checkpoints, optimizer)
    if begun and isinstance(stage, Resumable):
        stage.load_state_dict(stage_state(checkpoints))
    log = MetricsLog(job.out / "metrics.jsonl", keep=begun)
    require_healthy(job, log.lines)  # a run that was stopped for it does not go on as it is
    for step in range(begun + 1, stage.total_steps + 1):
        log.append(run_step(job, stage, model, optimizer, step))
        stops = stop.received or degenerate(job, log.lines)
        if stops or (step % job.checkpoint_every == 0 and step < stage.total_steps):
            state = stage.state_dict() if isinstance(stage, Resumable) else {}
            save_checkpoint(checkpoints, step, model, tokenizer, optimizer, state)
        require_healthy(job, log.lines)
        if stops:
            raise Stopped(f"stopped after step {step} of {stage.total_steps}; start the same job to go on")
    return log.lines[-1] if log.lines else {}


def run_step(job: Job, stage: Stage, model: Model, optimizer: MasterAdamW, step: int) -> dict[str, float]:
    """One step: its line of metrics. Loss in nats, times in seconds; `tokens` are positions run, padding included."""
    started = time.perf_counter()
    torch.manual_seed(job.seed * 1_000_003 + step)
    rate = learning_rate(job, step, stage.total_steps)
    work = stage.prepare(step)
    prepared = time.perf_counter()
    line = {"step": step, "total_steps": stage.total_steps, "lr": rate, **work.metrics}
    for _ in range(work.updates if work.micro_batches else 0):
        line |= accumulate(model, optimizer, work.micro_batches)
        line["grad_norm"] = optimizer.step(rate, job.grad_clip)
        require_number(line)
    seconds = time.perf_counter() - started
    tokens = sum(micro.tokens.tokens_BT.numel() for micro in work.micro_batches)
    line |= {"tokens": tokens, "seconds": seconds, "prepare_seconds": prepared - started}
    line["tokens_per_second"] = tokens * work.updates / seconds
    return line


def accumulate(model: Model, optimizer: MasterAdamW, micro_batches: Sequence[MicroBatch]) -> dict[str, float]:
    """Gradients of the whole global batch, into the optimizer; its loss and the per-token means of its metrics."""
    loss, sums = 0.0, dict[str, float]()
    by_head_VH = optimizer.gradient_of(model.get_output_embeddings().weight)
    for micro in micro_batches:
        part, metrics = backward(model, micro.tokens, micro.kernel, by_head_VH)
        optimizer.collect()
        loss += part
        sums = {name: sums.get(name, 0.0) + value for name, value in metrics.items()}
    tokens = sum(micro.tokens.token_count for micro in micro_batches)
    return {"loss": loss, "loss_tokens": tokens} | {name: value / tokens for name, value in sums.items()}


def require_number(line: Mapping[str, float]) -> None:
    """Raises DivergedError where loss or gradient is infinite or not a number."""
    if not math.isfinite(line["loss"]) or not math.isfinite(line["grad_norm"]):
        raise DivergedError(
            f"step {line['step']:.0f}: loss {line['loss']}, gradient norm {line['grad_norm']}: lower learning_rate"
        )


class MetricsLog:
    """`metrics.jsonl`, one object per step. Lines after the checkpoint that a run goes on from are dropped."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        write_file(path, "".join(lines[:keep]))
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in lines[:keep]]

    def append(self, line: Mapping[str, float]) -> None:
        """Adds one step, visible to readers at once."""
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(dict(line))
