"""What a check may look at (`Scored`), what it says (`Judgement`), and the form all checks have (`Check`).

A check is a pure function of one sample: no file, no clock, no other sample. It says `fail` for what the
model did wrong, `unscorable` where there is nothing to compare with, and never raises for a sample's content;
time-outs, crashes and a check's own bugs become `error` in `model/rewards/workers/pool.py`. Comparing samples with
one another (duplicates, pass rates) is not a check of this form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from model.records import Problem, Sample, Status
from model.templates import split_completion


@dataclass(frozen=True, slots=True)
class Scored:
    """One sample beside its problem: all that a check may look at. Lengths are in tokens."""

    text: str  # the whole assistant message, the template's opening tag included
    gold: str | None = None
    prompt: str = ""
    tests: str | None = None
    domain: str = "math"
    sample_id: str = ""
    problem_id: str = ""
    reasoning: str | None = None
    answer: str | None = None
    finish_reason: str = "stop"
    completion_tokens: int = 0
    max_tokens: int = 0


def scored(problem: Problem, sample: Sample) -> Scored:
    """The two records side by side, as checks see them."""
    return Scored(
        text=sample.text,
        gold=problem.gold,
        prompt=problem.prompt,
        tests=problem.tests,
        domain=problem.domain,
        sample_id=sample.sample_id,
        problem_id=problem.problem_id,
        reasoning=sample.reasoning,
        answer=sample.answer,
        finish_reason=sample.finish_reason,
        completion_tokens=sample.completion_tokens,
        max_tokens=sample.max_tokens,
    )


def scored_completion(
    problem: Problem, text: str, *, finish_reason: str, completion_tokens: int, max_tokens: int, sample_id: str = ""
) -> Scored:
    """A completion that is no stored sample (an evaluation's answer, a rollout), split as a sample would be."""
    reasoning, answer = split_completion(text)
    return Scored(
        text=text,
        gold=problem.gold,
        prompt=problem.prompt,
        tests=problem.tests,
        domain=problem.domain,
        sample_id=sample_id,
        problem_id=problem.problem_id,
        reasoning=reasoning,
        answer=answer,
        finish_reason=finish_reason,
        completion_tokens=completion_tokens,
        max_tokens=max_tokens,
    )


@dataclass(frozen=True, slots=True)
class Judgement:
    """One check's word on one sample. `score` is in [0, 1] unless the check's file says otherwise."""

    verdict: Status
    score: float | None
    reason: str
    detail: str | None = None


class Check(Protocol):
    """A named, versioned function of one sample. `warm_up` loads what the first call would wait for."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def warm_up(self) -> None: ...

    def __call__(self, item: Scored) -> Judgement: ...


def passed(reason: str, score: float = 1.0, detail: str | None = None) -> Judgement:
    """A `pass` with its reason."""
    return Judgement(Status.PASS, score, reason, detail)


def failed(reason: str, score: float = 0.0, detail: str | None = None) -> Judgement:
    """A `fail`: the model's doing."""
    return Judgement(Status.FAIL, score, reason, detail)


def unscorable(reason: str, detail: str | None = None) -> Judgement:
    """Nothing to compare with; no score."""
    return Judgement(Status.UNSCORABLE, None, reason, detail)


def errored(reason: str, detail: str | None = None) -> Judgement:
    """The check could not be carried out; no score, and never a fail."""
    return Judgement(Status.ERROR, None, reason, detail)
