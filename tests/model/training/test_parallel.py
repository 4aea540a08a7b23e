"""Two processes (FSDP2 over gloo) train as one does: what they sample, are paid, answer and learn."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.training.data import Row, micro_batches, row_packs
from model.training.job import JOBS, job_from
from model.training.parallel import World
from model.training.runner import run_job
from tests.model.training.pair import RawJob, plain, train_in_two
from tests.model.training.tiny import PREFILL, Never, make_model, save_tiny, write_examples, write_problems
from tests.model.training.tiny_engine import install

CPU = torch.device("cpu")
CLOCKS = {"seconds", "prepare_seconds", "tokens_per_second", "sync_seconds", "rollout_wait_seconds"}

SFT: RawJob = {"stage": "sft", "epochs": 4, "tokens_per_batch": 150}
ROLLOUTS: RawJob = {"steps": 4, "problems_per_step": 3, "group_size": 5, "max_tokens": 9, "prefill": ""}
# Paid by length alone, since a random model is never right.
GRPO = ROLLOUTS | {"stage": "grpo", "overlong_tokens": 9, "kl_weight": 0.05}
VALIDATED: RawJob = {"validate_every": 2, "validation_samples": 3, "validation_max_tokens": 9, "validation_batch": 4}
VALIDATED |= {"validation_checks": ["finish"], "validation_require": ["finish"], "keep": "best"}
GSPO = GRPO | VALIDATED | {"objective": "gspo", "updates_per_step": 2}
PPO = GRPO | {"stage": "ppo", "updates_per_step": 2, "steps": 5}
# A process has no rollout, and so the reference, which is the policy without its adapters, is the first that it runs.
PPO_OF_ONE = PPO | {"problems_per_step": 1, "group_size": 1, "lora_rank": 2, "dtype": "bfloat16"}

BEGUN = "ppo that one began"
JOBS_OF_BOTH: dict[str, RawJob] = {
    "sft": SFT,
    "sft with a head of its own": SFT | {"init": "untied"},
    "distill in bfloat16": SFT | {"stage": "distill", "teacher": "teacher", "dtype": "bfloat16", "epochs": 2},
    "gspo, validated": GSPO,
    "grpo with refills and a head of its own": GRPO | {"init": "untied", "max_refills": 2, "kl_in": "reward"},
    "grpo of adapters, layers run again": GRPO | {"lora_rank": 2, "activation_checkpointing": True},
    "grpo by an engine, one round ahead": GRPO | {"rollouts": "vllm", "rollouts_ahead": 1, "mismatch": "tis"},
    "ppo": PPO,
    "ppo of adapters in bfloat16, one idle": PPO_OF_ONE,
    "on_policy": ROLLOUTS | {"stage": "on_policy", "teacher": "teacher", "normalise": "token"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, examples and problems."""
    found = tmp_path_factory.mktemp("parallel")
    save_tiny(found / "tied")
    save_tiny(found / "teacher", seed=5)
    make_model(tied=False).save_pretrained(save_tiny(found / "untied"))
    write_examples(found / "examples.parquet")
    write_problems(found / "problems.parquet")
    return found


@pytest.fixture(scope="module")
def make_job(folder: Path) -> Callable[..., RawJob]:
    common = {"init": "tied", "prefill": PREFILL, "learning_rate": 3e-3, "threads": 1, "dtype": "float32"}
    common |= {"tokens_per_micro_batch": 60, "checkpoint_every": 2, "trackers": []}

    def make(settings: RawJob, out: str) -> RawJob:
        job = common | settings | {"out": folder / out}
        job["examples" if "epochs" in job else "problems"] = (
            folder / f"{'examples' if 'epochs' in job else 'problems'}.parquet"
        )
        if "validate_every" in job:
            job["validation"] = folder / "problems.parquet"
        return job | {name: folder / job[name] for name in ("init", "teacher") if name in job}

    return make


@pytest.fixture(scope="module")
def in_two(make_job: Callable[..., RawJob]) -> dict[str, Path]:
    """Every job, carried out by two processes, and one that one process had begun; their folders."""
    jobs = {name: make_job(settings, f"two/{name}") for name, settings in JOBS_OF_BOTH.items()}
    jobs[BEGUN] = make_job(PPO, f"two/{BEGUN}")
    forget_the_end(alone(jobs[BEGUN]))
    train_in_two(list(jobs.values()))
    return {name: job["out"] for name, job in jobs.items()}


def forget_the_end(out: Path) -> None:
    """As if the run had been killed after its first checkpoint."""
    (out / "manifest.json").unlink()
    first, *later = sorted((out / "checkpoints").glob("step-*"))
    for checkpoint in later:
        checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.partial"))
    assert later
    assert len(losses(out)) > int(first.name.removeprefix("step-"))


def alone(job: RawJob) -> Path:
    """In the test's own process: starting one costs seconds."""
    values = plain(job)
    with pytest.MonkeyPatch.context() as patched:
        install(patched)
        run_job(job_from(JOBS[values.pop("stage")], values), Never())
    return Path(job["out"])


