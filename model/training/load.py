"""A model from its folder: whole on one device, or cut over the processes that train it.

A cut model is made without weights, on torch's meta device, and cut; the leading process alone reads the weights, and
sends each to all (`World.fill`). What its config does not tell, types and ties, follows the weights that were read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from model.errors import ModelFolderError, StillhouseError, TrainingError, first_line
from model.training.data import Tokenizer
from model.training.documents import attend_by_document, compile_layers
from model.training.forward import Model
from model.training.job import Job, JobError, Precision
from model.training.out_of_memory import out_of_memory
from model.training.parallel import World, named_tensors

# Token ids that a model may have and no tokenizer knows, to round the head up: 2 % in phi-2, less in others.
_PADDING = 1024


def load_model(
    folder: Path, precision: Precision, device: torch.device, *, compiled: bool = False
) -> tuple[Model, Tokenizer]:
    """Model and tokenizer of a folder, whose layers may be compiled, which counts on a GPU alone.

    Dropout stays off: the policy that samples is the one that is scored.
    """
    from transformers import AutoModelForCausalLM

    with folder_errors(folder), room_for(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, precision), local_files_only=True)
    with room_for(folder):
        model = model.to(device)
    return model.eval(), ready(folder, model, compiled=compiled and device.type != "cpu")


def outline(folder: Path, precision: Precision, device: torch.device, *, compiled: bool) -> tuple[Model, Tokenizer]:
    """As `load_model`, without the weights: they are on torch's meta device, which gives them no memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with folder_errors(folder), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, precision))
    return model.eval(), ready(folder, model, compiled=compiled and device.type != "cpu")


@contextmanager
def folder_errors(folder: Path) -> Iterator[None]:
    """Tells what goes wrong in reading a folder by one name, and in one line."""
    try:
        yield
    except (StillhouseError, MemoryError):
        raise
    # What cannot be read is told by transformers, safetensors, torch's unpickler, and tokenizers by a mere Exception.
    except Exception as error:
        why = first_line(error)
        remedy = "is the folder complete, and of a kind that this version of transformers reads?"
        raise ModelFolderError(
            f"{folder} does not hold a model with its tokenizer ({type(error).__name__}: {why}): {remedy}"
        ) from error


def room_for(folder: Path) -> AbstractContextManager[None]:
    """A block that takes memory for a model's weights, for which fewer tokens at once would make no room."""
    too_large = f"{folder} does not fit: take a smaller model, or cut it over more processes"
    return out_of_memory(too_large, TrainingError)


def ready(folder: Path, model: Model, *, compiled: bool) -> Tokenizer:
    """Has a folder's model attend by document; its tokenizer. Raises JobError where training would be wrong."""
    from transformers import AutoTokenizer

    with folder_errors(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for scaling in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(model.config, scaling, None) not in (None, 1, 1.0):
            raise JobError(f"{folder} scales its logits after the head ({scaling}), which training leaves out")
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise JobError(f"{folder} has a head with a bias, which training leaves out")
    require_tokenizer(folder, tokenizer, model.get_input_embeddings().num_embeddings)
    attend_by_document(model)
    if compiled:
        compile_layers(model)
    return tokenizer


def load_cut(folder: Path, job: Job, world: World, prepare: Callable[[Model], Any]) -> tuple[Model, Tokenizer]:
    """A model that is cut over the processes, and its tokenizer.

    `prepare` is called with the model while it is whole. The leading process alone reads the weights, into the main
    memory; a device has no more than its part and one whole weight at a time.
    """

    def read() -> Model:
        whole, _ = load_model(folder, job.dtype, torch.device("cpu"))
        prepare(whole)
        return whole

    model, tokenizer = outline(folder, job.dtype, world.device, compiled=job.compile)
    prepare(model)
    whole: Any = world.read(read)
    types = world.led(lambda: {name: weight.dtype for name, weight in named_tensors(whole)})
    conform(folder, model, types)
    model.generation_config = world.led(lambda: whole.generation_config)  # it is saved with the model
    with room_for(folder):
        world.shard(model, job.dtype)
        world.fill(model, whole, types)
    return model, tokenizer


def conform(folder: Path, model: Model, types: Mapping[str, torch.dtype]) -> None:
    """Gives a model without weights what its config alone does not tell: the `types` of the folder's own tensors.

    A head that the config ties to the embeddings, and the folder does not, becomes one of its own.
    """
    head, named = model.get_output_embeddings(), dict(model.named_modules())
    name = next(name for name, module in named.items() if module is head) + ".weight"
    if name in types and head.weight is model.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(torch.empty_like(head.weight), head.weight.requires_grad)
    own = dict(named_tensors(model))
    if odd := sorted(own.keys() ^ types.keys()):
        raise ModelFolderError(f"{folder}: config.json and the weights disagree about {odd[0]}: one of them has it")
    for name, weight in own.items():
        weight.data = weight.data.to(types[name])


def load_frozen(folder: Path, job: Job, world: World) -> tuple[Model, Tokenizer]:
    """A model that only scores tokens beside the one in training, cut over the processes as that one is."""
    if world.mesh is not None:
        return load_cut(folder, job, world, lambda model: model.requires_grad_(False))
    model, tokenizer = load_model(folder, job.dtype, world.device, compiled=job.compile)
    return model.requires_grad_(False), tokenizer


def require_tokenizer(folder: Path, tokenizer: Tokenizer, embeddings: int) -> None:
    """Raises JobError for a tokenizer that is not the model's, or does not say how a turn ends.

    A token to pad with is not needed: rows are packed, and rollouts pad with the end-of-turn token behind a mask.
    """
    if tokenizer.eos_token_id is None:
        raise JobError(
            f"{folder}: the tokenizer names no eos_token: set it to what ends a turn (tokenizer_config.json)"
        )
    last = max(tokenizer.get_vocab().values())
    if last >= embeddings or embeddings - last > max(_PADDING, embeddings // 10):
        only = "only " if last >= embeddings else ""
        wrong = f"the tokenizer knows token ids up to {last}, the model {only}{embeddings}"
        raise JobError(f"{folder}: {wrong}: this is another model's tokenizer; put the model's own beside it")


def dropout_of(model: Model) -> dict[str, Any]:
    """The settings of a model's config by which it drops something in training mode."""
    return {name: value for name, value in model.config.to_dict().items() if "drop" in name and value}


def checkpoint_activations(model: Model) -> None:
    """Has a model's layers run again in the backward pass: memory of one layer instead of all, for a third more work.

    transformers does so only in training mode, which must not mean dropout here. Raises JobError where it would.
    """
    if dropout := dropout_of(model):
        raise JobError(
            f"activation_checkpointing would turn on the model's dropout {dropout}: set it to 0 in its config"
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
