"""The one training loop. A stage (sft, distill, on_policy, …) says only how a step's data become a loss (`step.py`).

A step is a function of (weights, optimizer state, job seed, step number): a run that was killed and resumed from a
checkpoint gives the same losses, bit for bit on a CPU with as many threads. How several processes share a step's work
is `parallel.py`'s business; what comes after broken weights, `recovery.py`'s.
"""

from __future__ import annotations

import copy
from contextlib import closing, nullcontext
from typing import Any

from model.training.checkpoint import Checkpoints, stage_state
from model.training.data import Tokenizer
from model.training.degenerate import degenerate, require_healthy
from model.training.forward import Model
from model.training.job import Job, RolloutJob
from model.training.manifest import identity_of
from model.training.metrics_log import MetricsLog
from model.training.optimizer import MasterAdamW
from model.training.parallel import World
from model.training.process import StopNow, Stopped, StopRequest, StopSignal, say
from model.training.recovery import Recovery, doubtful, usual_limits
from model.training.step import Block, Line, Stage, StepWork, run_step


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
            there was none, or it gave no numbers, or a spike.
        DivergedError: loss or gradient are no numbers any more, and going back did not help.
        StartOverError: it is so before the first checkpoint; the same job begins again without the step at fault.
        DegenerateError: the run learns nothing; a checkpoint of its last step is on disk.
        DiskError: the disk takes no more.
    """
    optimizer = MasterAdamW(model, job.weight_decay, job.dtype, world, job.optimizer_state)
    watch, block = watch or Watch(), stoppable(job, stop, world)
    log = MetricsLog(job.out / "metrics.jsonl", world)
    of_job = world.led(lambda: identity_of(job.out))
    with closing(Checkpoints(job.out / "checkpoints", job.dtype, world, job.keep_checkpoints, of_job)) as checkpoints:
        recovery = Recovery(job, log, checkpoints, optimizer, stage)
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
            if step in recovery.returns.left_out:
                log.append({"step": step, "total_steps": stage.total_steps, "skipped": 1})
            else:
                # Rollouts that are under way would be waited for.
                before = {} if block is nullcontext else copy.deepcopy(stage_state(stage))
                limits = usual_limits(job, log.lines)
                line = step_unless_stopped(job, stage, model, optimizer, step, limits, watch.measured, block)
                if line is None:
                    optimizer.drop_gradients()
                    if step - 1 > saved and not doubtful(log.lines[-1]):
                        say(f"asked to stop: the checkpoint of step {step - 1} is being written")
                        checkpoints.save(step - 1, model, tokenizer, optimizer, stage, before)
                    checkpoints.wait()
                    raise Stopped(stopped_after(step - 1, stage))
                log.append(line)
            broken = recovery.broken()
            if step == stage.total_steps and not broken:
                broken = recovery.broken_at_end(model, tokenizer)
            if broken:
                step = saved = recovery.go_back(broken)
                watch.resumed(step)
                continue
            watch.stepped(log.lines[-1])
            watch.validate(step, stage.total_steps, stop, checkpoints)
            stops = world.any(stop.received) or bool(degenerate(job, log.lines))
            due = step % job.checkpoint_every == 0 and step < stage.total_steps
            if (stops or due) and not doubtful(log.lines[-1]):
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
