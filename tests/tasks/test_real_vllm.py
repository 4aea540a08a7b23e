"""A real vLLM, started once for all that is asked of one: completions, new weights, rollouts, a teacher's likeliest
tokens, a judge."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from model.errors import TrainingError
from model.pretrained import resolve_model
from model.records import EXAMPLE_SCHEMA, Status, TrainingExample, to_table
from model.rewards.settings import JudgeSettings
from model.sampling import reaper
from model.sampling.client import CompletionsClient
from model.sampling.request import Request, SamplingParams
from model.sampling.vllm_server import EngineOptions, VLLMAt
from model.training.data import collate, tokenize
from model.training.forward import Model, completion_log_probs
from model.training.job import GRPOJob, Precision
from model.training.load import load_model
from model.training.rollouts import cut_after_stop
from model.training.vllm_rollouts import TOLERANCE, VLLMRollouts, WeightProbe, mean_distance
from tasks.capture import Questions
from tasks.engine import Engine, EngineSpec
from tasks.judge import judge_check
from tasks.run import Run
from tasks.store import Dataset
from tests.model.training.tiny import ALONE
from tests.tasks.small_capture import ask
from tests.tasks.small_judged import REJECTED, RULES, engine, judged_dataset, work_on

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("whole_machine")]
SPEC = EngineSpec(
    "builtin:smollm2-135m-instruct",
    options=EngineOptions(
        max_model_len=2048, max_num_seqs=16, max_logprobs=64, dtype="float32", logprobs_mode="processed_logprobs"
    ),
)
TEXTS = [
    ("Calculate 3 + 4.", "<think>\n3 + 4 = 7\n</think>\n<answer>7</answer>"),
    ("Name a colour.", "<think>\nThe sky is blue, and so is the sea on a clear day.\n</think>\n<answer>blue</answer>"),
    ("Calculate 12 - 5 * 2.", "<think>\n12 - 10 = 2\n</think>\n<answer>2</answer>"),
]


@pytest.fixture(scope="module")
def folder() -> Path:
    pytest.importorskip("vllm", reason="vLLM is not installed here")
    return Path(resolve_model(SPEC.model))


@pytest.fixture(scope="module")
def managed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine of ours. In float32 it and the trainer agree to 1e-5, so that a single matrix which a reload left out
    is seen. In the end nothing of it is left."""
    for first in ("folder", "whole_machine"):
        request.getfixturevalue(first)
    before = set(reaper.descendants(os.getpid()))
    with Engine(
        SPEC, SamplingParams(0.7), concurrency=16, timeout_seconds=300, log_path=tmp_path_factory.mktemp("vllm") / "log"
    ) as engine:
        engine.ready()
        members = [pid for pid in reaper.descendants(os.getpid()) if pid not in before]
        assert len(members) > 2, "the reaper, the server, its engine"
        yield engine
    assert not any(Path(f"/proc/{pid}").exists() for pid in members)


@pytest.fixture
def teacher(managed: Engine) -> Engine:
    """With the folder's weights, whatever a test before has loaded."""
    managed.serve(SPEC)
    return managed


@pytest.fixture
def server(teacher: Engine) -> VLLMAt:
    """The same, lent, as a trainer gets it."""
    return VLLMAt(teacher.lend(), repack=True)


def test_completions_before_and_after_new_weights(server: VLLMAt, folder: Path) -> None:
    params = SamplingParams(temperature=0.7, stop=("</answer>",))
    shots = "Question: 1 + 1\n<answer>2</answer>\nQuestion: 2 + 3\n<answer>5</answer>\n" * 5
    requests = [Request(str(n), f"{shots}Question: {n} + 4\n<answer>", n, 16) for n in range(8)]
    with CompletionsClient(
        [server.url], server.served_name, params, concurrency=8, timeout_seconds=120, alive=server.check
    ) as client:
        first = client.complete(requests)
        assert sum(done.text.endswith("</answer>") for done in first) >= 6
        assert all(done.prompt_tokens > 50 and 0 < done.completion_tokens <= 16 for done in first)
        (refused,) = client.complete([Request("long", "word " * 2400, 0, 16)])
        assert refused.finish_reason == "refused"
        server.load_weights(folder)
        again = client.complete(requests)
    assert sum(one.text == two.text for one, two in zip(first, again, strict=True)) >= 6


