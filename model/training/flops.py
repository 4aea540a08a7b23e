"""MFU: the share of a device's peak at which a step did the arithmetic that its trained model needs.

Model FLOPs after PaLM (arXiv:2204.02311, appendix B): 6 per weight and token, forward and backward, and 12·L·H·Q·T
per token for attention over T tokens (L layers, H heads of Q entries; the causal half is not taken off). A token sees
its own document only, so T is that document's length. Three things are as they are here: the vocabulary head runs, and
counts, at predicted tokens only; an embedding is looked up, which is no product; a frozen weight needs no gradient of
its own, so it counts 4. Counted is the trained model alone: what a teacher, a reference, a value model, rollouts and
layers that run twice compute is left out, while the step's seconds hold all of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from model.training.documents import Documents
from model.training.forward import Model
from model.training.job import Job, Precision
from model.training.parallel import World
from model.training.step import MicroBatch, StepWork

_FORWARD_BACKWARD, _FROZEN = 6, 4
# Dense bfloat16 peaks, 10^12 operations a second, as their makers' pages have them (without sparsity), after the table
# of pytorch/torchtitan (torchtitan/tools/utils.py at 0258167). The first pattern that a device's name holds counts.
_PEAKS = (
    (r"\bMIG\b|\bH200 NVL\b", 0.0),  # a part of a device, or one that the table does not have
    (r"\bA100\b", 312.0),
    (r"\bH100 NVL\b", 835.0),
    (r"\bH100 PCIe\b", 756.0),
    (r"\bH100\b", 989.0),
    (r"\bH200\b", 989.0),
    (r"\bB200\b", 2250.0),
    (r"\bL40S\b", 362.0),
    (r"\bMI300X\b", 1300.0),
)


@dataclass(frozen=True)
class ModelFlops:
    """What one model's arithmetic comes to, forward and backward."""

    token: int  # FLOPs of a row's token in all but head and attention
    predicted: int  # of a predicted token, in the head
    attended: int  # of a token for each token of its document

    @classmethod
    def of(cls, model: Model) -> ModelFlops:
        """Counted over a transformers model's weights and the shapes in its config."""
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        entries = getattr(config, "head_dim", None) or config.hidden_size // heads
        looked_up, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        products = [weight for weight in model.parameters() if weight is not looked_up and weight is not head]
        attended = 2 * _FORWARD_BACKWARD * config.num_hidden_layers * heads * entries
        return cls(sum(map(_of_weight, products)), _of_weight(head), attended)

    def of_documents(self, documents: Documents, predicted: int) -> int:
        """FLOPs of documents of whose tokens so many are predicted; what several go on from counts once."""
        seen = sum(
            length * (before + length) for length, before in zip(documents.lengths, documents.before, strict=True)
        )
        return self.token * documents.total + self.predicted * predicted + self.attended * seen


def _of_weight(weight: torch.Tensor) -> int:
    return weight.numel() * (_FORWARD_BACKWARD if weight.requires_grad else _FROZEN)


class Meter:
    """The metric `mfu` of each step; nothing where the device's peak is not known."""

    def __init__(self, job: Job, model: Model, world: World) -> None:
        self.world, self.peak = world, peak_flops(job, world.device)
        self.flops = ModelFlops.of(model) if self.peak else None

    def measured(self, work: StepWork, seconds: float) -> dict[str, float]:
        """MFU of a step that took so long, all its updates and all processes together."""
        if self.flops is None:
            return {}
        own = work.updates * sum(self._of(micro) for micro in work.micro_batches)
        total = self.world.sums({"flops": float(own)})["flops"]
        return {"mfu": total / (seconds * self.peak * self.world.size)}

    def _of(self, micro: MicroBatch) -> int:
        assert self.flops is not None
        tokens = micro.tokens
        return self.flops.of_documents(tokens.documents, tokens.token_count) if tokens.token_count else 0


def peak_flops(job: Job, device: torch.device) -> float:
    """Operations a second of one device: as the job says, or known from its name; 0: not known."""
    if job.peak_tflops:
        return job.peak_tflops * 1e12
    if device.type != "cuda" or job.dtype is not Precision.BFLOAT16:
        return 0.0
    return known_peak(torch.cuda.get_device_name(device)) * 1e12


def known_peak(name: str) -> float:
    """Dense bfloat16 peak of a device by its name, 10^12 operations a second; 0: not known."""
    return next((peak for pattern, peak in _PEAKS if re.search(pattern, name)), 0.0)
