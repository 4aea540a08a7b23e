"""What is done where training goes wrong: which updates are not made, when weights are broken, and what comes then.

An update whose loss or gradient is no number, or a spike, is not made: once, it may be the batch's fault. Twice in a
row, it is the weights': training goes back to the last checkpoint before the update after which it began, and leaves
that one out. Spikes that are still there then were the batches' after all, and training goes on without those.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import islice
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
from model.training.lines import MetricsLog
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


def broken_by(lines: Sequence[Line], bad: BadBatches) -> Broken | None:
    """Are the weights broken, after the last two steps that had anything to give? None: they are not, or one step
    alone says so, or spikes that going back has not helped against."""
    last = list(islice((line for line in reversed(lines) if _doubtful(line) or "grad_norm" in line), 2))
    if len(last) < 2 or not all(map(_doubtful, last)):
        return None
    if any("nonfinite" in line for line in last):
        return Broken.NO_NUMBERS
    return Broken.SPIKE if last[0]["step"] > bad.noticed else None


def _doubtful(line: Line) -> bool:
    return "nonfinite" in line or "spikes" in line


def broken_at_end(
    last: Line, model: Model, tokenizer: Tokenizer, optimizer: MasterAdamW, stage: Stage
) -> Broken | None:
    """After the last step, whose weights no other step tries: are they no numbers, or do they give none?"""
    broken = optimizer.world.any(not all_finite(trained_state(optimizer, stage).values()))
    broken = broken or ("nonfinite" in last and not gives_numbers(model, tokenizer, optimizer))
    return Broken.NO_NUMBERS if broken else None


def gives_numbers(model: Model, tokenizer: Tokenizer, optimizer: MasterAdamW) -> bool:
    """Are loss and gradient numbers on tokens of no batch? Changes nothing."""
    tokens = [tokenizer.eos_token_id] * 4
    batch = collate([Row(tokens, tokens)], [1.0], optimizer.world.device)

    def part(logits_CV: Tensor, rows: slice) -> Part:
        return sft_part(logits_CV, batch.targets_N[rows], batch.weights_N[rows])

    loss = accumulate(model, optimizer, [MicroBatch(batch, Kernel(part))])["loss"]
    norm = optimizer.step(0.0, 1.0, -1.0)  # no gradient is that short; they are gone afterwards
    return math.isfinite(loss) and math.isfinite(norm)


def go_back(
    broken: Broken,
    log: MetricsLog,
    bad: BadBatches,
    checkpoints: Checkpoints,
    optimizer: MasterAdamW,
    stage: Stage,
) -> int:
    """Puts back the last good checkpoint, from which the update that broke the weights is left out; its step.

    Raises DivergedError or StartOverError where there is none.
    """
    checkpoints.wait()
    blamed = last_update(log.lines)
    if blamed:
        checkpoints.distrust(blamed, broken)
    step = checkpoints.restore(optimizer, stage)
    rate = "learning_rate or value_learning_rate" if stage.beside else "learning_rate"
    bad.add(broken, log.lines, blamed, step, rate)
    if bad.world.leads:
        say(f"step {log.lines[-1]['step']:.0f}: {broken}: back to the checkpoint of step {step}, without step {blamed}")
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
    """Steps whose update is not made again, as the weights were broken after it.

    `skipped.json` keeps them: the `step`, at which later one it was `noticed`, and `why`.
    """

    def __init__(self, path: Path, world: World) -> None:
        self.path, self.world = path, world
        text = world.led(lambda: path.read_text(encoding="utf-8") if path.exists() else "[]")
        self.returns: list[dict[str, Any]] = json.loads(text)

    @property
    def steps(self) -> list[int]:
        """The steps that are left out."""
        return [each["step"] for each in self.returns]

    @property
    def noticed(self) -> int:
        """The latest step from which training went back."""
        return max((each["noticed"] for each in self.returns), default=0)

    def add(self, broken: Broken, lines: Sequence[Line], blamed: int, back_to: int, rate: str) -> None:
        """Notes the update of the step `blamed` (0: there was none), from which a run goes back to a checkpoint.

        Raises DivergedError, which names the setting `rate`, where that can hardly help: it was tried too often, or
        there is only the beginning (`back_to` = 0) to go back to, and it was tried before or the first of all updates
        broke the weights, as no batch does. StartOverError the first time from the beginning.
        """
        last = int(lines[-1]["step"])
        found = f"step {last}: {broken}"
        at_once = not back_to and (bool(self.returns) or blamed == next(_updates(lines), 0))
        if not blamed or len(self.returns) >= MOST_RETURNS or at_once:
            tried = f" (going back and leaving out steps {self.steps} did not help)" if self.returns else ""
            raise DivergedError(f"{found}: lower {rate}{_REMEDIES[broken]}{tried}")
        self.returns.append({"step": blamed, "noticed": last, "why": broken})
        if self.world.leads:
            write_file(self.path, json.dumps(self.returns))
        if not back_to:
            raise StartOverError(
                f"{found} after step {blamed}, and no checkpoint lies before it: the same job starts over without it"
            )


_REMEDIES = {Broken.NO_NUMBERS: "", Broken.SPIKE: ", or raise spike_ratio"}
