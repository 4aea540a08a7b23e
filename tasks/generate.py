"""One shard of samples: read its plan, ask the engine, write the rows. Nothing is seen until all of it is there.

A completion that the endpoint refuses (a prompt that is too long, say) is a row with its error; an endpoint that
fails is this shard's failed attempt, to be tried again by Prefect.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from prefect import task
from prefect.cache_policies import NO_CACHE

from model.records import SAMPLE_SCHEMA, PlannedSample, Provenance, Sample, to_table
from model.sampling.request import Completion, Request
from model.templates import ChatTokenizer, PromptTemplate, split_completion
from tasks.attempts import attempt
from tasks.engine import Engine
from tasks.inputs import problems_by_id
from tasks.progress import Ticker
from tasks.run import Run
from tasks.store import sample_path
from tasks.work import read_plan

STAGE = "generate"


@dataclass(frozen=True)
class Generation:
    """How a run's samples are made: who answers, through which template, under which distribution."""

    engine: Engine
    tokenizer: ChatTokenizer
    template: PromptTemplate
    provenance: Provenance


@task(name="generate", task_run_name="generate {shard:06d}", cache_policy=NO_CACHE)
def generate_shard(run: Run, generation: Generation, shard: int, ticker: Ticker) -> int:
    """Makes one planned shard and returns its number. Raises SamplerError or StoreError."""
    started = time.monotonic()
    with attempt(run.dataset, STAGE, shard, run.run_id) as record:
        plan = read_plan(run.dataset, shard)
        requests = _requests(run, generation, plan)
        completions = generation.engine.complete(requests, on_done=lambda c: ticker.count(c.completion_tokens))
        samples = [
            _sample(shard, planned, generation, request, completion)
            for planned, request, completion in zip(plan, requests, completions, strict=True)
        ]
        run.dataset.write_shard(
            sample_path(shard),
            to_table(samples, SAMPLE_SCHEMA),
            schema=SAMPLE_SCHEMA,
            fingerprint=generation.template.fingerprint,
            seconds=time.monotonic() - started,
        )
        record.rows = len(samples)
    return shard


def _requests(run: Run, generation: Generation, plan: Sequence[PlannedSample]) -> list[Request]:
    problems = problems_by_id(run.dataset, {planned.problem_id for planned in plan})
    rendered = {
        key: generation.template.render(generation.tokenizer, problem.prompt) + generation.template.prefill
        for key, problem in problems.items()
    }
    return [Request(p.sample_id, rendered[p.problem_id], p.seed, p.max_tokens) for p in plan]


def _sample(
    shard: int, planned: PlannedSample, generation: Generation, request: Request, completion: Completion
) -> Sample:
    text = generation.template.prefill + completion.text
    reasoning, answer = split_completion(text)
    source = generation.provenance
    return Sample(
        sample_id=planned.sample_id,
        problem_id=planned.problem_id,
        shard=shard,
        teacher=source.teacher,
        teacher_revision=source.teacher_revision,
        template=source.template,
        temperature=source.temperature,
        top_p=source.top_p,
        max_tokens=planned.max_tokens,
        replica=planned.replica,
        seed=request.seed,
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        finish_reason=completion.finish_reason,
        text=text,
        reasoning=reasoning,
        answer=answer,
        error=completion.error,
        seconds=completion.seconds,
        created_at=datetime.now(UTC).isoformat(),
    )
