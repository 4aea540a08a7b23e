"""The judge over shards: against an endpoint on loopback that judges, or misbehaves. Real vLLM: test_real_vllm.py."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.errors import SamplerError
from model.records import VERDICT_SCHEMA, Status, Verdict, to_table
from model.rewards.check import Judgement, Scored, passed, unscorable
from model.rewards.settings import JudgeSettings
from model.sampling import client as client_module
from model.sampling.request import SamplingParams
from tasks.engine import Engine, EngineSpec
from tasks.judge import JudgeCheck, judge_check
from tasks.shard_checks import ShardWork
from tasks.store import Dataset, sample_path, verdict_path
from tasks.work import verdict_extra
from tests.fake_endpoint import FakeEndpoint
from tests.tasks.small_dataset import generate
from tests.tasks.small_judged import REJECTED, RULES, engine, judged_dataset, work_on

ACCEPTED = passed("equal_string")


def fair(prompt: str, _seed: int | None) -> str:
    """A judge that finds the reference's number in the final answer, or rates by its length."""
    shown = re.findall(r"<<<([0-9a-f]+)\n(.*?)\n\1>>>", prompt, re.DOTALL)
    if not shown:
        return "{}"
    answer = shown[-1][1]
    if '"rating"' in prompt:
        return json.dumps({"analysis": f"{len(answer)} characters", "rating": min(10, max(1, len(answer)))})
    verdict = "correct" if re.search(rf"\b{re.escape(shown[1][1])}\b", answer) else "incorrect"
    return json.dumps({"analysis": f"it says {answer}", "verdict": verdict})


def always(text: str) -> Callable[[str, int | None], str]:
    return lambda _prompt, _seed: text


@pytest.fixture
def judge() -> Iterator[FakeEndpoint]:
    with FakeEndpoint(answer=fair, model="judge") as server:
        yield server


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BACKOFF_SECONDS", 0.01)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return judged_dataset(tmp_path)


def is_right(item: Scored) -> bool:
    return f"well, {item.gold} it" in item.text


@pytest.fixture
def make(judge: FakeEndpoint, tmp_path: Path) -> Iterator[Callable[..., JudgeCheck]]:
    """A judge at the fake endpoint under these settings."""
    made: list[JudgeCheck] = []

    def build(rules: dict[str, str] = RULES, **settings: Any) -> JudgeCheck:
        chosen = JudgeSettings(model="judge", urls=(judge.url,), **settings)
        teacher = Engine(EngineSpec("t", urls=("http://127.0.0.1:9/v1",)), SamplingParams(0.7), **engine(tmp_path))
        made.append(judge_check(chosen, teacher, rules, **engine(tmp_path)))
        return made[-1]

    yield build
    for check in made:
        check.__exit__(None, None, None)


def write(check: JudgeCheck, work: ShardWork) -> list[Judgement]:
    """Judges a shard and keeps the verdicts as the verify stage does."""
    judgements = [judgement for judgement, _ in check.judge_shard(work)]
    rows = [
        Verdict(item.sample_id, check.name, check.version, said.verdict, said.score, said.reason, said.detail, 5.0)
        for item, said in zip(work.items, judgements, strict=True)
    ]
    source = work.dataset.read_manifest(sample_path(work.shard))
    assert source is not None
    work.dataset.write_shard(
        verdict_path(check.name, check.version, work.shard),
        to_table(rows, VERDICT_SCHEMA),
        schema=VERDICT_SCHEMA,
        fingerprint=check.version,
        extra=verdict_extra(source),
    )
    return judgements


# ---- judging


def test_rejected_samples_are_compared_with_the_reference_in_order(
    make: Callable[..., JudgeCheck], dataset: Dataset, judge: FakeEndpoint
) -> None:
    work = work_on(dataset)
    timed = make().judge_shard(work)
    assert [judgement.verdict for judgement, _ in timed] == [
        Status.PASS if is_right(item) else Status.FAIL for item in work.items
    ]
    assert {judgement.reason for judgement, _ in timed} == {"correct", "incorrect"}
    assert timed[0][0].detail == f"it says {work.items[0].text.split('</think>')[1].strip()}"
    assert all(milliseconds > 0 for _, milliseconds in timed)
    assert len(judge.requests) == 1 + len(work.items)  # one asks whether a schema is taken