def lines(out: Path, name: str = "metrics") -> list[dict[str, float]]:
    found = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in found]


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in lines(out)]


def assert_alike(two: list[dict[str, float]], one: list[dict[str, float]], rel: float) -> None:
    assert len(two) == len(one)
    for of_two, of_one in zip(two, one, strict=True):
        assert of_two == pytest.approx(of_one, rel=rel, abs=1e-4)


@pytest.mark.parametrize("name", JOBS_OF_BOTH)
def test_two_processes_train_as_one(name: str, make_job: Callable[..., RawJob], in_two: dict[str, Path]) -> None:
    """Every metric of every step: losses, gradients, rewards, lengths; and the weights in the end."""
    one, two = alone(make_job(JOBS_OF_BOTH[name], f"one/{name}")), in_two[name]
    in_bfloat16 = "bfloat16" in name
    assert_alike(lines(two), lines(one), 0.05 if in_bfloat16 else 2e-3)
    assert lines(two)[-1]["grad_norm"] > 0.01, "nothing learned"
    assert len({line["reward"] for line in lines(two) if "reward" in line}) != 1, "all paid alike"
    if in_bfloat16:
        return
    of_one, of_two = (load_file(out / "model/model.safetensors") for out in (one, two))
    assert of_one.keys() == of_two.keys()
    for weight_name, weight in of_one.items():
        torch.testing.assert_close(of_two[weight_name], weight, atol=2e-3, rtol=0, msg=weight_name)


def test_two_processes_answer_as_one(make_job: Callable[..., RawJob], in_two: dict[str, Path]) -> None:
    """The same validations, the same best step, and its weights kept; the answers of all are judged."""
    name = "gspo, validated"
    one, two = alone(make_job(GSPO, f"one/{name}")), in_two[name]  # done already, unless this test runs by itself
    assert_alike(lines(two, "validation"), lines(one, "validation"), 1e-6)
    assert {line["samples"] for line in lines(two, "validation")} == {15}
    assert len({line["pass@1"] for line in lines(two, "validation")}) > 1
    of_one, of_two = (json.loads((out / "manifest.json").read_text())["model_step"] for out in (one, two))
    assert of_one == of_two


@pytest.mark.parametrize("name", ["sft", "ppo", BEGUN])
def test_another_number_of_processes_goes_on_from_a_checkpoint(
    name: str, make_job: Callable[..., RawJob], in_two: dict[str, Path]
) -> None:
    """Two began and one ends, or the other way round: what a value model had learned goes on too."""
    settings = JOBS_OF_BOTH["ppo" if name == BEGUN else name]
    parted, whole = in_two[name], alone(make_job(settings, f"one/{'ppo' if name == BEGUN else name}"))
    if name != BEGUN:
        forget_the_end(parted)
        alone(make_job(settings, f"two/{name}"))
    assert_alike(lines(parted), lines(whole), 2e-3)


def shares_of(packs: Callable[[int], list[list[int]]], size: int) -> list[list[list[int]]]:
    return [list(World(CPU, rank, size, None).share(packs(size))) for rank in range(size)]


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 20])
def test_every_process_gets_as_many_packs_and_every_row_once(rows: int) -> None:
    lengths = [3 + i % 5 for i in range(rows)]
    grouped = [Row([1] * (i // 3 + 1), [2] * length) for i, length in enumerate(lengths)]
    for packs in (lambda size: micro_batches(lengths, 12, size), lambda size: row_packs(grouped, 12, size)):
        shares = shares_of(packs, 4)
        assert len({len(share) for share in shares}) == 1
        assert sorted(i for share in shares for pack in share for i in pack) == list(range(rows))


def test_processes_are_not_left_idle_where_the_budget_would_take_all() -> None:
    shares = shares_of(lambda size: micro_batches([4, 4, 4, 4], 1000, size), 2)
    assert [len(pack) for share in shares for pack in share] == [2, 2]
    group = [Row([1, 2, 3], [4] * 5) for _ in range(8)]
    shares = shares_of(lambda size: row_packs(group, 1000, size), 4)
    assert [len(pack) for share in shares for pack in share] == [2, 2, 2, 2]
    assert row_packs(group, 1000) == [list(range(8))]


def test_processes_wait_for_one_another_little() -> None:
    """Each step of packs takes what its longest takes: together hardly more than all tokens shared evenly."""
    draw = random.Random(0)
    for size in (2, 4, 8):
        lengths = [int(draw.lognormvariate(6, 0.8)) for _ in range(600)]
        packs = micro_batches(lengths, 8192, size)
        tokens = [sum(lengths[i] for i in pack) for pack in packs]
        waited = sum(max(tokens[at : at + size]) for at in range(0, len(tokens), size))
        assert waited * size <= 1.02 * sum(lengths)


def test_what_is_dealt_out_comes_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (0, 1, 5, 8):
        items = list(range(count))
        parts = [list(World(CPU, rank, 3, None).dealt(items)) for rank in range(3)]
        monkeypatch.setattr(World, "gather", lambda _self, _own, parts=parts: parts)
        assert World(CPU, 1, 3, None).collected(parts[1]) == items
