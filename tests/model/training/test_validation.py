"""Validation: what it measures, that training stays the same, and that a kill neither loses nor doubles any of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from model.records import PROBLEM_SCHEMA, FinishReason, Problem, to_table
from model.rewards.settings import CheckSettings
from model.rewards.workers.pool import VerifierPool
from model.training import best
from model.training.best import BestWeights, DamagedBestError, best_step
from model.training.checkpoint import Checkpoints
from model.training.job import JOBS, Job, JobError, Keep, job_from
from model.training.manifest import identity, validation_identity
from model.training.process import Stopped
from model.training.rollouts import DrawnTokens, RowNumbers, nucleus
from model.training.runner import run_job
from model.training.validation import (
    Answer,
    Validation,
    asked_problems,
    contexts_of,
    require_settings,
)
from tests.model.training.tiny import ALONE, PREFILL, Never, make_model, make_tokenizer
from tests.model.training.tiny_engine import install

Lines = list[dict[str, float]]


@pytest.fixture
def make_job(tiny_folder: Path, examples_file: Path, problems_file: Path, tmp_path: Path) -> Any:
    common = {
        "init": tiny_folder, "prefill": PREFILL, "learning_rate": 3e-3, "threads": 1, "checkpoint_every": 2,
        "dtype": "float32", "trackers": [],
    }  # fmt: skip
    specific = {
        "sft": {"examples": examples_file, "epochs": 9, "max_steps": 4, "tokens_per_batch": 100},
        "grpo": {
            "problems": problems_file,
            "steps": 2,
            "problems_per_step": 2,
            "group_size": 4,
            "max_tokens": 6,
            "checks": ["format"],
        },
    }
    validated = {
        "validation": problems_file, "validation_samples": 3, "validation_max_tokens": 5, "validation_batch": 4,
        "validation_checks": ["format"], "validation_require": ["format"],  # needs no mathematics, which takes a second
    }  # fmt: skip

    def make(stage: str = "sft", out: str = "out", every: int = 0, **settings: Any) -> Job:
        raw: dict[str, Any] = {"out": tmp_path / out, **common, **specific[stage]}
        raw |= (validated | {"validate_every": every} if every else {}) | settings
        values = {name: str(value) if isinstance(value, Path) else value for name, value in raw.items()}
        return job_from(JOBS[stage], values)

    return make


def read(path: Path) -> Lines:
    clocks = {"seconds", "prepare_seconds", "tokens_per_second"}
    lines = map(json.loads, path.read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in clocks} for line in lines]


class Scripted:
    """Answers by hand: one list of texts per validation; what torch would draw meanwhile is drawn."""

    at_once = 2

    def __init__(self, *validations: Sequence[str]) -> None:
        self.validations, self.asked = list(validations), list[str]()

    def current(self) -> Any:
        return nullcontext()

    def answers(self, contexts: Sequence[str]) -> list[Answer]:
        torch.rand(7)
        self.asked += contexts
        texts = [self.validations[0].pop(0) for _ in contexts]  # type: ignore[attr-defined]
        self.validations = [left for left in self.validations if left]
        return [Answer(text, FinishReason.STOP if text else FinishReason.LENGTH, len(text)) for text in texts]


def right(n: int) -> str:
    return f"</think><answer>{n}</answer>"


def test_the_numbers_of_a_validation(make_job: Any) -> None:
    """Five sums n + 1, two answers each: both right, one right twice over, one right, both wrong, one cut and wrong.

    pass@1 = (1 + ½ + ½ + 0 + 0)/5; pass@2 = 3/5; cons@2: a tie of right and wrong counts ½, of wrong ones 0.
    """
    job = make_job(every=2, validation_samples=2, validation_checks=["math"], validation_require=["math"])
    job.out.mkdir()
    texts = [right(1), right(1), right(2), right(9), right(8), right(3), right(7), right(7), right(6), ""]
    with VerifierPool(["math"], CheckSettings(), workers=1, timeout_seconds=30) as pool:
        sampler = Scripted(list(texts))
        validation = Validation(job, make_model(), make_tokenizer(), sampler, pool, ALONE)
        checkpoints = Checkpoints(job.out / "checkpoints", job.dtype, ALONE)
        line = validation.measure(0, Never(), checkpoints)
        assert validation.measure(0, Never(), checkpoints) is None  # its line is there
        checkpoints.close()
    assert line is not None
    assert sampler.asked[:3] == ["q: 0 + 1? a: ", "q: 0 + 1? a: ", "q: 1 + 1? a: "]
    expected = {"pass@1": 0.4, "pass@2": 0.6, "cons@2": 0.4, "problems": 5, "samples": 10}
    assert {name: line[name] for name in expected} == pytest.approx(expected)
    assert (line["truncated_share"], line["completion_length"]) == (0.1, 9 * 26 / 10)
    assert read(job.out / "validation.jsonl") == [{k: v for k, v in line.items() if k != "seconds"}]


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_training_is_the_same_to_the_bit_with_and_without(make_job: Any, stage: str) -> None:
    without, with_it = make_job(stage, "without"), make_job(stage, "with", every=1)
    for job in (without, with_it):
        run_job(job, Never())
    assert read(with_it.out / "metrics.jsonl") == read(without.out / "metrics.jsonl")
    same = [(job.out / "model/model.safetensors").read_bytes() for job in (without, with_it)]
    assert same[0] == same[1]
    steps = 4 if stage == "sft" else 2
    assert [line["step"] for line in read(with_it.out / "validation.jsonl")] == list(range(steps + 1))
    assert {line["samples"] for line in read(with_it.out / "validation.jsonl")} == {15}


class Stop:
    """Asks for a stop while a given validation is at its second lot of answers (or after it, where it has only one)."""

    def __init__(self, job: Job, validations: int) -> None:
        self.file, self.validations, self.looks = job.out / "validation.jsonl", validations, 0
        self.begins = job.out / "planned.json"  # what is read before is none of a validation's business

    @property
    def received(self) -> bool:
        done = len(self.file.read_text().splitlines()) if self.file.exists() else 0
        self.looks += done == self.validations and self.begins.exists()
        return done == self.validations and self.looks > 1


@pytest.mark.parametrize("validations", [0, 1])
def test_a_run_stopped_within_a_validation_comes_to_it_again(make_job: Any, validations: int) -> None:
    whole, parted = make_job(out="whole", every=2), make_job(out="parted", every=2)
    run_job(whole, Never())
    with pytest.raises(Stopped):
        run_job(parted, Stop(parted, validations))
    assert len(read(parted.out / "validation.jsonl")) == validations
    run_job(parted, Never())
    for name in ("validation.jsonl", "metrics.jsonl"):
        assert read(parted.out / name) == read(whole.out / name)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("at", ["save", "prune"])
def test_killed_around_the_best_weights_no_validation_is_lost_or_there_twice(
    make_job: Any, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that best weights are written or removed the process ends there, and another one goes on."""
    whole, killed = (make_job(out=name, every=1, keep="best") for name in ("whole", "killed"))
    scripted_values(monkeypatch, {step: step / 5 for step in range(5)})
    run_job(whole, Never())
    real, done = getattr(BestWeights, at), set[Any]()

    def fall(self: BestWeights, *arguments: Any) -> None:
        real(self, *arguments)
        key = arguments[0] if at == "save" else len(arguments[0])
        if self.job.out == killed.out and key not in done:
            done.add(key)
            raise KilledError

    monkeypatch.setattr(BestWeights, at, fall)
    for _ in range(12):
        try:
            run_job(killed, Never())
            break
        except KilledError:
            pass
    assert len(done) >= 4
    assert read(killed.out / "validation.jsonl") == read(whole.out / "validation.jsonl")
    weights = [(job.out / "model/model.safetensors").read_bytes() for job in (whole, killed)]
    assert weights[0] == weights[1]
    assert [path.name for path in (killed.out / "checkpoints").glob("best-*")] == ["best-000004"]


