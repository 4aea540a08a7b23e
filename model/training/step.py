"""One step of training: micro-batches → gradients of each, summed → clip → AdamW → one line of metrics.

The loss is a plain sum over tokens with weights made for the whole global batch, so cutting it into micro-batches
changes neither value nor gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch

from model.losses.head import Kernel
from model.training.data import TokenBatch
from model.training.forward import Model, backward
from model.training.job import Job
from model.training.optimizer import MasterAdamW, learning_rate

Line = dict[str, float]  # a step's metrics
Measure = Callable[["StepWork", float], Line]  # further metrics of a step that took so many seconds
Block = Callable[[], AbstractContextManager[None]]  # makes the blocks of a step which a stop request may end


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


@dataclass(frozen=True)
class Limits:
    """The largest loss and gradient norm with which an update is made: what is beyond is a spike."""

    loss: float = math.inf
    norm: float = math.inf


class Beside(Protocol):
    """What a stage trains beside its model, with an optimizer of its own (PPO's value model)."""

    optimizer: MasterAdamW

    def update(self, step: int) -> Mapping[str, float]:
        """One update, after each of the model's, on what `Stage.prepare` left; its metrics. Where one is no number, it
        was not made."""
        ...


class Stage(Protocol):
    """What a training stage has to say. One that remembers more than the step number is also `Stateful`."""

    left_out: int  # examples that could not be used
    tokens_at_once: int  # tokens_per_micro_batch, or fewer where those do not fit; the loss is the same

    @property
    def beside(self) -> Beside | None: ...

    @property
    def total_steps(self) -> int: ...

    def prepare(self, step: int) -> StepWork:
        """The work of step 1 … total_steps, a function of the step and the current weights."""
        ...


def run_step(
    job: Job,
    stage: Stage,
    model: Model,
    optimizer: MasterAdamW,
    step: int,
    limits: Limits = Limits(),
    measure: Measure | None = None,
    block: Block = nullcontext,
) -> Line:
    """One step: its line of metrics. Loss in nats, times in seconds; `tokens` are those of all rows.

    An update whose loss or gradient is no number, or beyond `limits`, is not made: `skipped` counts these, `nonfinite`
    those without numbers (`nonfinite_beside`: of what is trained beside the model alone), `spikes` the others,
    `updates` those made.
    """
    started = time.perf_counter()
    torch.manual_seed(job.step_seed(step))
    rate = learning_rate(job, step, stage.total_steps)
    with block():
        work = stage.prepare(step)
    prepared = time.perf_counter()
    line = {"step": step, "total_steps": stage.total_steps, "lr": rate, **finite(work.metrics)}
    updates = work.updates if optimizer.world.any(bool(work.micro_batches)) else 0
    made, nonfinite, nonfinite_beside = 0, 0, 0
    for update in range(updates):
        with nullcontext() if update else block():
            found = accumulate(model, optimizer, work.micro_batches)
        usual = math.isfinite(found["loss"]) and found["loss"] <= limits.loss
        found["grad_norm"] = optimizer.step(rate, job.grad_clip, limits.norm if usual else -1.0)
        beside = stage.beside.update(step) if stage.beside else {}
        numbers = math.isfinite(found["loss"]) and math.isfinite(found["grad_norm"])
        made += usual and numbers and found["grad_norm"] <= limits.norm
        nonfinite_beside += numbers and not all(map(math.isfinite, beside.values()))
        nonfinite += not numbers
        line |= finite(found) | finite(beside)
    line |= {"skipped": updates - made, "updates": made} if made < updates else {}
    counts = {"nonfinite": nonfinite + nonfinite_beside, "nonfinite_beside": nonfinite_beside}
    line |= {name: count for name, count in counts.items() if count}
    line |= {"spikes": updates - made - nonfinite} if made + nonfinite < updates else {}
    seconds = time.perf_counter() - started
    line |= {"seconds": seconds, "prepare_seconds": prepared - started}
    line["tokens_per_second"] = line.setdefault("tokens", 0) * work.updates / seconds
    return line | (measure(work, seconds) if measure else {})


def finite(metrics: Mapping[str, float]) -> Line:
    """Those that are numbers; JSON has no others."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def accumulate(model: Model, optimizer: MasterAdamW, micro_batches: Sequence[MicroBatch]) -> Line:
    """Gradients of the whole global batch, into the optimizer; its loss and the per-token means of its metrics."""
    own = {"loss": 0.0, "loss_tokens": 0.0, "tokens": 0.0}
    sums: Line = {}
    head = optimizer.head(model)
    for micro in micro_batches:
        part, metrics = backward(model, micro.tokens, micro.kernel, head)
        optimizer.collect()
        own["loss"] += part
        own["loss_tokens"] += micro.tokens.token_count
        own["tokens"] += micro.tokens.row_tokens
        sums |= {name: sums.get(name, 0.0) + value for name, value in metrics.items()}
    optimizer.collect_head(model, head)
    total = optimizer.world.sums(own)
    return total | {name: value / total["loss_tokens"] for name, value in optimizer.world.sums(sums).items()}
