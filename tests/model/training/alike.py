"""Jobs of every stage that come out alike wherever they run: in one process or two, on a CPU or a GPU.

A sampler's random numbers come of a row's seed and not of the device, so what is sampled is alike too, in float32.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.training import runner
from model.training.job import JOBS, job_from
from model.training.parallel import World
from model.training.runner import run_job
from tests.model.training.pair import RawJob, plain
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
GRPO_OF_ADAPTERS = GRPO | {"lora_rank": 2, "activation_checkpointing": True, "normalise": "constant"}
# A process has no rollout, and so the reference, which is the policy without its adapters, is the first that it runs.
PPO_OF_ONE = PPO | {"problems_per_step": 1, "group_size": 1, "lora_rank": 2, "dtype": "bfloat16"}

JOBS_OF_ALL: dict[str, RawJob] = {
    "sft": SFT | {"optimizer_state": "bfloat16"},
    "sft in bfloat16 with a head of its own": SFT | {"init": "untied", "dtype": "bfloat16", "epochs": 2},
    "distill": SFT | {"stage": "distill", "teacher": "teacher", "normalise": "token"},
    "gspo, validated": GSPO,
    "grpo with refills and a head of its own": GRPO | {"init": "untied", "max_refills": 2, "kl_in": "reward"},
    "grpo of adapters, layers run again": GRPO_OF_ADAPTERS,
    "grpo by an engine, one round ahead": GRPO | {"rollouts": "vllm", "rollouts_ahead": 1, "mismatch": "tis"},
    "ppo": PPO,
    "ppo of adapters in bfloat16, one idle": PPO_OF_ONE,
    "on_policy": ROLLOUTS | {"stage": "on_policy", "teacher": "teacher", "normalise": "token"},
}


def write_inputs(folder: Path) -> Path:
    """Models, examples and problems."""
    save_tiny(folder / "tied")
    save_tiny(folder / "teacher", seed=5)
    make_model(tied=False).save_pretrained(save_tiny(folder / "untied"))
    write_examples(folder / "examples.parquet")
    write_problems(folder / "problems.parquet")
    return folder


def make_job(folder: Path, settings: RawJob, out: str) -> RawJob:
    """A job over the inputs of `folder`."""
    common = {"init": "tied", "prefill": PREFILL, "learning_rate": 3e-3, "threads": 1, "dtype": "float32"}
    common |= {"tokens_per_micro_batch": 60, "checkpoint_every": 2, "trackers": []}
    job = common | settings | {"out": folder / out}
    data = "examples" if "epochs" in job else "problems"
    job[data] = folder / f"{data}.parquet"
    if "validate_every" in job:
        job["validation"] = folder / "problems.parquet"
    return job | {name: folder / job[name] for name in ("init", "teacher") if name in job}


def alone(job: RawJob, device: torch.device = CPU) -> Path:
    """In the test's own process: starting one costs seconds."""
    values = plain(job)
    with pytest.MonkeyPatch.context() as patched:
        install(patched)
        patched.setattr(runner, "joined", lambda: nullcontext(World(device)))
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


def assert_trained_alike(name: str, two: Path, one: Path) -> None:
    """Every metric of every step: losses, gradients, rewards, lengths; and the weights in the end."""
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