def test_what_is_sent(make: Callable[..., JudgeCheck], dataset: Dataset, judge: FakeEndpoint) -> None:
    make(max_tokens=77).judge_shard(work_on(dataset))
    body = judge.requests[-1]
    assert (body["model"], body["temperature"], body["max_tokens"], body["n"]) == ("judge", 0.0, 77, 1)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["analysis", "verdict"]
    assert 0 <= body["seed"] < 2**31
    assert "prompt" not in body


def test_without_a_reference_answers_are_rated(make: Callable[..., JudgeCheck], dataset: Dataset) -> None:
    work = work_on(dataset, unscorable("other_domain"), gold=None, domain="general")
    reasons = {judgement.reason: judgement for judgement, _ in make(least_rating=10).judge_shard(work)}
    assert reasons == {"rated_10": reasons["rated_10"]}
    assert reasons["rated_10"].score == 1.0


def test_accepted_samples_are_left_alone_but_for_the_audited_share(
    make: Callable[..., JudgeCheck], dataset: Dataset, judge: FakeEndpoint
) -> None:
    alone = make(audit_share=0.0).judge_shard(work_on(dataset, ACCEPTED))
    assert {judgement.reason for judgement, _ in alone} == {"not_asked:accepted_by_rules"}
    assert {milliseconds for _, milliseconds in alone} == {0.0}
    assert judge.requests == []
    audited = make(audit_share=0.5).judge_shard(work_on(dataset, ACCEPTED))
    asked = [judgement for judgement, _ in audited if judgement.verdict is not Status.UNSCORABLE]
    assert 0 < len(asked) < len(audited)
    again = make(audit_share=0.5).judge_shard(work_on(dataset, ACCEPTED))
    assert [judgement for judgement, _ in again] == [judgement for judgement, _ in audited]


# ---- answers that are none


def test_an_answer_that_is_not_json_is_asked_for_again_with_another_seed(
    make: Callable[..., JudgeCheck], dataset: Dataset, judge: FakeEndpoint
) -> None:
    tried: dict[str, list[int | None]] = {}

    def slow_to_comply(prompt: str, seed: int | None) -> str:
        seeds = tried.setdefault(prompt, [])
        seeds.append(seed)
        return fair(prompt, seed) if len(seeds) == 3 else "I think that it is correct."

    judge.answer = slow_to_comply
    work = work_on(dataset)
    judgements = [judgement for judgement, _ in make(tries=3, guided=False).judge_shard(work)]
    assert {judgement.reason for judgement in judgements} == {"correct", "incorrect"}
    assert len(tried) == len(work.items)
    assert all(len(set(seeds)) == 3 for seeds in tried.values())
    assert sorted({body["temperature"] for body in judge.requests}) == [0.0, 0.7]


def test_after_all_tries_it_is_an_error_that_keeps_the_answer(
    make: Callable[..., JudgeCheck], dataset: Dataset, judge: FakeEndpoint
) -> None:
    judge.answer = always("Correct! " * 1000)
    work = work_on(dataset)
    timed = make(tries=2, guided=False, max_tokens=5000).judge_shard(work)
    assert {(judgement.verdict, judgement.reason) for judgement, _ in timed} == {(Status.ERROR, "not_json")}
    detail = timed[0][0].detail
    assert detail is not None
    assert detail.startswith("after 2 tries: Correct! Correct!")
    assert len(detail) < 1100
    assert len(judge.requests) == 2 * len(work.items)


def test_only_what_was_no_json_is_asked_for_again(
    make: Callable[..., JudgeCheck], dataset: Dataset, judge: FakeEndpoint
) -> None:
    judge.answer = lambda prompt, seed: "no" if "Calculate 3 + 1." in prompt else fair(prompt, seed)
    work = work_on(dataset)
    timed = make(tries=3, guided=False).judge_shard(work)
    spoilt = [judgement.reason == "not_json" for judgement, _ in timed]
    assert spoilt == [item.prompt == "Calculate 3 + 1." for item in work.items]
    assert len(judge.requests) == 10 + 3 * 2


# ---- endpoints


def test_an_endpoint_without_schemas_is_asked_without(
    make: Callable[..., JudgeCheck], dataset: Dataset, judge: FakeEndpoint
) -> None:
    judge.faults.refuse_schema = True
    check = make()
    for _ in range(2):
        timed = check.judge_shard(work_on(dataset))
        assert {judgement.reason for judgement, _ in timed} == {"correct", "incorrect"}
    assert sum("response_format" in body for body in judge.requests) == 1  # found out once