def scripted_values(monkeypatch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    """Validations come to these values, whatever the model answers."""
    measure = Validation.measure

    def note(self: Any, step: int, *rest: Any) -> Any:
        self.now = step
        return measure(self, step, *rest)

    monkeypatch.setattr(Validation, "measure", note)
    monkeypatch.setattr(Validation, "_measured", lambda self, _: {"pass@1": values[self.now], "problems": 5})


@pytest.mark.parametrize(
    ("values", "kept"),
    [({0: 0.1, 2: 0.5, 4: 0.5}, 2), ({0: 0.6, 2: 0.5, 4: 0.6}, 0), ({0: 0, 2: 0.1, 4: 0.2}, 4)],
)
def test_the_best_steps_weights_are_kept_and_ties_go_to_the_earlier(
    make_job: Any, monkeypatch: pytest.MonkeyPatch, values: dict[int, float], kept: int
) -> None:
    scripted_values(monkeypatch, values)
    job = make_job(every=2, keep="best")
    run_job(job, Never())
    manifest = json.loads((job.out / "manifest.json").read_text())
    assert (manifest["model_step"], manifest["steps"]) == (kept, 4)
    assert manifest["validation"] == {"metric": "pass@1", "best_step": kept, "best": values[kept]}
    weights = (job.out / "model/model.safetensors").read_bytes()
    if kept == 0:
        assert weights == (job.init / "model.safetensors").read_bytes()
    else:
        assert weights == (job.out / f"checkpoints/best-{kept:06d}/model/model.safetensors").read_bytes()
    last = make_job(out="last", every=2)
    run_job(last, Never())
    assert ((last.out / "model/model.safetensors").read_bytes() == weights) is (kept == 4)
    checkpoints = {path.name for path in (last.out / "checkpoints").iterdir()}
    assert (f"best-{kept:06d}" in checkpoints) is (kept > 0)  # kept beside the last two, whatever becomes the model


def test_the_best_steps_adapter_goes_with_its_weights(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    scripted_values(monkeypatch, {0: 0.1, 2: 0.5, 4: 0.4})
    job = make_job(every=2, keep="best", lora_rank=2, learning_rate=1e-2, dtype="float32")
    run_job(job, Never())
    assert json.loads((job.out / "manifest.json").read_text())["model_step"] == 2
    tokens = torch.arange(2, 40)[None]
    base, alone = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (job.init, job.out / "model"))
    with_adapter = PeftModel.from_pretrained(base, job.out / "adapter").eval()
    torch.testing.assert_close(alone(tokens).logits, with_adapter(tokens).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("temperature", "stay"), [(0.6, [0, 2, 4]), (0.1, [2, 4])])
def test_lines_of_other_settings_are_not_compared_with_new_ones(
    make_job: Any, monkeypatch: pytest.MonkeyPatch, temperature: float, stay: list[int]
) -> None:
    """A run goes on from step 2: what was measured before stands, unless it was measured in another way."""
    scripted_values(monkeypatch, {0: 0.9, 2: 0.1, 4: 0.4})
    job = replace(make_job(every=2), validation_temperature=0.6)
    run_job(job, Never())
    (job.out / "manifest.json").unlink()
    run_job(replace(job, validation_temperature=temperature), Never())
    lines = [json.loads(line) for line in (job.out / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == stay


def test_best_weights_that_are_damaged_are_not_taken(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_values(monkeypatch, {0: 0.1, 2: 0.5, 4: 0.4})
    job = make_job(every=2, keep="best")
    real = best.is_sound

    def damage_first(folder: Path) -> bool:
        (folder / "model/config.json").write_text("{}")
        return real(folder)

    monkeypatch.setattr(best, "is_sound", damage_first)
    with pytest.raises(DamagedBestError, match="best-000002, the best step's weights, is damaged or gone"):
        run_job(job, Never())
    assert not (job.out / "manifest.json").exists()


def test_what_a_resumed_run_may_need_stays(make_job: Any) -> None:
    """Best are steps 2, 5, 9 in turn; checkpoints of 4 and 8 are left, so 2 (of 4), 5 (of 8) and 9 (now) are needed."""
    job = make_job()
    lines: Lines = [{"step": s, "pass@1": v} for s, v in [(0, 0.1), (2, 0.3), (3, 0.3), (5, 0.4), (9, 0.5)]]
    weights = BestWeights(job, ALONE)
    for step in (1, 2, 3, 5, 9):
        weights.path(step).mkdir(parents=True)
    weights.prune(lines, [4, 8])
    assert sorted(path.name for path in weights.folder.iterdir()) == ["best-000002", "best-000005", "best-000009"]
    assert [best_step(lines, up_to) for up_to in (1, 3, 8, 9)] == [0, 2, 5, 9]
    assert best_step([{"step": 0, "problems": 0}]) is None
    shutil.rmtree(weights.folder)


def test_validation_belongs_to_the_identity_only_where_it_chooses_the_weights(make_job: Any) -> None:
    plain = make_job()
    assert identity(make_job(every=3)) == identity(plain)
    assert not {name for name in identity(plain) if "valid" in name or name in ("keep", "trackers", "peak_tflops")}
    chosen = make_job(every=3, keep="best")
    assert identity(chosen) != identity(replace(chosen, validation_samples=5)) != identity(plain)
    assert identity(chosen)["validation"] != str(chosen.validation)  # its content


def test_a_limit_asks_the_same_few_problems_each_time(make_job: Any, tmp_path: Path) -> None:
    """Those with the lowest ids, wherever they stand in the file; 0 asks all, as it was before there was a limit."""
    ids = ["c", "a", "d", "b"]
    rows = [Problem(name, "math", "tiny", f"q: {name}? ", "1") for name in ids]
    pq.write_table(to_table(rows, PROBLEM_SCHEMA), tmp_path / "some.parquet")
    whole = make_job(every=2, validation=tmp_path / "some.parquet", keep="best")
    few = replace(whole, validation_limit=2)
    assert [problem.problem_id for problem in asked_problems(whole)] == ids
    assert [problem.problem_id for problem in asked_problems(few)] == ["a", "b"]
    assert contexts_of(few) == [f"q: {name}? {PREFILL}" for name in "ab"]
    assert "validation_limit" not in identity(whole) | validation_identity(whole)
    assert (identity(few)["validation_limit"], validation_identity(few)["validation_limit"]) == (2, 2)
    assert identity(replace(few, keep=Keep.LAST)) == identity(replace(whole, keep=Keep.LAST))
    run_job(few, Never())
    assert {line["samples"] for line in read(few.out / "validation.jsonl")} == {2 * 3}


def test_settings_that_do_not_fit_are_refused(make_job: Any) -> None:
    for job, words in [
        (replace(make_job(), keep=Keep.BEST), "needs validate_every"),
        (replace(make_job(every=2), validation=None), "needs the field 'validation'"),
        (replace(make_job(every=2), validation_samples=0), "validation_samples must be at least 1"),
        (replace(make_job(every=2), validation_limit=-1), "validation_limit must not be negative"),
    ]:
        with pytest.raises(JobError, match=words):
            require_settings(job)


def test_a_vllm_answers_with_the_weights_of_the_step(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As training is: the tiny engine stands in, and says what it was given."""
    engines = install(monkeypatch)
    job = make_job("grpo", every=2, rollouts="vllm")
    run_job(job, Never())
    [engine] = engines
    assert [line["step"] for line in read(job.out / "validation.jsonl")] == [0, 2]
    assert engine.calls.count("load") == 2 + 2  # rounds and validations, asleep in between
    assert engine.calls.count("wake") == 3
    assert [request.max_tokens for request in engine.answered] == [5] * 15 * 2
    assert len({request.seed for request in engine.answered}) > 28


def test_an_activation_checkpointing_model_answers_out_of_training_mode(make_job: Any) -> None:
    """In training mode transformers would turn the cache off, with a warning, which is an error in tests."""
    plain, checkpointed = make_job(out="plain", every=4), make_job(out="again", every=4, activation_checkpointing=True)
    for job in (plain, checkpointed):
        run_job(job, Never())
    assert read(plain.out / "validation.jsonl")[0] == read(checkpointed.out / "validation.jsonl")[0]


def test_how_many_answers_are_written_at_once_changes_none(make_job: Any) -> None:
    """Each has a seed of its own; what is beside it in a batch is padding."""
    few, many = (make_job(out=f"{at_once}", every=4, validation_batch=at_once) for at_once in (2, 15))
    for job in (few, many):
        run_job(job, Never())
    assert read(few.out / "validation.jsonl") == read(many.out / "validation.jsonl")
    assert len({line["completion_length"] for line in read(few.out / "validation.jsonl")}) > 1


def test_nucleus_keeps_the_fewest_tokens_that_have_top_p() -> None:
    """0.5 + 0.3 reach 0.7, so the 0.15 and the 0.05 go; with 0.5 exactly the first is enough."""
    shares_BV = torch.tensor([[0.05, 0.5, 0.15, 0.3]])
    assert nucleus(shares_BV, 0.7).tolist() == [pytest.approx([0, 0.5, 0, 0.3])]
    assert nucleus(shares_BV, 0.5).tolist() == [pytest.approx([0, 0.5, 0, 0])]
    logits_BV = shares_BV.log().repeat(4000, 1)
    numbers = RowNumbers(range(4000), 1, logits_BV.device)
    drawn = DrawnTokens(1.0, numbers, 0.7)(torch.empty(0), logits_BV).argmax(-1)
    assert set(drawn.tolist()) == {1, 3}
    assert (drawn == 1).float().mean().item() == pytest.approx(5 / 8, abs=0.03)
    assert set(DrawnTokens(0.0, numbers)(torch.empty(0), logits_BV).argmax(-1).tolist()) == {1}
