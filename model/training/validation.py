"""Validation of the model in training: before the first step, every N steps, at the end.

It answers problems that are kept apart. Prompts are as the student sees them, answers are sampled by the job's own
sampler and judged by the checks that choose training data, under the same rule. One line for each time in
`validation.jsonl`. What is trained is the same bit for bit with and without it: it draws from a random stream of its
own, seeded by job and step. A run goes on from a checkpoint with the lines up to that step; so none is lost, and none
is there twice. Lines that other settings measured (which are no part of a job's identity, unless it keeps the best) are
dropped. Where several processes train, each answers its share, and the leading one judges and writes.

Not promised: the same answers where a vLLM samples (model/training/vllm_rollouts.py says why).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from model.metrics import answer_metrics
from model.records import FinishReason, Problem
from model.rewards.check import scored_completion
from model.rewards.rule import is_right
from model.rewards.settings import CheckSettings
from model.rewards.workers.pool import VerifierPool
from model.training.best import METRIC, BestWeights, best_step
from model.training.checkpoint import Checkpoints, complete_checkpoints, write_file
from model.training.data import Tokenizer
from model.training.forward import Model
from model.training.job import Job, JobError, Keep
from model.training.lines import read_lines
from model.training.manifest import validation_identity
from model.training.parallel import World
from model.training.problems import read_problems
from model.training.process import StopSignal
from model.training.rollouts import LocalRollouts
from model.training.step import Line

FILE = "validation.jsonl"


@dataclass(frozen=True)
class Answer:
    """One completion: its text up to and with the stop text, and its length in tokens."""

    text: str
    finish_reason: FinishReason
    tokens: int


class Answers(Protocol):
    """A sampler of answers. Randomness comes from torch's generator."""

    at_once: int  # completions asked for together

    def current(self) -> AbstractContextManager[Any]:
        """A block in which `answers` draws from the model as it was at its beginning."""
        ...

    def answers(self, contexts: Sequence[str]) -> list[Answer]:
        """One completion of every context (prompt and prefill), in order."""
        ...


class LocalAnswers:
    """The model in training answers by itself, some completions at a time."""

    def __init__(self, job: Job, model: Model, tokenizer: Tokenizer, world: World) -> None:
        self.at_once = job.validation_batch * world.size
        self.rollouts = LocalRollouts(
            model,
            tokenizer,
            world,
            temperature=job.validation_temperature,
            max_tokens=job.validation_max_tokens,
            stop=job.validation_stop,
            top_p=job.validation_top_p,
        )

    def current(self) -> AbstractContextManager[Any]:
        """See `Answers`."""
        return nullcontext()

    def answers(self, contexts: Sequence[str]) -> list[Answer]:
        """See `Answers`."""
        found = self.rollouts.sample(contexts)
        return [Answer(one.text, one.finish_reason, len(one.row.completion)) for one in found]


