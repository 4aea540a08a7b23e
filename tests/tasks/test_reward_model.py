"""The reward model over shards, with a small real one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from model.errors import CheckError, ModelFolderError
from model.records import VERDICT_SCHEMA, Status, Verdict, to_table
from model.rewards.check import Judgement, Scored
from model.rewards.settings import RewardModelSettings
from tasks.inputs import scored_rows
from tasks.reward_model import RewardModelCheck, reward_model_check
from tasks.shard_checks import ShardWork
from tasks.store import Dataset, sample_path, verdict_path
from tasks.work import verdict_extra
from tests.small_reward_model import pairs
from tests.tasks.small_dataset import generate, make_dataset, plan

PAIRS = pairs(6, seed=3)


@pytest.fixture
def work(tmp_path: Path) -> ShardWork:
    """Six sound and six spoilt answers, in turn, and last of all one that was cut."""
    dataset = make_dataset(tmp_path / "data", problems=13)
    (shard,) = plan(dataset, replicas=1, shard_size=13)
    generate(dataset, shard)
    items = list(scored_rows(dataset, shard))
    conversations = [*(side for pair in PAIRS for side in pair), PAIRS[0][0]]
    shown = [replace(item, prompt=q, text=a) for item, (q, a) in zip(items, conversations, strict=True)]
    shown[-1] = replace(shown[-1], finish_reason="length")
    return ShardWork(dataset, shard, shown, {})


@pytest.fixture(scope="module")
def check(reward_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardModelCheck]:
    log = tmp_path_factory.mktemp("log") / "reward-model.log"
    with reward_model_check(settings(reward_model), log_path=log) as made:
        yield made


def settings(folder: Path, **changes: float) -> RewardModelSettings:
    return replace(RewardModelSettings(model=str(folder), dtype="float32", device="cpu"), **changes)  # type: ignore[arg-type]


def keep(dataset: Dataset, check: RewardModelCheck, items: list[Scored], judgements: list[Judgement]) -> None:
    rows = [
        Verdict(item.sample_id, check.name, check.version, said.verdict, said.score, said.reason, said.detail, 5.0)
        for item, said in zip(items, judgements, strict=True)
    ]
    source = dataset.read_manifest(sample_path(0))
    assert source is not None
    path = verdict_path(check.name, check.version, 0)
    table = to_table(rows, VERDICT_SCHEMA)
    extra = verdict_extra(source)
    dataset.write_shard(path, table, schema=VERDICT_SCHEMA, fingerprint=check.version, extra=extra)


def test_sound_answers_pass_and_spoilt_ones_fail(check: RewardModelCheck, work: ShardWork) -> None:
    timed = check.judge_shard(work)
    assert timed[-1][0] == Judgement(Status.UNSCORABLE, None, "unfinished")
    scored = [judgement for judgement, _ in timed[:-1]]
    right = [judgement.verdict is (Status.FAIL if place % 2 else Status.PASS) for place, judgement in enumerate(scored)]
    assert sum(right) >= 10  # of 12; a coin does so once in fifty
    assert {judgement.reason for judgement in scored} == {"at_least_threshold", "below_threshold"}
    assert all(judgement.score is not None for judgement in scored)
    assert all(milliseconds > 0 for _, milliseconds in timed[:-1])


def test_another_threshold_needs_no_model(
    check: RewardModelCheck, work: ShardWork, reward_model: Path, tmp_path: Path
) -> None:
    before = [judgement for judgement, _ in check.judge_shard(work)]
    keep(work.dataset, check, list(work.items), before)
    with reward_model_check(settings(reward_model, threshold=1e9), log_path=tmp_path / "log") as strict:
        assert strict.version != check.version
        after = [judgement for judgement, _ in strict.judge_shard(work)]
    assert {judgement.verdict for judgement in after[:-1]} == {Status.FAIL}
    assert [judgement.score for judgement in after] == [judgement.score for judgement in before]
    assert not (tmp_path / "log").exists()  # no process was started


def test_the_version_follows_the_models_content(check: RewardModelCheck, reward_model: Path, tmp_path: Path) -> None:
    same = reward_model_check(settings(reward_model), log_path=tmp_path / "log")
    assert same.version == check.version
    other = reward_model_check(settings(reward_model, max_length=99), log_path=tmp_path / "log")
    assert other.version != check.version


def test_a_check_that_names_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=r"set verify\.reward_model\.model"):
        reward_model_check(RewardModelSettings(), log_path=tmp_path / "log")
    with pytest.raises(ModelFolderError, match="is not a folder"):
        reward_model_check(RewardModelSettings(model="./nowhere"), log_path=tmp_path / "log")
