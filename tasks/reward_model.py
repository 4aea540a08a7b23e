"""The check `reward_model`: a classifier's score of every finished sample against a threshold.

The model runs in a process of its own, started by the first shard that needs it, or in vLLM servers that somebody
runs. A sample that `max_tokens` cut, or that is too long for the model, is `unscorable`. Scores made under another
threshold are used again. What scores mean: `model/rewards/reward_model.py`.

Not promised: that a server at `urls` serves the model that the recipe names (its tokenizer is read here).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from model.errors import CheckError, ModelFolderError
from model.pretrained import resolve_model, revision_of
from model.records import FinishReason, Verdict
from model.rewards.check import Scored, unscorable
from model.rewards.reward_model import (
    MOST_LOGITS,
    TOO_LONG,
    Conversation,
    ScorerSpec,
    Scoring,
    graded,
    judge_score,
    reward_model_version,
    scoring_version,
)
from model.rewards.settings import RewardModelSettings
from model.rewards.texts.conversations import Rendering
from model.rewards.workers.scorer_process import ScorerProcess
from model.rewards.workers.worker import Timed
from model.sampling.client import is_too_long
from model.sampling.request import ClassifyRequest, Completion, SamplingParams
from tasks.earlier_verdicts import earlier_verdicts
from tasks.engine import Engine, EngineSpec
from tasks.progress import announce
from tasks.shard_checks import ShardWork


def reward_model_check(
    settings: RewardModelSettings, *, concurrency: int, timeout_seconds: float, log_path: Path
) -> RewardModelCheck:
    """The reward model that the recipe names. CheckError where it names none, ModelFolderError for no such folder.

    `concurrency` and `timeout_seconds` are for requests to its servers, where it has any.
    """
    if not settings.model:
        raise CheckError("the check reward_model needs a model: set verify.reward_model.model")
    target = str(resolve_model(settings.model, settings.revision, say=announce))
    revision = revision_of(settings.model, settings.revision)
    if settings.urls:
        name = settings.served_name or settings.model
        spec = EngineSpec(name, "", settings.urls, settings.api_key_env)
        params = SamplingParams(0.0)  # of no meaning to a classifier
        engine = Engine(spec, params, concurrency=concurrency, timeout_seconds=timeout_seconds, log_path=log_path)
        served = ServedScorer(target, settings.revision, engine, settings.max_length)
        return RewardModelCheck(settings, served, revision)
    return RewardModelCheck(settings, ScorerProcess(_own_spec(settings, target), log_path=log_path), revision)


def _own_spec(settings: RewardModelSettings, target: str) -> ScorerSpec:
    return ScorerSpec(
        model=target,
        revision=settings.revision,
        dtype=settings.dtype,
        device=settings.device,
        max_length=settings.max_length,
        tokens_per_batch=settings.tokens_per_batch,
    )


class ServedScorer:
    """A reward model in vLLM, which is sent the text that a process of ours would score, and batches by itself.

    Its tokenizer is loaded for the first conversation: where all scores are known, none is.
    """

    def __init__(self, model: str, revision: str, engine: Engine, max_length: int) -> None:
        self._model, self._revision, self._engine, self._max_length = model, revision, engine, max_length

    @cached_property
    def _rendering(self) -> Rendering:
        return Rendering(self._model, self._revision)

    def score(self, conversations: Sequence[Conversation]) -> list[Scoring]:
        """The conversations' scorings, in their order.

        Raises ModelFolderError for what is no reward model or has no chat template, SamplerError when the servers fail.
        """
        found: dict[int, Scoring] = {}
        requests = []
        for place, conversation in enumerate(conversations):
            if self._rendering.is_too_long(conversation, self._max_length):
                found[place] = Scoring(None, TOO_LONG, 0, 0.0)
            else:
                requests.append(ClassifyRequest(str(place), self._rendering.text(*conversation)))
        found |= {int(done.key): self._scoring(done) for done in self._engine.complete(requests)}
        return [found[place] for place in range(len(conversations))]

    def _scoring(self, done: Completion) -> Scoring:
        milliseconds = 1000.0 * done.seconds
        if done.finish_reason is FinishReason.REFUSED:
            reason = TOO_LONG if is_too_long(done) else "refused"
            return Scoring(None, reason, 0, milliseconds)
        if not 0 < len(done.logits) <= MOST_LOGITS:
            classes = f"{self._engine.spec.model} has {len(done.logits)} classes"
            raise ModelFolderError(f"{classes}; a reward model has one or two")
        if done.prompt_tokens > self._max_length:
            return Scoring(None, TOO_LONG, done.prompt_tokens, milliseconds)
        return Scoring(done.logits[-1], "", done.prompt_tokens, milliseconds)

    def close(self) -> None:
        """Ends what is under way; the servers stay."""
        self._engine.__exit__(None, None, None)


class RewardModelCheck:
    """One reward model over one run's shards; a context manager that ends what it opened."""

    name = "reward_model"
    after_all = False

    def __init__(self, settings: RewardModelSettings, scorer: ScorerProcess | ServedScorer, revision: str) -> None:
        self.settings, self._scorer = settings, scorer
        self._scoring = scoring_version(settings, revision)
        self.version = reward_model_version(settings, revision)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scorer.close()

    def judge_shard(self, work: ShardWork) -> list[Timed]:
        """One judgement and its milliseconds per item, in the items' order. Raises SamplerError."""
        before = earlier_verdicts(work.dataset, self.name, self._scoring, work.shard)
        new = [item for item in work.items if _is_whole(item) and item.sample_id not in before]
        scorings = iter(self._scorer.score([(item.prompt, item.text) for item in new]))
        timed: list[Timed] = []
        for item in work.items:
            if not _is_whole(item):
                timed.append((unscorable("unfinished"), 0.0))
            elif item.sample_id in before:
                timed.append(self._again(before[item.sample_id]))
            else:
                scoring = next(scorings)
                timed.append((judge_score(scoring, self.settings.threshold), scoring.milliseconds))
        return timed

    def _again(self, verdict: Verdict) -> Timed:
        assert verdict.score is not None, "a pass or fail of this check has a score"
        return graded(verdict.score, self.settings.threshold, verdict.detail), verdict.milliseconds


def _is_whole(item: Scored) -> bool:
    return item.finish_reason == FinishReason.STOP
