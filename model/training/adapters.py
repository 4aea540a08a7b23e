"""LoRA through `peft`: a frozen model, and beside each of its linear layers two small matrices that are trained.

    y = W x + (α / r) · B A x,   A of shape [r, in] drawn at random, B of shape [out, r] begun at 0   (arXiv:2106.09685)

A model keeps its class and its names here: adapters are put into the linear layers of its trunk, in place. What is
written for others (`model/`, checkpoints, rollout engines) has W + (α / r) B A in place of W, so nothing but `adapter/`
needs peft; the weights that are trained stay apart. Not covered: the head and the embeddings, which stay as they were;
experts that a mixture keeps as one tensor; quantised base weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.training.forward import Model
from model.training.job import Job, JobError
from model.training.parallel import cut_again

_NAME = "default"  # peft's own, for a model's only adapter
_BASE, _A, _B = ".base_layer.", f".lora_A.{_NAME}.", f".lora_B.{_NAME}."


def add_adapters(model: Model, job: Job) -> Model:
    """Freezes a model and gives it adapters, drawn from the job's seed; with `lora_rank` = 0 it stays as it is.

    Raises JobError where peft is missing, or where a target is no linear layer of the trunk.
    """
    if not job.lora_rank:
        return model
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise JobError("lora_rank needs the package peft: `pip install peft`, or set lora_rank = 0") from error
    config = LoraConfig(
        r=job.lora_rank,
        lora_alpha=job.lora_alpha,
        target_modules=targets(model, job),
        base_model_name_or_path=str(job.init),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        inject_adapter_in_model(config, model, _NAME)
    return model


def targets(model: Model, job: Job) -> list[str]:
    """Last names of the layers that get adapters: the job's, or those of all linear layers of the trunk."""
    layers = [name for name, layer in model.base_model.named_modules() if isinstance(layer, torch.nn.Linear)]
    known = sorted({name.rsplit(".", 1)[-1] for name in layers})
    wrong = sorted(set(job.lora_targets) - set(known))
    if wrong or not known:
        raise JobError(f"lora_targets: the trunk has no linear layer {wrong}; it has {', '.join(known) or 'none'}")
    return list(job.lora_targets) or known


def has_adapters(model: Model) -> bool:
    """Was the model given adapters?"""
    return bool(getattr(model, "peft_config", None))


@contextmanager
def adapters_off(model: Model) -> Iterator[None]:
    """A block in which the model is the one that it was before; for passes without gradient.

    peft's own `enable_adapters` would also say that the adapters are not trained, which FSDP keeps from its first pass.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


class WithoutAdapters:
    """A model as it was before its adapters, as far as scoring tokens asks for one; it takes no memory of its own."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def base_model(self, **arguments: Any) -> Any:
        """The trunk's pass, adapters off."""
        with adapters_off(self.model):
            found = self.model.base_model(**arguments)
        cut_again(self.model.base_model)
        return found

    def get_output_embeddings(self) -> Any:
        """The head, which has no adapter."""
        return self.model.get_output_embeddings()


def merged(model: Model, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """W + (α / r) B A for every adapted W, by the names that a model without adapters has; a new table of tensors.

    Added up in float32 and rounded once, to W's type. `weights`: the model's state, whole.
    """
    config = model.peft_config[_NAME]
    scale = config.lora_alpha / config.r
    whole = {}
    for name, weight in weights.items():
        if _A in name or _B in name:
            continue
        base, found, rest = name.partition(_BASE)
        whole[f"{base}.{rest}" if found else name] = weight
        if found and rest == "weight":
            a_RI, b_OR = (weights[f"{base}{part}weight"] for part in (_A, _B))
            sum_OI = torch.addmm(weight.float(), b_OR.float(), a_RI.float(), alpha=scale)
            whole[f"{base}.weight"] = sum_OI.to(weight.dtype)
    return whole


def save_adapter(folder: Path, model: Model, weights: Mapping[str, Tensor]) -> None:
    """The adapters alone, as `peft.PeftModel.from_pretrained(base, folder)` reads them."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    own = get_peft_model_state_dict(model, state_dict=dict(weights), adapter_name=_NAME, save_embedding_layers=False)
    folder.mkdir(exist_ok=True)
    named = {f"base_model.model.{name}": weight.contiguous() for name, weight in own.items()}
    save_file(named, folder / "adapter_model.safetensors")
    model.peft_config[_NAME].save_pretrained(folder)