def test_a_refused_conversation_is_its_samples_error(
    make: Callable[..., JudgeCheck], dataset: Dataset, judge: FakeEndpoint
) -> None:
    work = work_on(dataset)
    items = [replace(work.items[0], text="</think>" + "long " * 2000), *work.items[1:]]
    judge.faults.max_prompt_chars = 6000
    timed = make().judge_shard(replace(work, items=items))
    assert (timed[0][0].verdict, timed[0][0].reason) == (Status.ERROR, "refused")
    assert "maximum context length" in (timed[0][0].detail or "")
    assert {judgement.verdict for judgement, _ in timed[1:]} == {Status.PASS, Status.FAIL}


@pytest.mark.parametrize(("mode", "retryable"), [("500", True), ("401", False)])
def test_an_endpoint_in_trouble_ends_the_shards_attempt(
    make: Callable[..., JudgeCheck], dataset: Dataset, judge: FakeEndpoint, mode: str, retryable: bool
) -> None:
    judge.faults.mode, judge.faults.fail_first = mode, -1
    with pytest.raises(SamplerError) as caught:
        make().judge_shard(work_on(dataset))
    assert caught.value.retryable is retryable


def test_without_urls_the_teachers_engine_judges_with_settings_of_its_own(
    judge: FakeEndpoint, dataset: Dataset, tmp_path: Path
) -> None:
    params = SamplingParams(0.9, 0.8, stop=("</answer>",))
    with Engine(EngineSpec("judge", urls=(judge.url,)), params, **engine(tmp_path)) as teacher:
        with judge_check(JudgeSettings(), teacher, RULES, **engine(tmp_path)) as check:
            check.judge_shard(work_on(dataset))
            other = judge_check(JudgeSettings(max_tokens=9), teacher, RULES, **engine(tmp_path))
        teacher.ready()  # leaving the check leaves the engine
    assert {body["temperature"] for body in judge.requests} == {0.0}
    assert {body["top_p"] for body in judge.requests} == {1.0}
    assert not any("stop" in body for body in judge.requests)
    assert other.version != check.version


# ---- what was judged before


def test_another_choice_of_whom_to_ask_asks_only_the_new_ones(
    make: Callable[..., JudgeCheck], dataset: Dataset, judge: FakeEndpoint
) -> None:
    half = [REJECTED if place % 2 else ACCEPTED for place in range(12)]
    first = make(audit_share=0.0)
    before = write(first, work_on(dataset, half))
    judge.requests.clear()
    second = make(rules={"math": "2"}, audit_share=0.0)
    assert second.version != first.version
    after = second.judge_shard(work_on(dataset, REJECTED))
    assert len(judge.requests) == 1 + 6
    assert [judgement for judgement, _ in after][1::2] == before[1::2]
    assert [milliseconds for _, milliseconds in after][1::2] == [5.0] * 6  # what it cost then


def test_another_least_rating_asks_nobody(
    make: Callable[..., JudgeCheck], dataset: Dataset, judge: FakeEndpoint
) -> None:
    judge.answer = always('{"analysis": "so so", "rating": 5}')
    work = work_on(dataset, unscorable("other_domain"), gold=None, domain="general")
    assert {judgement.verdict for judgement in write(make(), work)} == {Status.FAIL}
    judge.requests.clear()
    again = {judgement for judgement, _ in make(least_rating=5).judge_shard(work)}
    assert again == {Judgement(Status.PASS, 0.5, "rated_5", "so so")}
    assert judge.requests == []


def test_errors_and_another_prompt_are_asked_again(
    make: Callable[..., JudgeCheck], dataset: Dataset, judge: FakeEndpoint
) -> None:
    judge.answer = always("no")
    check = make(tries=1, guided=False)
    assert {judgement.reason for judgement in write(check, work_on(dataset))} == {"not_json"}
    judge.answer = fair
    assert {judgement.reason for judgement in write(check, work_on(dataset))} == {"correct", "incorrect"}
    judge.requests.clear()
    make(tries=1, guided=False, max_tokens=500).judge_shard(work_on(dataset))
    assert len(judge.requests) == 12


def test_a_shard_that_was_made_again_is_judged_again(
    make: Callable[..., JudgeCheck], dataset: Dataset, judge: FakeEndpoint
) -> None:
    check = make(guided=False)
    write(check, work_on(dataset))
    judge.requests.clear()
    generate(dataset, 0, text=lambda row: f"<think>\nnew\n</think>\nreplica {row.replica}")
    check.judge_shard(work_on(dataset))
    assert len(judge.requests) == 12