class Validation:
    """The validation of one run; `open_validation` makes it."""

    def __init__(
        self, job: Job, model: Model, tokenizer: Tokenizer, sampler: Answers, pool: VerifierPool, world: World
    ) -> None:
        """`pool`, begun in the leading process, judges there."""
        self.job, self.model, self.tokenizer, self.sampler, self.pool = job, model, tokenizer, sampler, pool
        self.world = world
        assert job.validation is not None, "open_validation has looked"
        self.asked = [problem for problem in asked_problems(job) for _ in range(job.validation_samples)]
        self.best = BestWeights(job, world)
        self.lines: list[Line] = world.led(lambda: read_lines(job.out / FILE) if self._are_of_these_settings() else [])

    def keep(self, step: int) -> None:
        """Drops the lines after the checkpoint that a run goes on from."""
        self.lines = [line for line in self.lines if line["step"] <= step]
        self._write()

    def measure(self, step: int, stop: StopSignal, checkpoints: Checkpoints) -> Line | None:
        """Has the model answer, unless this step's line is there; the line, None where there is no new one.

        A stop that is asked for meanwhile ends it without a line: the run that goes on from here comes to it again.
        """
        if any(line["step"] == step for line in self.lines):
            return None
        started = time.perf_counter()
        answers = self._answers(step, stop)
        if answers is None:
            return None
        line: Line = self.world.led(
            lambda: {"step": step, **self._measured(answers), "seconds": time.perf_counter() - started}
        )
        is_best = best_step([*self.lines, line]) == step
        if is_best and step:
            self.best.save(step, self.model, self.tokenizer)
        self.lines.append(line)
        self._write()
        if is_best:
            checkpoints.wait()  # one that appeared in between would be resumed from without its own best
            if self.world.leads:
                kept = complete_checkpoints(checkpoints.folder)
                self.best.prune(self.lines, [int(path.name.removeprefix("step-")) for path in kept])
        return line

    def _are_of_these_settings(self) -> bool:
        """Whether the lines so far were measured as the next ones will be; notes how that is."""
        path, wanted = self.job.out / "validation-settings.json", json.dumps(validation_identity(self.job))
        same = path.exists() and path.read_text(encoding="utf-8") == wanted
        if not same:
            write_file(path, wanted)
        return same

    def kept_step(self, last: int) -> int:
        """The step whose weights the job keeps."""
        best = best_step(self.lines) if self.job.keep is Keep.BEST else None
        return last if best is None else best

    def results(self) -> dict[str, Any]:
        """What the manifest says of it; nothing where no answer could ever be judged."""
        best = best_step(self.lines)
        values = {int(line["step"]): line[METRIC] for line in self.lines if METRIC in line}
        return {} if best is None else {"metric": METRIC, "best_step": best, "best": values[best]}

    def _answers(self, step: int, stop: StopSignal) -> list[Answer] | None:
        contexts = [problem.prompt + self.job.prefill for problem in self.asked]
        found: list[Answer] = []
        with own_randomness(self.job, step, self.model.device), self.sampler.current():
            for start in range(0, len(contexts), self.sampler.at_once):
                if self.world.any(stop.received):
                    return None
                found += self.sampler.answers(contexts[start : start + self.sampler.at_once])
        return found

    def _measured(self, answers: Sequence[Answer]) -> Line:
        """pass@1, pass@k, cons@N: means over the problems of which an answer could be judged; lengths in tokens."""
        job = self.job
        items = [
            scored_completion(
                problem,
                job.prefill + answer.text,
                finish_reason=answer.finish_reason,
                completion_tokens=answer.tokens,
                max_tokens=job.validation_max_tokens,
            )
            for problem, answer in zip(self.asked, answers, strict=True)
        ]
        judged = [is_right(job.validation_require, judgements) for judgements in self.pool.judge(items)]
        by_problem: dict[str, list[tuple[bool, str | None]]] = {}
        for item, right in zip(items, judged, strict=True):
            if right is not None:
                by_problem.setdefault(item.problem_id, []).append((right, item.answer))
        samples = job.validation_samples
        values = answer_metrics(list(by_problem.values()), sorted({1, samples}), samples)
        line = {name: sum(each) / len(each) for name, each in values.items() if each}
        cut = sum(answer.finish_reason is FinishReason.LENGTH for answer in answers)
        return line | {
            "problems": len(by_problem),
            "samples": sum(map(len, by_problem.values())),
            "completion_length": sum(answer.tokens for answer in answers) / len(answers),
            "truncated_share": cut / len(answers),
        }

    def _write(self) -> None:
        if self.world.leads:
            write_file(self.job.out / FILE, "".join(json.dumps(line) + "\n" for line in self.lines))


@contextmanager
def open_validation(
    job: Job, model: Model, tokenizer: Tokenizer, sampler: Answers | None, world: World
) -> Iterator[Validation | None]:
    """The validation that a job asks for, with its checks in a worker process; None where it asks for none.

    `sampler`: what answers in place of the model in this process. Raises JobError for settings that do not fit.
    """
    require_settings(job)
    if not job.validate_every:
        yield None
        return
    settings = CheckSettings.of(job.validation_check_settings)
    timeout = job.validation_check_timeout_seconds
    pool = VerifierPool(job.validation_checks, settings, workers=1, timeout_seconds=timeout)
    with pool if world.leads else nullcontext():
        yield Validation(job, model, tokenizer, sampler or LocalAnswers(job, model, tokenizer, world), pool, world)


def require_settings(job: Job) -> None:
    """Raises JobError where a job cannot be validated as it asks for."""
    if not job.validate_every:
        if job.keep is Keep.BEST:
            raise JobError('keep = "best" needs validate_every: without validation no step is the best')
        return
    if job.validation is None:
        raise JobError("validate_every needs the field 'validation', a file of problems that are never trained on")
    if job.validation_limit < 0:
        raise JobError(f"validation_limit must not be negative, got {job.validation_limit}")
    for name in ("validation_samples", "validation_max_tokens", "validation_batch"):
        if getattr(job, name) < 1:
            raise JobError(f"{name} must be at least 1, got {getattr(job, name)}")


@contextmanager
def own_randomness(job: Job, step: int, device: torch.device) -> Iterator[None]:
    """Seeds torch for one validation, unlike any training step, and puts its generators back afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(-1 - job.step_seed(step))
        yield


def asked_problems(job: Job) -> list[Problem]:
    """The problems that every validation asks about: ids are hashes, so the lowest are a draw that stays the same."""
    problems: list[Problem] = read_problems(job.validation) if job.validation else []
    if not job.validation_limit:
        return problems
    return sorted(problems, key=lambda problem: problem.problem_id)[: job.validation_limit]


def contexts_of(job: Job) -> list[str]:
    """Every context that validation asks about, for who has to make room for them."""
    return [problem.prompt + job.prefill for problem in asked_problems(job)] if job.validate_every else []
