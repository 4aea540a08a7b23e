"""All who look on while a run trains: validation, trackers, and the meter of MFU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from model.training.checkpoint import Checkpoints
from model.training.data import Tokenizer
from model.training.flops import Meter
from model.training.forward import Model
from model.training.job import Job
from model.training.loop import Watch
from model.training.parallel import World
from model.training.process import StopSignal
from model.training.step import Line, StepWork
from model.training.trackers import Trackers, open_trackers
from model.training.validation import Answers, Validation, open_validation


class Watching(Watch):
    """See `Watch`."""

    def __init__(self, job: Job, validation: Validation | None, trackers: Trackers, meter: Meter) -> None:
        self.every, self.validation, self.trackers, self.meter = job.validate_every, validation, trackers, meter

    def resumed(self, step: int) -> None:
        """See `Watch`."""
        if self.validation:
            self.validation.keep(step)
        self.trackers.open(step)

    def measured(self, work: StepWork, seconds: float) -> Line:
        """See `Watch`."""
        return self.meter.measured(work, seconds)

    def stepped(self, line: Line) -> None:
        """See `Watch`."""
        self.trackers.tell("train", line)

    def validate(self, step: int, total_steps: int, stop: StopSignal, checkpoints: Checkpoints) -> None:
        """See `Watch`: every `validate_every` steps, the first and the last one included."""
        if self.validation and (step % self.every == 0 or step == total_steps):
            line = self.validation.measure(step, stop, checkpoints)
            if line:
                self.trackers.tell("validation", line)


@contextmanager
def open_watch(
    job: Job, model: Model, tokenizer: Tokenizer, sampler: Answers | None, world: World
) -> Iterator[Watching]:
    """Everyone that a job asks to look on. Raises JobError for settings that do not fit."""
    with (
        open_trackers(job, world) as trackers,
        open_validation(job, model, tokenizer, sampler, world) as validation,
    ):
        yield Watching(job, validation, trackers, Meter(job, model, world))
