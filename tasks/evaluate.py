"""One model on the held-out problems: sample, verify with the same checks, and write pass@k and cons@N with intervals.

An answer counts as right when it passes every check that the recipe's accept rule requires. An evaluation is
keyed by what it measured (weights, template, sampling, problems, checks), so asking twice measures once; its
samples are kept beside it, to read why.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from model.metrics import answer_metrics, bootstrap_interval
from model.records import (
    EVALUATION_SCHEMA,
    Evaluation,
    Problem,
    Provenance,
    Status,
    content_hash,
    sample_id,
    sample_seed,
    to_table,
)
from model.rewards.check import Judgement, Scored, scored_completion
from model.rewards.rule import first_loss
from model.rewards.workers.pool import VerifierPool
from model.sampling.request import Completion, Request
from model.templates import ChatTokenizer, PromptTemplate
from tasks.attempts import attempt
from tasks.engine import Engine, EngineSpec
from tasks.progress import ticking
from tasks.run import Run
from tasks.store import EVALUATIONS

STAGE = "evaluate"
ALL = "all"  # the suite of every held-out problem; each source is a suite too

ANSWER_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("problem_id", pa.string(), nullable=False),
        pa.field("replica", pa.int32(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("step", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("correct", pa.bool_()),  # null: it could not be judged
        pa.field("reason", pa.string(), nullable=False),
        pa.field("answer", pa.string()),
        pa.field("completion_tokens", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who is measured: a name and a step for the table, what serves it, its weights' revision, its template."""

    model: str
    step: int
    engine: EngineSpec
    revision: str
    template: PromptTemplate


@dataclass(frozen=True, slots=True)
class Suite:
    """What is measured on: held-out problems and how often each is sampled."""

    problems: tuple[Problem, ...]
    replicas: int
    max_tokens: int
    temperature: float
    top_p: float
    k: tuple[int, ...]
    require: tuple[str, ...]
    confidence: float
    bootstrap: int
    seed: int
    name: str = ""  # what all its problems together are called; empty: `all`, and each source by its own name


@dataclass(frozen=True, slots=True)
class Answer:
    """One judged completion; the rows of ANSWER_SCHEMA."""

    sample_id: str
    problem_id: str
    replica: int
    model: str
    step: int
    source: str
    correct: bool | None
    reason: str
    answer: str | None
    completion_tokens: int
    text: str


def evaluation_key(contestant: Contestant, suite: Suite, versions: Mapping[str, str]) -> str:
    """Names an evaluation by everything that its numbers depend on."""
    problems = sorted(problem.problem_id for problem in suite.problems)
    how = [
        suite.replicas,
        suite.max_tokens,
        suite.temperature,
        suite.top_p,
        list(suite.k),
        list(suite.require),
    ]
    statistics = [suite.confidence, suite.bootstrap, suite.seed]
    who = [contestant.model, contestant.step, contestant.revision, contestant.template.fingerprint]
    return content_hash("evaluation", who, how, statistics, problems, dict(versions), digits=16)


@task(name="evaluate", task_run_name="evaluate {contestant.model} step {contestant.step}", cache_policy=NO_CACHE)
def evaluate(
    run: Run,
    engine: Engine,
    tokenizer: ChatTokenizer,
    pool: VerifierPool,
    contestant: Contestant,
    suite: Suite,
) -> str:
    """Measures one model and writes its rows; returns the evaluation's key."""
    key = evaluation_key(contestant, suite, {check.name: check.version for check in pool.checks})
    relative = f"{EVALUATIONS}/{key}.parquet"
    if run.dataset.read_manifest(relative) is not None:
        return key
    started = time.monotonic()
    with attempt(run.dataset, f"{STAGE}/{contestant.model}", contestant.step, run.run_id) as record:
        engine.serve(contestant.engine)
        answers = _answers(engine, tokenizer, pool, contestant, suite)
        rows = measure(key, answers, contestant, suite)
        seconds = time.monotonic() - started
        run.dataset.write_shard(
            f"{EVALUATIONS}/answers/{key}.parquet",
            to_table(answers, ANSWER_SCHEMA),
            schema=ANSWER_SCHEMA,
            fingerprint=key,
        )
        run.dataset.write_shard(
            relative,
            to_table(rows, EVALUATION_SCHEMA),
            schema=EVALUATION_SCHEMA,
            fingerprint=key,
            seconds=seconds,
        )
        record.rows = len(answers)
    return key


