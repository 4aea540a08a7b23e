"""Folders that are refused; and what a model has that is cut over processes, beside one that is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from model.errors import ModelFolderError
from model.training import load
from model.training.adapters import add_adapters
from model.training.job import JobError, Precision, SFTJob
from model.training.load import load_cut, load_frozen, load_model
from model.training.parallel import World, named_tensors
from model.training.rollouts import LocalRollouts
from tests.model.training.tiny import ALONE, make_model, make_tokenizer, save_tiny

CPU = torch.device("cpu")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="does not hold a model"):
        load_model(tmp_path, Precision.FLOAT32, CPU)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    make_model(vocabulary=20).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(JobError, match=r"token ids up to 44, the model only 20: this is another model's tokenizer"):
        load_model(tmp_path, Precision.FLOAT32, CPU)


def test_a_tokenizer_that_leaves_most_of_the_head_unused_is_refused(tmp_path: Path) -> None:
    make_model(vocabulary=2000).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(JobError, match=r"token ids up to 44, the model 2000: this is another model's tokenizer"):
        load_model(tmp_path, Precision.FLOAT32, CPU)


def test_a_head_that_was_rounded_up_is_none_of_another_model(tmp_path: Path) -> None:
    make_model(vocabulary=1024).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    load_model(tmp_path, Precision.FLOAT32, CPU)


def test_a_tokenizer_that_ends_no_turn_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    make_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(JobError, match="names no eos_token: set it"):
        load_model(tmp_path, Precision.FLOAT32, CPU)


def test_no_token_to_pad_with_is_needed(tmp_path: Path) -> None:
    """Contexts of different lengths are padded behind a mask: a missing pad token changes no sampled token."""
    drawn = []
    for pad in ("<unk>", None):
        tokenizer = make_tokenizer()
        tokenizer.pad_token = pad
        make_model().save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        model, read = load_model(tmp_path, Precision.FLOAT32, CPU)
        assert (read.pad_token is None) == (pad is None)
        torch.manual_seed(0)
        rollouts = LocalRollouts(model, read, ALONE, temperature=1.0, max_tokens=6, stop=())
        drawn.append([rollout.row.completion for rollout in rollouts.sample(["ab", "abcdef"])])
    assert drawn[0] == drawn[1]


# --- cut over processes ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Of one process, which is cut all the same."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield World(CPU, mesh=init_device_mesh("cpu", (1,)))
    dist.destroy_process_group()


def job_of(folder: Path, **settings: Any) -> SFTJob:
    return SFTJob(init=folder, out=folder / "out", examples=folder, **settings)


def untied(folder: Path) -> Path:
    make_model(tied=False).save_pretrained(save_tiny(folder))
    return folder


def tied_by_its_config_alone(folder: Path) -> Path:
    """Its weights hold a head of their own, which transformers then takes."""
    config = json.loads((untied(folder) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return folder


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@pytest.mark.parametrize("make", [save_tiny, untied, tied_by_its_config_alone])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_it_has_what_its_folder_has(make: Any, lora_rank: int, world: World, tmp_path: Path) -> None:
    job = job_of(make(tmp_path), lora_rank=lora_rank, dtype=Precision.BFLOAT16)
    expected, _ = load_model(tmp_path, job.dtype, CPU)
    add_adapters(expected, job)
    found, _ = load_cut(tmp_path, job, world, lambda model: add_adapters(model, job))
    tensors = dict(named_tensors(expected))
    assert ("lm_head.weight" in tensors) == (make is not save_tiny)
    assert [name for name, _ in named_tensors(found)] == list(tensors)
    for name, own in named_tensors(found):
        assert own.requires_grad == tensors[name].requires_grad, name
        assert torch.equal(whole(own).float(), tensors[name].float()), name
        if own.requires_grad:
            assert own.dtype == torch.float32, name


def test_what_a_folder_says_of_generating_is_kept(world: World, tmp_path: Path) -> None:
    """In config.json too, where older folders have it."""
    config = json.loads((save_tiny(tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"do_sample": True, "temperature": 0.6}))
    (tmp_path / "generation_config.json").unlink()
    found, _ = load_cut(tmp_path, job_of(tmp_path), world, lambda _model: None)
    assert found.generation_config.temperature == 0.6


def test_a_type_that_the_folder_keeps_is_kept(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As experts' biases, which transformers leaves in float32."""
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", {"input_layernorm"})
    found, _ = load_frozen(save_tiny(tmp_path), job_of(tmp_path, dtype=Precision.BFLOAT16), world)
    kept = {name for name, weight in found.named_parameters() if weight.dtype == torch.float32}
    assert kept == {f"model.layers.{i}.input_layernorm.weight" for i in range(2)}


def test_weights_that_the_config_does_not_know_are_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = load.load_model

    def more(*given: Any) -> Any:
        model, tokenizer = real(*given)
        model.register_parameter("unheard_of", torch.nn.Parameter(torch.ones(2)))
        return model, tokenizer

    monkeypatch.setattr(load, "load_model", more)
    with pytest.raises(ModelFolderError, match="disagree about unheard_of"):
        load_cut(save_tiny(tmp_path), job_of(tmp_path), world, lambda _model: None)


def test_a_folder_without_weights_fails_in_all_processes_alike(world: World, tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    make_model().config.save_pretrained(tmp_path)
    with pytest.raises(ModelFolderError, match="does not hold a model"):
        load_cut(tmp_path, job_of(tmp_path), world, lambda _model: None)
