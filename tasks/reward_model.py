"""The check `reward_model`: a classifier's score of every finished sample against a threshold.

The model runs in a process of its own, started by the first shard that needs it. A sample that `max_tokens` cut, or
that is too long for the model, is `unscorable`. Scores made under another threshold are used again. What scores mean:
`model/rewards/reward_model.py`.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from model.errors import CheckError
from model.pretrained import resolve_model, revision_of
from model.records import FinishReason, Verdict
from model.rewards.check import Scored, unscorable
from model.rewards.reward_model import ScorerSpec, graded, judge_score, reward_model_version, scoring_version
from model.rewards.settings import RewardModelSettings
from model.rewards.workers.scorer_process import ScorerProcess
from model.rewards.workers.worker import Timed
from tasks.earlier_verdicts import earlier_verdicts
from tasks.progress import announce
from tasks.shard_checks import ShardWork


def reward_model_check(settings: RewardModelSettings, *, log_path: Path) -> RewardModelCheck:
    """The reward model that the recipe names. CheckError where it names none, ModelFolderError for no such folder."""
    if not settings.model:
        raise CheckError("the check reward_model needs a model: set verify.reward_model.model")
    target = resolve_model(settings.model, settings.revision, say=announce)
    spec = ScorerSpec(
        model=str(target),
        revision=settings.revision,
        dtype=settings.dtype,
        device=settings.device,
        max_length=settings.max_length,
        tokens_per_batch=settings.tokens_per_batch,
    )
    revision = revision_of(settings.model, settings.revision)
    return RewardModelCheck(settings, ScorerProcess(spec, log_path=log_path), revision)


class RewardModelCheck:
    """One reward model over one run's shards; a context manager that ends its process."""

    name = "reward_model"
    after_all = False

    def __init__(self, settings: RewardModelSettings, scorer: ScorerProcess, revision: str) -> None:
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