def _answers(
    engine: Engine, tokenizer: ChatTokenizer, pool: VerifierPool, contestant: Contestant, suite: Suite
) -> list[Answer]:
    jobs = [(problem, replica) for problem in suite.problems for replica in range(suite.replicas)]
    requests = [_request(tokenizer, contestant, suite, *job) for job in jobs]
    label = f"evaluate {contestant.model}" + (f" @{contestant.step}" if contestant.step else "")
    with ticking(label, len(requests), "answers") as ticker:
        completions = engine.complete(requests, on_done=lambda c: ticker.count(c.completion_tokens))
    prefill = contestant.template.prefill
    items = [_scored(job[0], prefill, suite, c) for job, c in zip(jobs, completions, strict=True)]
    rows = zip(jobs, requests, items, pool.judge(items), strict=True)
    return [_answer(contestant, suite, *row) for row in rows]


def _scored(problem: Problem, prefill: str, suite: Suite, completion: Completion) -> Scored:
    return scored_completion(
        problem,
        prefill + completion.text,
        finish_reason=completion.finish_reason,
        completion_tokens=completion.completion_tokens,
        max_tokens=suite.max_tokens,
    )


def _answer(
    contestant: Contestant,
    suite: Suite,
    job: tuple[Problem, int],
    request: Request,
    item: Scored,
    judged: Mapping[str, Judgement],
) -> Answer:
    lost = first_loss(suite.require, judged)
    known = lost is None or lost[1].verdict is Status.FAIL
    return Answer(
        sample_id=request.key,
        problem_id=job[0].problem_id,
        replica=job[1],
        model=contestant.model,
        step=contestant.step,
        source=job[0].source,
        correct=(lost is None) if known else None,
        reason="correct" if lost is None else f"{lost[0]}: {lost[1].reason}",
        answer=item.answer,
        completion_tokens=item.completion_tokens,
        text=item.text,
    )


def _request(
    tokenizer: ChatTokenizer,
    contestant: Contestant,
    suite: Suite,
    problem: Problem,
    replica: int,
) -> Request:
    template = contestant.template
    source = Provenance(contestant.model, contestant.revision, template.fingerprint, suite.temperature, suite.top_p)
    key = sample_id(problem.problem_id, source, replica)
    prompt = template.render(tokenizer, problem.prompt) + template.prefill
    return Request(key, prompt, sample_seed(key), suite.max_tokens)


def measure(key: str, answers: Sequence[Answer], contestant: Contestant, suite: Suite) -> list[Evaluation]:
    """pass@k and cons@N, for all problems and for each source, with bootstrap intervals over problems.

    Answers that could not be judged (an error, an unscorable gold) are left out, as in `pass_rates`; a problem with
    fewer than k judged answers is left out of pass@k.
    """
    by_source: dict[str, dict[str, list[Answer]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        if answer.correct is not None:
            by_source[answer.source][answer.problem_id].append(answer)
            by_source[ALL][answer.problem_id].append(answer)
    if suite.name:
        by_source = {suite.name: by_source[ALL]}
    elif len(by_source) == 2:  # one source: `all` would say the same twice
        del by_source[ALL]
    rows = []
    for name, problems in sorted(by_source.items()):
        samples = sum(map(len, problems.values()))
        for metric, values in _metrics(list(problems.values()), suite).items():
            if values:
                rows.append(_row(key, contestant, suite, name, metric, values, samples))
    return rows


def _metrics(problems: Sequence[Sequence[Answer]], suite: Suite) -> dict[str, list[float]]:
    """Each metric's value per problem."""
    judged = [[(bool(answer.correct), answer.answer) for answer in answers] for answers in problems]
    return answer_metrics(judged, suite.k, suite.replicas)


def _row(
    key: str,
    contestant: Contestant,
    suite: Suite,
    name: str,
    metric: str,
    values: Sequence[float],
    samples: int,
) -> Evaluation:
    low, high = bootstrap_interval(values, confidence=suite.confidence, resamples=suite.bootstrap, seed=suite.seed)
    return Evaluation(
        key=key,
        model=contestant.model,
        step=contestant.step,
        suite=name,
        metric=metric,
        value=sum(values) / len(values),
        low=low,
        high=high,
        problems=len(values),
        samples=samples,
        template=contestant.template.fingerprint,
        model_path=contestant.engine.model,
        created_at=datetime.now(UTC).isoformat(),
    )
