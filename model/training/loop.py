"""The one training loop. A stage (sft, distill, on_policy, …) says only how a step's data become a loss.

    for every step: prepare micro-batches → gradients of each, summed → clip → AdamW → one line of metrics

The loss is a plain sum over tokens with weights made for the whole global batch, so cutting it into micro-batches
changes neither value nor gradient. A step is a function of (weights, optimizer state, job seed, step number): a run
that was killed and resumed from a checkpoint gives the same losses, bit for bit on a CPU with as many threads.
How several processes share a step's work is `parallel.py`'s business.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor

from model.errors import TrainingError
from model.losses.head import Kernel, Part
from model.losses.sft import sft_part
from model.training.checkpoint import Checkpoints, disk_errors, stage_state, trained_state, write_file
from model.training.data import Row, TokenBatch, Tokenizer, collate
from model.training.degenerate import degenerate, require_healthy
from model.training.forward import Model, backward
from model.training.job import Job, RolloutJob
from model.training.lines import read_lines
from model.training.optimizer import MasterAdamW, all_finite, learning_rate
from model.training.parallel import World
from model.training.process import StopNow, StopRequest, say

SPIKE_WINDOW = 50  # steps whose gradient norms say what is usual; half of them must be there
MOST_RETURNS = 3  # to a checkpoint, before training is given up

Line = dict[str, float]  # a step's metrics


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


class Watch:
    """Who looks on while a run trains, and changes nothing of what is trained. Here nobody; `watch.py` has the rest."""

    def resumed(self, step: int) -> None:
        """The run goes on from a step's checkpoint (0: from the beginning); what came after it is void."""

    def measured(self, _work: StepWork, _seconds: float) -> Line:
        """Further metrics of a step that took so long."""
        return {}

    def stepped(self, line: Line) -> None:
        """A step is done."""

    def validate(self, step: int, total_steps: int, stop: StopSignal, checkpoints: Checkpoints) -> None:
        """Called before the first step and after each."""


class Stopped(Exception):  # noqa: N818 - a request that was met, not an error
    """The process was asked to stop, and has written a checkpoint."""


class DivergedError(TrainingError):
    """The loss is no longer a number. Steps are reproducible, so a retry would come to the same one."""

    retryable = False


class StartOverError(TrainingError):
    """The loss is no longer a number, and no checkpoint lies before: the next attempt leaves out what broke it."""


class StopSignal(Protocol):
    """Has someone asked the process to stop?"""

    received: bool


def train(
    job: Job,
    stage: Stage,
    model: Model,
    tokenizer: Tokenizer,
    stop: StopSignal,
    world: World,
    watch: Watch | None = None,
) -> Line:
    """Trains `model` in place from the last checkpoint to the last step; returns the last step's metrics.

    Raises:
        Stopped: `stop` was received; a checkpoint of the last step that had ended is on disk, or of one before where
            there was none, or it gave no numbers.
        DivergedError: the loss is no number any more, and going back did not help.
        StartOverError: it is so before the first checkpoint; the same job begins again without the step at fault.
        DegenerateError: the run learns nothing; a checkpoint of its last step is on disk.
        DiskError: the disk takes no more.
    """
    optimizer = MasterAdamW(model, job.weight_decay, job.dtype, world)
    watch, block = watch or Watch(), stoppable(job, stop, world)
    log, bad = MetricsLog(job.out / "metrics.jsonl", world), BadBatches(job.out / "skipped.json", world)
    with closing(Checkpoints(job.out / "checkpoints", job.dtype, world, job.keep_checkpoints)) as checkpoints:
        step = saved = checkpoints.restore(optimizer, stage)
        log.keep(step)
        say_where(step, world)
        require_healthy(job, log.lines)  # a run that was stopped for it does not go on as it is
        watch.resumed(step)
        watch.validate(step, stage.total_steps, stop, checkpoints)
        if world.any(stop.received):
            raise Stopped(f"stopped before step {step + 1} of {stage.total_steps}; start the same job to go on")
        while step < stage.total_steps:
            step += 1
            if step in bad.steps:
                log.append({"step": step, "total_steps": stage.total_steps, "skipped": 1})
            else:
                # Rollouts that are under way would be waited for.
                before = {} if block is nullcontext else copy.deepcopy(stage_state(stage))
                limit = norm_limit(job, log.lines)
                line = step_unless_stopped(job, stage, model, optimizer, step, limit, watch, block)
                if line is None:
                    optimizer.drop_gradients()
                    if step - 1 > saved and "nonfinite" not in log.lines[-1]:
                        say(f"asked to stop: the checkpoint of step {step - 1} is being written")
                        checkpoints.save(step - 1, model, tokenizer, optimizer, stage, before)
                    checkpoints.wait()
                    raise Stopped(stopped_after(step - 1, stage))
                log.append(line)
            broken = no_numbers_twice(log.lines)
            if step == stage.total_steps and not broken:
                broken = is_broken(log.lines[-1], model, tokenizer, optimizer, stage)
            if broken:
                step = saved = go_back(log, bad, checkpoints, optimizer, stage)
                watch.resumed(step)
                continue
            watch.stepped(log.lines[-1])
            watch.validate(step, stage.total_steps, stop, checkpoints)
            stops = world.any(stop.received) or bool(degenerate(job, log.lines))
            due = step % job.checkpoint_every == 0 and step < stage.total_steps
            if (stops or due) and "nonfinite" not in log.lines[-1]:  # else the weights may be broken
                checkpoints.save(step, model, tokenizer, optimizer, stage)
                saved = step
            if stops:
                checkpoints.wait()
                require_healthy(job, log.lines)
                raise Stopped(stopped_after(step, stage))
    return log.lines[-1] if log.lines else {}


