"""The teacher's likeliest tokens of the accepted samples: asked once, aligned, kept when a run is killed."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from model.errors import SamplerError, StoreError
from model.records import EXAMPLE_SCHEMA, TeacherPlace, TrainingExample, from_table, to_table
from model.training.examples import examples_at
from model.training.job import JobError
from tasks import capture
from tasks.attempts import read_attempts
from tasks.capture import Questions, stored_places, write_places
from tasks.engine import Engine
from tasks.run import Run
from tasks.store import Dataset
from tests.fake_endpoint import FakeEndpoint
from tests.model.training.tiny import LETTERS, PREFILL, make_tokenizer, write_examples
from tests.tasks.small_capture import K, ask, make_engine, make_questions

EXAMPLES = 12


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Dataset.create(tmp_path / "data"), "run-1")


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    return write_examples(tmp_path / "examples.parquet", EXAMPLES)


@pytest.fixture
def engine(endpoint: FakeEndpoint, tmp_path: Path) -> Iterator[Engine]:
    with make_engine(endpoint.url, tmp_path / "vllm.log") as made:
        yield made


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "SHARD_EXAMPLES", 5)


def every(examples: Path) -> list[TrainingExample]:
    return examples_at(examples, range(EXAMPLES))


def rewrite(examples: Path, **changed: TrainingExample) -> None:
    """The examples with some replaced, by position: `_3=…`."""
    rows = every(examples)
    for name, example in changed.items():
        rows[int(name[1:])] = example
    pq.write_table(to_table(rows, EXAMPLE_SCHEMA), examples)


def test_every_learned_token_has_its_likeliest_tokens(run: Run, engine: Engine, examples: Path) -> None:
    """The endpoint gives each token ½, the next id ¼, …"""
    questions = make_questions(engine, examples)
    assert ask(run, questions) == [0, 1, 2]
    rows = run.dataset.read_table(f"{questions.folder}/000000.parquet").to_pylist()
    tokenizer = make_tokenizer()
    for row, example in zip(rows, every(examples), strict=False):
        learned = [*tokenizer(example.completion.removeprefix(PREFILL))["input_ids"], tokenizer.eos_token_id]
        assert (row["sample_id"], row["tokens"], row["k"]) == (example.sample_id, learned, K)
        known = [(token + i, i + 1) for token in learned for i in range(K)]  # ids from 45 on are no tokens
        assert row["ids"] == [token if token < 45 else 0 for token, _ in known]
        halvings = [-math.log(2) * rank if token < 45 else -math.inf for token, rank in known]
        assert row["log_probs"] == np.float16(halvings).tolist()
        assert row["mass"] == pytest.approx(np.exp(halvings).sum() / len(learned))


def test_context_and_completion_are_sent_as_training_has_them(
    run: Run, engine: Engine, examples: Path, endpoint: FakeEndpoint
) -> None:
    questions = make_questions(engine, examples)
    ask(run, questions)
    sent = {tuple(body["prompt"]) for body in endpoint.requests}
    tokenizer = make_tokenizer()
    first = every(examples)[0]
    whole = tokenizer(first.teacher_prompt + first.completion)["input_ids"]
    assert (*whole, tokenizer.eos_token_id) in sent


def test_what_is_stored_is_not_asked_again(run: Run, engine: Engine, examples: Path, endpoint: FakeEndpoint) -> None:
    ask(run, make_questions(engine, examples))
    again = make_questions(engine, examples)
    assert ask(run, again) == []
    assert len(endpoint.requests) == EXAMPLES
    assert ask(run, make_questions(engine, examples, k=2)) == [0, 1, 2]  # another table


def test_only_a_sample_that_was_made_again_is_asked_again(
    run: Run, engine: Engine, examples: Path, endpoint: FakeEndpoint
) -> None:
    ask(run, make_questions(engine, examples))
    before = write_places(run.dataset, make_questions(engine, examples), "distill")
    old = every(examples)[3]
    rewrite(examples, _3=replace(old, completion=f"{PREFILL}another 3."))
    questions = make_questions(engine, examples)
    assert ask(run, questions) == [3]
    assert len(endpoint.requests) == EXAMPLES + 1
    after = write_places(run.dataset, questions, "distill")
    assert after != before
    moved = set(from_table(pq.read_table(after), TeacherPlace)) - set(from_table(pq.read_table(before), TeacherPlace))
    assert [(place.sample_id, Path(place.file).name, place.row) for place in moved] == [
        (old.sample_id, "000003.parquet", 0)
    ]


def test_examples_that_training_leaves_out_are_not_asked(run: Run, engine: Engine, examples: Path) -> None:
    questions = make_questions(engine, examples, max_length=20)
    assert 0 < len(questions.asked) < EXAMPLES
    ask(run, questions)
    assert stored_places(run.dataset, questions).keys() == questions.asked.keys()


def test_a_shard_that_fails_leaves_the_others_and_a_record(
    run: Run, engine: Engine, examples: Path, endpoint: FakeEndpoint
) -> None:
    asked = make_questions(engine, examples)
    last = asked.request(*asked.rows(["sample-11"]).popitem())
    endpoint.faults.fail_key = " ".join(map(str, last.tokens))
    endpoint.faults.mode, endpoint.faults.fail_first = "401", -1
    with pytest.raises(SamplerError, match="401"):
        ask(run, make_questions(engine, examples))
    assert [(a.stage, a.shard, a.state) for a in read_attempts(run.dataset)] == [
        ("capture", 0, "completed"),
        ("capture", 1, "completed"),
        ("capture", 2, "failed"),
    ]
    endpoint.faults.fail_first = 0
    assert ask(run, make_questions(engine, examples)) == [2]


def test_a_killed_capture_loses_only_the_shard_in_flight(
    run: Run, engine: Engine, examples: Path, endpoint: FakeEndpoint
) -> None:
    endpoint.faults.seconds = 0.3
    words = [str(run.dataset.path), endpoint.url, str(examples)]
    child = subprocess.Popen([sys.executable, "-m", "tests.tasks.small_capture", *words])
    questions = make_questions(engine, examples)
    while len(done := run.dataset.manifests(questions.folder)) < 2 and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    endpoint.faults.seconds = 0.0
    kept = run.dataset.manifests(questions.folder)
    assert 2 <= len(done) <= len(kept) < 6
    ask(run, questions)
    assert stored_places(run.dataset, questions).keys() == questions.asked.keys()
    times = Counter(json.dumps(body["prompt"]) for body in endpoint.requests)
    assert sum(count - 1 for count in times.values()) <= 2  # the shard in flight had two examples


def test_no_room_is_said_before_anything_is_asked(
    run: Run, engine: Engine, examples: Path, endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dataset, "free_bytes", lambda _: 1000)
    with pytest.raises(StoreError, match=r"tokens, 4 each, 0\.0 MB, but .* has 0\.0 MB free: lower distill\.top_k"):
        ask(run, make_questions(engine, examples))
    assert endpoint.requests == []


def test_a_refusal_names_the_remedy(run: Run, engine: Engine, examples: Path, endpoint: FakeEndpoint) -> None:
    endpoint.faults.most_logprobs = 2
    says = r"refused .*greater than max allowed.*--max-logprobs must be at least distill\.top_k"
    with pytest.raises(SamplerError, match=says) as caught:
        ask(run, make_questions(engine, examples))
    assert not caught.value.retryable


def test_another_tokenizer_is_refused(engine: Engine, examples: Path) -> None:
    questions = Questions(engine, "fake", "r1", K, make_tokenizer())
    with pytest.raises(JobError, match="different vocabularies"):
        questions.read(examples, make_tokenizer(LETTERS[::-1]), PREFILL, 512)
