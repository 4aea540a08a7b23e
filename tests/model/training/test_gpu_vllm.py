"""Rollouts by a real vLLM on a GPU: one that shares the trainer's and sleeps while that works, and one beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model.sampling.vllm_server import EngineOptions, VLLMServer
from model.training.job import GRPOJob, job_from
from model.training.process import Stopped
from model.training.runner import run_job
from tests.model.training.alike import lines
from tests.model.training.test_gpu import After
from tests.model.training.tiny import Never, make_tokenizer, write_problems

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.timeout(600),
]
GIB = 2**30


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of a shape that vLLM's kernels for GPUs take."""
    from transformers import LlamaConfig, LlamaForCausalLM

    pytest.importorskip("vllm", reason="vLLM is not installed here")
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def job_of(small: Path, out: Path, **settings: Any) -> GRPOJob:
    """Paid by length, since a random model is never right."""
    raw: dict[str, Any] = {
        "init": str(small),
        "out": str(out),
        "problems": str(write_problems(out.parent / "problems")),
    }
    raw |= {"steps": 6, "problems_per_step": 4, "group_size": 8, "max_tokens": 24, "overlong_tokens": 24}
    raw |= {"learning_rate": 1e-3, "kl_weight": 0.02, "rollouts": "vllm", "mismatch": "tis", "checkpoint_every": 2}
    return job_from(GRPOJob, raw | settings)


def assert_synced(found: list[dict[str, float]]) -> None:
    """In bfloat16, rounded otherwise by engine and trainer; the weights move by more than that in these steps."""
    assert all(0 < line["sync_gap"] < 0.02 for line in found)
    assert all(line["grad_norm"] > 0.01 for line in found)
    assert len({line["reward"] for line in found}) > 1


def test_an_engine_on_the_trainers_gpu_sleeps_while_that_trains(small: Path, tmp_path: Path) -> None:
    job = job_of(small, tmp_path / "out", rollout_gpu_memory=0.3, rollout_args=["--enforce-eager"])
    with pytest.raises(Stopped, match="after step 2"):
        run_job(job, After(job.out, 2))
    log = (job.out / "vllm.log").read_text()
    freed = [float(found) for found in re.findall(r"Sleep mode freed ([\d.]+) GiB", log)]
    assert len(freed) == 2
    assert min(freed) > 0.2 * torch.cuda.mem_get_info()[1] / GIB
    run_job(job, Never())
    assert_synced(lines(job.out))
    assert [line["step"] for line in lines(job.out)] == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def server(small: Path, tmp_path: Path) -> Iterator[VLLMServer]:
    """An engine of someone else's. On one GPU it has a part of its memory, all the time."""
    options = EngineOptions(
        max_model_len=128,
        gpus=1,
        devices="1" if torch.cuda.device_count() > 1 else "",
        logprobs_mode="processed_logprobs",
        extra_args=("--gpu-memory-utilization", "0.3"),
    )
    with VLLMServer(small, "policy", log_path=tmp_path / "vllm.log", options=options) as started:
        yield started


def test_an_engine_of_its_own_samples_one_round_ahead(small: Path, tmp_path: Path, server: VLLMServer) -> None:
    job = job_of(small, tmp_path / "out", rollout_urls=[server.url], rollouts_ahead=1, max_tokens=48)
    run_job(job, Never())
    found = lines(job.out)
    assert_synced(found)
    assert [line["rollout_lag"] for line in found] == [0, 1, 1, 1, 1, 1]