def say_where(step: int, world: World) -> None:
    """Says that a run goes on, and from which step; nothing of a new one."""
    if step and world.leads:
        say(f"going on from the checkpoint of step {step}")


def stopped_after(step: int, stage: Stage) -> str:
    return f"stopped after step {step} of {stage.total_steps}; start the same job to go on"


Block = Callable[[], AbstractContextManager[None]]


def stoppable(job: Job, stop: StopSignal, world: World) -> Block:
    """Makes the blocks of a step which a stop request ends at once, with StopNow: until its first update a step has
    changed no weight, and whoever goes on makes it again to the bit.

    Several processes do not leave, as they would have to agree on where they are; nor does a step for whose successor
    rollouts are under way already.
    """
    ahead = isinstance(job, RolloutJob) and job.rollouts_ahead
    return stop.ends if isinstance(stop, StopRequest) and world.size == 1 and not ahead else nullcontext


def step_unless_stopped(*arguments: Any) -> Line | None:
    """As `run_step`; None where a stop request ended it. What it held is gone then."""
    try:
        return run_step(*arguments)
    except StopNow:
        return None


def run_step(
    job: Job,
    stage: Stage,
    model: Model,
    optimizer: MasterAdamW,
    step: int,
    most_norm: float = math.inf,
    watch: Watch | None = None,
    block: Block = nullcontext,
) -> Line:
    """One step: its line of metrics. Loss in nats, times in seconds; `tokens` are those of all rows.

    An update whose gradient is no number, or longer than `most_norm`, is not made: `skipped` counts these, `nonfinite`
    those without numbers (`nonfinite_beside`: of what is trained beside the model alone), `updates` those made.
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
        found["grad_norm"] = optimizer.step(rate, job.grad_clip, most_norm if math.isfinite(found["loss"]) else -1.0)
        beside = stage.beside.update(step) if stage.beside else {}
        numbers = math.isfinite(found["loss"]) and math.isfinite(found["grad_norm"])
        made += numbers and found["grad_norm"] <= most_norm
        nonfinite_beside += numbers and not all(map(math.isfinite, beside.values()))
        nonfinite += not numbers
        line |= finite(found) | finite(beside)
    line |= {"skipped": updates - made, "updates": made} if made < updates else {}
    line |= {"nonfinite": nonfinite + nonfinite_beside} if nonfinite + nonfinite_beside else {}
    line |= {"nonfinite_beside": nonfinite_beside} if nonfinite_beside else {}
    seconds = time.perf_counter() - started
    line |= {"seconds": seconds, "prepare_seconds": prepared - started}
    line["tokens_per_second"] = line.setdefault("tokens", 0) * work.updates / seconds
    return line | (watch.measured(work, seconds) if watch else {})


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


def norm_limit(job: Job, lines: Sequence[Line]) -> float:
    """The gradient norm above which a step is a spike: `spike_ratio` times the median of the last updates' norms."""
    norms = [line["grad_norm"] for line in lines[-SPIKE_WINDOW:] if line.get("grad_norm") and "skipped" not in line]
    if not job.spike_ratio or len(norms) < SPIKE_WINDOW // 2:
        return math.inf
    return job.spike_ratio * median(norms)


def no_numbers_twice(lines: Sequence[Line]) -> bool:
    """Were loss or gradient no numbers in the last two steps that had any to give?

    Once, it may be the batch's fault; twice, it is the weights'.
    """
    last = list(islice((line for line in reversed(lines) if "nonfinite" in line or "grad_norm" in line), 2))
    return len(last) == 2 and all("nonfinite" in line for line in last)


