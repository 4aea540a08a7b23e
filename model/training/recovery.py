"""What is done where training goes wrong: which updates are not made, when weights are broken, and what comes then.

An update whose loss or gradient is no number, or a spike, is not made: once, it may be the batch's fault. Twice in a
row, it is the weights': training goes back to the last checkpoint before the update after which it began, and leaves
that one out. Without numbers there is no other way, and after some returns training is given up. Spikes never end it:
those that are there again after a return were the batches' own, and then, without a checkpoint to go back to, or after
some returns, they only make no update.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import islice
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from model.errors import TrainingError
from model.losses.head import Kernel, Part
from model.losses.sft import sft_part
from model.training.checkpoint import Checkpoints, trained_state, write_file
from model.training.data import Row, Tokenizer, collate
from model.training.forward import Model
from model.training.job import Job, RolloutJob
from model.training.metrics_log import MetricsLog
from model.training.optimizer import MasterAdamW, all_finite
from model.training.parallel import World
from model.training.process import say
from model.training.step import Limits, Line, MicroBatch, Stage, accumulate

SPIKE_WINDOW = 50  # steps whose losses and gradient norms say what is usual; half of them must be there
MOST_RETURNS = 3  # to a checkpoint, before training is given up


class DivergedError(TrainingError):
    """The weights are broken, and going back does not help. Steps are reproducible: a retry would end the same."""

    retryable = False


class StartOverError(TrainingError):
    """The weights are broken, and no checkpoint lies before: the next attempt leaves out what broke them."""


class Broken(StrEnum):
    """By what one knows that weights are broken."""

    NO_NUMBERS = "loss or gradient is no number"
    SPIKE = "loss or gradient is far above what was usual"


def usual_limits(job: Job, lines: Sequence[Line]) -> Limits:
    """Beyond what a step is a spike: `spike_ratio` times the medians of the last updates.

    A loss that is not above the first one is none, nor is a gradient that needs no clipping: with the last examples
    learned by heart both medians are near 0. The losses of stages that sample lie around 0 by themselves, and say
    nothing.
    """
    made = [line for line in lines[-SPIKE_WINDOW:] if line.get("grad_norm") and "skipped" not in line]
    if not job.spike_ratio or len(made) < SPIKE_WINDOW // 2:
        return Limits()
    norm = max(job.grad_clip, job.spike_ratio * median(line["grad_norm"] for line in made))
    if isinstance(job, RolloutJob):
        return Limits(norm=norm)
    first = next(line["loss"] for line in lines if "loss" in line)
    return Limits(loss=max(first, job.spike_ratio * median(line["loss"] for line in made)), norm=norm)


def doubtful(line: Line) -> bool:
    """Does the step say that the weights may be broken?"""
    return "nonfinite" in line or "spikes" in line


def gives_numbers(model: Model, tokenizer: Tokenizer, optimizer: MasterAdamW) -> bool:
    """Are loss and gradient numbers on tokens of no batch? Changes nothing."""
    tokens = [tokenizer.eos_token_id] * 4
    batch = collate([Row(tokens, tokens)], [1.0], optimizer.world.device)

    def part(logits_CV: Tensor, rows: slice) -> Part:
        return sft_part(logits_CV, batch.targets_N[rows], batch.weights_N[rows])

    loss = accumulate(model, optimizer, [MicroBatch(batch, Kernel(part))])["loss"]
    norm = optimizer.step(0.0, 1.0, -1.0)  # no gradient is that short; they are gone afterwards
    return math.isfinite(loss) and math.isfinite(norm)


def last_update(lines: Sequence[Line]) -> int:
    """The last step that changed the weights, 0 where none has: what came after it had no numbers.

    Where only what is trained beside the model has none, the last step that changed that too.
    """
    last = lines[-1] if lines else {}
    beside = 0 < last.get("nonfinite", 0) == last.get("nonfinite_beside", 0)
    return next(_updates(line for line in reversed(lines) if not (beside and "nonfinite" in line)), 0)


def _updates(lines: Iterable[Line]) -> Iterator[int]:
    return (int(line["step"]) for line in lines if "grad_norm" in line and line.get("updates", "skipped" not in line))


class Returns:
    """Goings back to a checkpoint, each with the step whose update is not made again: after it, weights were broken.

    `skipped.json` keeps them: the `step`, at which later one it was `noticed`, and `why`.
    """

    def __init__(self, path: Path, world: World) -> None:
        self.path, self.world = path, world
        text = world.led(lambda: path.read_text(encoding="utf-8") if path.exists() else "[]")
        self.all: list[dict[str, Any]] = json.loads(text)

    @property
    def left_out(self) -> list[int]:
        """The steps whose updates are not made again."""
        return [each["step"] for each in self.all]

    @property
    def noticed(self) -> int:
        """The latest step whose spikes training went back from."""
        return max((each["noticed"] for each in self.all if each["why"] == Broken.SPIKE), default=0)

    def notice(self, step: int) -> None:
        """Spikes up to here are there after a return as well."""
        if step > self.noticed:
            max((each for each in self.all if each["why"] == Broken.SPIKE), key=itemgetter("noticed"))["noticed"] = step
            self._write()

    def count(self, why: Broken) -> int:
        """How often training went back for this."""
        return sum(each["why"] == why for each in self.all)

    def add(self, why: Broken, lines: Sequence[Line], blamed: int, back_to: int, remedy: str) -> None:
        """Notes the update of the step `blamed` (0: there was none), from which a run goes back to a checkpoint.

        Raises DivergedError, with the remedy, where numbers are missing and that can hardly help: it was tried too
        often, or there is only the beginning (`back_to` = 0) to go back to, and it was tried before or the first of all
        updates broke the weights, as no batch does, or none was made. Else StartOverError from the beginning.
        """
        last = int(lines[-1]["step"])
        found, before = f"step {last}: {why}", self.count(why)
        at_once = not back_to and (before > 0 or blamed == next(_updates(lines), 0))
        if why is Broken.NO_NUMBERS and (not blamed or before >= MOST_RETURNS or at_once):
            tried = f" (going back and leaving out steps {self.left_out} did not help)" if before else ""
            raise DivergedError(f"{found}: {remedy}{tried}")
        self.all.append({"step": blamed, "noticed": last, "why": why})
        self._write()
        if not back_to:
            raise StartOverError(
                f"{found} after step {blamed}, and no checkpoint lies before it: the same job starts over without it"
            )

    def _write(self) -> None:
        if self.world.leads:
            write_file(self.path, json.dumps(self.all))


class Recovery:
    """Of one run: it looks at each step's line, and puts back a checkpoint."""

    def __init__(
        self, job: Job, log: MetricsLog, checkpoints: Checkpoints, optimizer: MasterAdamW, stage: Stage
    ) -> None:
        self.job, self.log, self.checkpoints, self.optimizer, self.stage = job, log, checkpoints, optimizer, stage
        self.returns = Returns(job.out / "skipped.json", optimizer.world)

    def broken(self) -> Broken | None:
        """Are the weights broken, after the last two steps that had anything to give? None: they are not, or one step
        alone says so."""
        lines = (line for line in reversed(self.log.lines) if doubtful(line) or "grad_norm" in line)
        last = list(islice(lines, 2))
        if len(last) < 2 or not all(map(doubtful, last)):
            return None
        if all("nonfinite" in line for line in last):
            return Broken.NO_NUMBERS
        return self._by_spikes(since=int(last[1]["step"]))

    def broken_at_end(self, model: Model, tokenizer: Tokenizer) -> Broken | None:
        """After the last step, whose weights no other one tries: are they no numbers, or do they give none, or a
        spike?"""
        last, state = self.log.lines[-1], trained_state(self.optimizer, self.stage).values()
        broken = self.optimizer.world.any(not all_finite(state))
        if broken or ("nonfinite" in last and not gives_numbers(model, tokenizer, self.optimizer)):
            return Broken.NO_NUMBERS
        return self._by_spikes(since=int(last["step"])) if "spikes" in last else None

    def _by_spikes(self, since: int) -> Broken | None:
        """Do the spikes from step `since` to the last one send training back? Not again, nor what adjoins them.

        Whether a checkpoint lies before follows from the steps: one that a stop request left changes nothing.
        """
        lines, every = self.log.lines, self.job.checkpoint_every
        if since <= self.returns.noticed:
            self.returns.notice(int(lines[-1]["step"]))
            return None
        blamed = last_update(lines)
        due = any(line["step"] % every == 0 and not doubtful(line) for line in lines[: max(0, blamed - 1)])
        again = due and self.returns.count(Broken.SPIKE) < MOST_RETURNS and self.checkpoints.any_before(blamed)
        return Broken.SPIKE if again else None

    def go_back(self, broken: Broken) -> int:
        """Puts back the last good checkpoint, from which the update that broke the weights is left out; its step.

        Raises DivergedError or StartOverError where there is none.
        """
        self.checkpoints.wait()
        lines, blamed = self.log.lines, last_update(self.log.lines)
        if blamed:
            self.checkpoints.distrust(blamed, broken)
        step = self.checkpoints.restore(self.optimizer, self.stage)
        remedy = "lower learning_rate or value_learning_rate" if self.stage.beside else "lower learning_rate"
        if not blamed and not self.stage.beside:
            remedy = "no update was made yet, so the weights or the data that it begins with give none"
        self.returns.add(broken, lines, blamed, step, remedy)
        if self.optimizer.world.leads:
            say(f"step {lines[-1]['step']:.0f}: {broken}: back to the checkpoint of step {step}, without step {blamed}")
        self.log.keep(step)
        return step
