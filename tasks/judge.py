"""The check `judge`: a model's word on what rules rejected, could not score, or have no reference for.

It asks the teacher's own engine, or endpoints named for it, for a whole shard at once; a shard that is being judged
and one that is being generated share the engine's slots. A judgement that is not the JSON wanted is asked for again,
then kept as the sample's `error`, as is a refusal (HTTP 4xx) of one conversation. An endpoint that fails is a
SamplerError. What was judged before is not asked again where only the rules' versions, `audit_share` or
`least_rating` have changed. What is asked and how answers are read: `model/rewards/judge.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from model.pretrained import revision_of
from model.records import FinishReason, Status, Verdict
from model.rewards.check import Judgement, Scored, errored
from model.rewards.judge import (
    RULES,
    Question,
    asking_version,
    judge_version,
    messages,
    not_json,
    question_for,
    read_judgement,
    regraded,
    schema_of,
    seed_of,
    temperature_of,
)
from model.rewards.settings import JudgeSettings
from model.rewards.workers.worker import Timed
from model.sampling.request import ChatRequest, Completion, SamplingParams
from tasks.earlier_verdicts import earlier_verdicts
from tasks.engine import Engine, EngineSpec
from tasks.shard_checks import ShardWork

_PROBE_TOKENS = 8


def judge_check(
    settings: JudgeSettings,
    teacher: Engine,
    rules: Mapping[str, str],
    *,
    concurrency: int,
    timeout_seconds: float,
    log_path: Path,
) -> JudgeCheck:
    """The judge that the recipe names: `settings.urls`, in an engine of its own, or else the teacher's engine.

    `rules`: versions of all checks that run, by name. The check is a context manager; leaving it closes what is
    its own and leaves the teacher alone.
    """
    used = {name: version for name, version in rules.items() if name in RULES}
    if not settings.urls:
        return JudgeCheck(settings, teacher, used)
    spec = EngineSpec(settings.model, "", settings.urls, settings.api_key_env)
    params = SamplingParams(settings.temperature, max_tokens=settings.max_tokens)
    own = Engine(spec, params, concurrency=concurrency, timeout_seconds=timeout_seconds, log_path=log_path)
    return JudgeCheck(settings, own, used, owned=True)


class JudgeCheck:
    """One judge over one run's shards. `rules`: the versions of the checks that it stands beside."""

    name = "judge"
    after_all = False

    def __init__(
        self, settings: JudgeSettings, engine: Engine, rules: Mapping[str, str], *, owned: bool = False
    ) -> None:
        self.settings, self._engine, self._owned = settings, engine, owned
        spec = engine.spec
        revision = revision_of(spec.model, spec.revision) if spec.managed else spec.revision
        self._asking = asking_version(settings, spec.model, revision)
        self.version = judge_version(settings, spec.model, revision, dict(rules))
        self._lock = threading.Lock()
        self._takes_schema: bool | None = None if settings.guided else False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owned:
            self._engine.__exit__(kind, error, trace)

    def judge_shard(self, work: ShardWork) -> list[Timed]:
        """One judgement and its milliseconds per item, in the items' order. Raises SamplerError."""
        before = earlier_verdicts(work.dataset, self.name, self._asking, work.shard)
        timed: dict[int, Timed] = {}
        todo: dict[int, Question] = {}
        for place, item in enumerate(work.items):
            asked = question_for(item, _of_rules(work, place), self.settings.audit_share)
            if isinstance(asked, Judgement):
                timed[place] = asked, 0.0
            elif item.sample_id in before:
                timed[place] = self._again(before[item.sample_id])
            else:
                todo[place] = asked
        timed |= self._ask(work.items, todo)
        return [timed[place] for place in range(len(work.items))]

    def _again(self, verdict: Verdict) -> Timed:
        known = Status(verdict.verdict), verdict.score, verdict.reason, verdict.detail
        return regraded(*known, self.settings.least_rating), verdict.milliseconds

    def _ask(self, items: Sequence[Scored], todo: dict[int, Question]) -> dict[int, Timed]:
        """Judgements by place. Every round asks for those that the one before did not get."""
        judged: dict[int, Timed] = {}
        milliseconds = dict.fromkeys(todo, 0.0)
        for attempt in range(self.settings.tries):
            waiting = [place for place in todo if place not in judged or judged[place][0].reason == "not_json"]
            if not waiting:
                break
            requests = [self._request(items[place], todo[place], attempt) for place in waiting]
            for place, done in zip(waiting, self._engine.complete(requests), strict=True):
                milliseconds[place] += 1000.0 * done.seconds
                judged[place] = self._read(todo[place], done, attempt + 1), milliseconds[place]
        return judged

    def _request(self, item: Scored, question: Question, attempt: int) -> ChatRequest:
        return ChatRequest(
            key=item.sample_id,
            messages=messages(question, item, self.settings.most_characters),
            seed=seed_of(item.sample_id, attempt),
            params=SamplingParams(temperature_of(self.settings, attempt), max_tokens=self.settings.max_tokens),
            json_schema=schema_of(question, self.settings.max_tokens) if self._guided() else "",
        )

    def _read(self, question: Question, done: Completion, tries: int) -> Judgement:
        if done.finish_reason is FinishReason.REFUSED:
            return errored("refused", done.error)
        judgement = read_judgement(question, done.text, self.settings.least_rating)
        return judgement or not_json(done.text, tries)

    def _guided(self) -> bool:
        """Whether the endpoint takes a JSON schema: asked once, with a conversation of no sample's."""
        with self._lock:
            if self._takes_schema is None:
                greedy = SamplingParams(0.0, max_tokens=_PROBE_TOKENS)
                schema = schema_of(Question.REFERENCE, self.settings.max_tokens)
                probe = ChatRequest("probe", (("user", "Reply with JSON."),), 0, greedy, schema)
                self._takes_schema = self._engine.complete([probe])[0].finish_reason is not FinishReason.REFUSED
            return self._takes_schema


def _of_rules(work: ShardWork, place: int) -> list[Judgement]:
    """What RULES said of one item, where they ran and the item is of their domain."""
    said = [work.verdicts[name][place] for name in RULES if name in work.verdicts]
    return [judgement for judgement in said if judgement.reason != "other_domain"]