def is_broken(last: Line, model: Model, tokenizer: Tokenizer, optimizer: MasterAdamW, stage: Stage) -> bool:
    """After the last step, whose weights no other step tries: are they no numbers, or do they give none?"""
    if optimizer.world.any(not all_finite(trained_state(optimizer, stage).values())):
        return True
    return "nonfinite" in last and not gives_numbers(model, tokenizer, optimizer)


def gives_numbers(model: Model, tokenizer: Tokenizer, optimizer: MasterAdamW) -> bool:
    """Are loss and gradient numbers on tokens of no batch? Changes nothing."""
    tokens = [tokenizer.eos_token_id] * 4
    batch = collate([Row(tokens, tokens)], [1.0], optimizer.world.device)

    def part(logits_CV: Tensor, rows: slice) -> Part:
        return sft_part(logits_CV, batch.targets_N[rows], batch.weights_N[rows])

    loss = accumulate(model, optimizer, [MicroBatch(batch, Kernel(part))])["loss"]
    norm = optimizer.step(0.0, 1.0, -1.0)  # no gradient is that short; they are gone afterwards
    return math.isfinite(loss) and math.isfinite(norm)


def go_back(log: MetricsLog, bad: BadBatches, checkpoints: Checkpoints, optimizer: MasterAdamW, stage: Stage) -> int:
    """Puts back the last good checkpoint, from which the update that broke the weights is left out; its step.

    Raises DivergedError or StartOverError where there is none.
    """
    checkpoints.wait()
    blamed = last_update(log.lines)
    if blamed:
        checkpoints.distrust(blamed)
    step = checkpoints.restore(optimizer, stage)
    bad.add(log.lines, blamed, step, "learning_rate or value_learning_rate" if stage.beside else "learning_rate")
    log.keep(step)
    return step


def last_update(lines: Sequence[Line]) -> int:
    """The last step that changed the weights, 0 where none has: what came after it had no numbers.

    Where only what is trained beside the model has none, the last step that changed that too.
    """
    last = lines[-1] if lines else {}
    beside = 0 < last.get("nonfinite", 0) == last.get("nonfinite_beside", 0)
    return next(_updates(line for line in reversed(lines) if not (beside and "nonfinite" in line)), 0)


def _updates(lines: Iterable[Line]) -> Iterator[int]:
    return (int(line["step"]) for line in lines if "grad_norm" in line and line.get("updates", "skipped" not in line))


class BadBatches:
    """Steps whose update is not made again: after it, the model gave no numbers any more. `skipped.json` keeps them."""

    def __init__(self, path: Path, world: World) -> None:
        self.path, self.world = path, world
        text = world.led(lambda: path.read_text(encoding="utf-8") if path.exists() else "[]")
        self.steps: list[int] = json.loads(text)

    def add(self, lines: Sequence[Line], blamed: int, back_to: int, rate: str) -> None:
        """Notes the update of the step `blamed` (0: there was none), from which a run goes back to a checkpoint.

        Raises DivergedError, which names the setting `rate`, where that can hardly help: it was tried too often, or
        there is only the beginning (`back_to` = 0) to go back to, and it was tried before or the first of all updates
        broke the weights, as no batch does. StartOverError the first time from the beginning.
        """
        found = f"step {lines[-1]['step']:.0f}: loss or gradient is no number"
        at_once = not back_to and (bool(self.steps) or blamed == next(_updates(lines), 0))
        if not blamed or len(self.steps) >= MOST_RETURNS or at_once:
            tried = f" (going back and leaving out steps {self.steps} did not help)" if self.steps else ""
            raise DivergedError(f"{found}: lower {rate}{tried}")
        self.steps.append(blamed)
        if self.world.leads:
            write_file(self.path, json.dumps(self.steps))
        if not back_to:
            raise StartOverError(
                f"{found} after step {blamed}, and no checkpoint lies before it: the same job starts over without it"
            )


class MetricsLog:
    """`metrics.jsonl`, one object per step, written by the leading process; `lines` holds them in all."""

    def __init__(self, path: Path, world: World) -> None:
        self.path, self.world = path, world
        self.lines: list[Line] = world.led(lambda: read_lines(path))

    def keep(self, steps: int) -> None:
        """Drops the lines after the checkpoint that a run goes on from."""
        self.lines = self.lines[:steps]
        if self.world.leads:
            write_file(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def append(self, line: Line) -> None:
        """Adds one step, visible to readers at once."""
        self.lines.append(line)
        if self.world.leads:
            with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