def test_rollouts_of_weights_that_arrive_and_of_weights_that_do_not(
    server: VLLMAt, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a temperature other than 1."""
    settings = {"temperature": 0.7, "max_tokens": 24, "stop": ("7",), "dtype": Precision.FLOAT32}
    job = GRPOJob(init=folder, out=tmp_path, problems=folder, **settings)
    model, tokenizer = load_model(folder, job.dtype, torch.device("cpu"))
    prompt = "<|im_start|>user\nCalculate 3 + 4.<|im_end|>\n<|im_start|>assistant\n<think>\n"
    params = SamplingParams(job.temperature, max_tokens=job.max_tokens, stop=job.stop)
    with (
        ThreadPoolExecutor(1) as worker,
        CompletionsClient([server.url], server.served_name, params, concurrency=16, timeout_seconds=120) as client,
    ):
        probe = WeightProbe(client, tokenize(tokenizer, prompt), TOLERANCE[job.dtype])
        rollouts = VLLMRollouts(job, model, tokenizer, ALONE, [server], client, [probe], probe.tokens, worker)
        for _ in range(2):
            move(model)
            with rollouts.current() as synced:
                drawn = rollouts.sample([prompt] * 16)
            assert synced["sync_gap"] < 1e-4  # 0.163 for the embeddings' move while the tied head kept its old copy
            for rollout in drawn:
                assert rollout.text == cut_after_stop(
                    tokenizer.decode(rollout.row.completion, skip_special_tokens=True), job.stop
                )
                ended = rollout.text.endswith("7") or rollout.row.completion[-1] == tokenizer.eos_token_id
                assert ended == (rollout.finish_reason == "stop")
        batch = collate([rollout.row for rollout in drawn], [1.0] * 16, model.device)
        told_N = torch.tensor([value for rollout in drawn for value in rollout.log_probs or ()])
        assert mean_distance(told_N, completion_log_probs(model, batch, 0.7)) < 1e-4
        assert len({rollout.text for rollout in drawn}) > 4
        move(model)
        monkeypatch.setattr(server, "load_weights", lambda _folder: None)
        with pytest.raises(TrainingError, match="the weights it had before"), rollouts.current():
            pytest.fail("sampled from stale weights")


def move(model: Model) -> None:
    """Noise in every matrix, 5 % of its spread: embeddings and tied head too."""
    with torch.no_grad():
        for weight in (weight for weight in model.parameters() if weight.dim() > 1):
            weight.add_(torch.randn_like(weight) * weight.std(), alpha=0.05)


def test_its_likeliest_tokens_are_those_of_transformers(teacher: Engine, folder: Path, tmp_path: Path) -> None:
    """Float32 in both: the same likeliest tokens, log-probabilities to 0.004 and 0.06 % of their size (that is half
    precision's rounding; measured: the same 64 tokens in the same order everywhere)."""
    run, k = Run(Dataset.create(tmp_path / "data"), "run-1"), 64
    model, tokenizer = load_model(folder, Precision.FLOAT32, torch.device("cpu"))
    rows = [
        TrainingExample(f"s{i}", "p", f"Q: {q}\n", f"Q: 1 + 1?\nA: 2\nQ: {q}\n", a, None)
        for i, (q, a) in enumerate(TEXTS)
    ]
    pq.write_table(to_table(rows, EXAMPLE_SCHEMA), tmp_path / "examples.parquet")
    questions = Questions(teacher, SPEC.model, "r1", k, tokenizer)
    questions.read(tmp_path / "examples.parquet", tokenizer, "<think>\n", 256)
    ask(run, questions)
    stored = run.dataset.read_table(f"{questions.folder}/000000.parquet").to_pylist()
    known = questions.rows(list(questions.asked))
    assert len(stored) == len(TEXTS)
    for row in stored:
        own = known[row["sample_id"]]
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor([own.context + own.completion])).logits[0]
        expected_TV = logits_TV[len(own.context) - 1 : -1].log_softmax(-1)
        ids_TK = torch.tensor(row["ids"]).view(-1, k)
        log_probs_TK = torch.tensor(row["log_probs"]).view(-1, k)
        best = expected_TV.topk(k)
        assert (ids_TK[:, 0] == best.indices[:, 0]).all()
        torch.testing.assert_close(expected_TV.gather(-1, ids_TK), log_probs_TK, atol=4e-3, rtol=6e-4)
        torch.testing.assert_close(best.values, log_probs_TK, atol=4e-3, rtol=6e-4)


def test_it_judges_in_json(teacher: Engine, tmp_path: Path) -> None:
    """The demo's teacher as judge. It is no good one, but held to the schema it answers in JSON.

    Not always: the schema allows blanks without end between two words, and a model this small may write them.
    """
    settings = JudgeSettings(max_tokens=160, tries=2)
    few = work_on(judged_dataset(tmp_path))
    compare = replace(few, items=few.items[:8], verdicts={"math": [REJECTED] * 8})
    rate = replace(compare, items=[replace(item, gold=None, domain="general") for item in compare.items[:4]])
    with judge_check(settings, teacher, RULES, **engine(tmp_path)) as check:
        compared = check.judge_shard(compare)
        rated = check.judge_shard(rate)
    loose = replace(settings, guided=False, max_tokens=40)
    unguided = judge_check(loose, teacher, RULES, **engine(tmp_path)).judge_shard(compare)
    assert sum(judgement.reason in ("correct", "incorrect") for judgement, _ in compared) >= 7
    assert sum(judgement.reason.startswith("rated_") for judgement, _ in rated) >= 3
    for judgement, milliseconds in (*compared, *rated, *unguided):
        read = judgement.verdict in (Status.PASS, Status.FAIL)
        assert read or judgement.reason == "not_json"
        assert (judgement.detail or "").startswith("after 2 tries: ") is not read
        assert milliseconds > 0
