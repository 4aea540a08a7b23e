"""AdamW on float32 master weights, whatever the model computes in, and the learning rate of every step.

A bfloat16 model is 2.8 times as fast as autocast on a CPU with avx512_bf16, but its weights cannot hold a small
update: gradients are added up and applied in float32, and the result is rounded back into the model. A model that is
cut over several processes (`model/training/parallel.py`) is in float32 by itself, each process having its part.

The moments may be kept in bfloat16 (DeepSeek-V3, arXiv:2412.19437, section 3.3.3) and are widened, one weight's at a
time, for the update. Rounded to 8 bits, a moment no longer follows a change of less than 1/512 to 1/256 of itself a
step: with β₂ = 0.95 the second one may stay up to 8 % off the mean of squares, and so a step up to 4 %; with 0.999 it
would not move at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from model.training.job import Job, Precision, Schedule
from model.training.parallel import World, gathered


@dataclass(frozen=True)
class Head:
    """The vocabulary head during one step: its weight, and the float32 sum of its gradients (None: it is frozen)."""

    weight_VH: Tensor
    gradient_VH: Tensor | None


class MasterAdamW:
    """AdamW whose parameters are float32 copies of a model's (the model's own where those are float32).

    A frozen weight (`adapters.py`) has no copy, no gradient and no moments.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        weight_decay: float,
        precision: Precision = Precision.FLOAT32,
        world: World | None = None,
        moments: Precision = Precision.FLOAT32,
    ) -> None:
        self.precision, self.world = precision, world or World(torch.device("cpu"))
        self.moments = moments
        named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        self.names = [name for name, _ in named]
        self.weights = [weight for _, weight in named]
        self.masters = [self._master(weight) for weight in self.weights]
        decayed = [master for master in self.masters if master.dim() >= 2]
        plain = [master for master in self.masters if master.dim() < 2]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=(0.9, 0.95), fused=True)

    @staticmethod
    def _master(weight: Tensor) -> Tensor:
        return weight if weight.dtype == torch.float32 else weight.detach().float().requires_grad_()

    def head(self, model: Any) -> Head:
        """The model's head for a step; what is added to its gradient counts once `collect_head` was called."""
        weight = model.get_output_embeddings().weight
        whole_VH = gathered(weight, getattr(torch, self.precision))
        if not weight.requires_grad:
            return Head(whole_VH, None)
        if isinstance(weight, DTensor):
            return Head(whole_VH, torch.zeros_like(whole_VH, dtype=torch.float32))
        master = self._of(weight)
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        return Head(whole_VH, master.grad)

    def collect_head(self, model: Any, head: Head) -> None:
        """Gives a cut head its part of the gradient; a whole one has it already."""
        weight = model.get_output_embeddings().weight
        if isinstance(weight, DTensor) and head.gradient_VH is not None:
            part = self.world.scattered_sum(head.gradient_VH, weight)
            master = self._of(weight)
            master.grad = part if master.grad is None else master.grad.add_(part)

    def _of(self, weight: Tensor) -> Tensor:
        return next(master for own, master in zip(self.weights, self.masters, strict=True) if own is weight)

    def collect(self) -> None:
        """Moves the model's gradients of one micro-batch into the float32 sums."""
        sums, gradients = list[Tensor](), list[Tensor]()
        for weight, master in zip(self.weights, self.masters, strict=True):
            if weight is master or weight.grad is None:
                continue
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                sums.append(master.grad)
                gradients.append(weight.grad)
            weight.grad = None
        if sums:
            torch._foreach_add_(sums, gradients)

    def step(self, learning_rate: float, grad_clip: float, most_norm: float = math.inf) -> float:
        """One update with the collected gradients, unless they are longer than `most_norm` or no numbers.

        Returns their norm before clipping; the gradients are gone in any case.
        """
        found = torch.nn.utils.clip_grad_norm_(self.masters, grad_clip)
        norm: float = (found.full_tensor() if isinstance(found, DTensor) else found).item()
        if math.isfinite(norm) and norm <= most_norm:
            for group in self.adamw.param_groups:
                group["lr"] = learning_rate
            self._update()
            self._publish()
        self.adamw.zero_grad()
        return norm

    @torch.no_grad()
    def _update(self) -> None:
        if self.moments is Precision.FLOAT32:
            self.adamw.step()
            return
        for group in self.adamw.param_groups:
            settings = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
            settings |= dict(zip(("beta1", "beta2"), group["betas"], strict=True))
            for master in group["params"]:
                if master.grad is not None:
                    kept = self._moments(master)
                    first, second = kept["exp_avg"].float(), kept["exp_avg_sq"].float()
                    adamw([master], [master.grad], [first], [second], [], [kept["step"]], fused=True, **settings)
                    kept["exp_avg"].copy_(first)
                    kept["exp_avg_sq"].copy_(second)

    def _moments(self, master: Tensor) -> dict[str, Tensor]:
        """A weight's own, made as zeros before its first update."""
        moments: dict[str, Tensor] = self.adamw.state[master]
        if not moments:
            dtype = getattr(torch, self.moments)
            moments["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
            moments |= {name: torch.zeros_like(master, dtype=dtype) for name in ("exp_avg", "exp_avg_sq")}
        return moments

    def drop_gradients(self) -> None:
        """Forgets what was collected, and what was not yet."""
        for weight in self.weights:
            weight.grad = None
        self.adamw.zero_grad()

    @torch.no_grad()
    def _publish(self) -> None:
        pairs = [pair for pair in zip(self.weights, self.masters, strict=True) if pair[0] is not pair[1]]
        if pairs:
            torch._foreach_copy_([weight for weight, _ in pairs], [master for _, master in pairs])

    def state_dict(self) -> dict[str, Tensor]:
        """All that a resumed run needs, by name: master weights, moments, and the number of updates of each.

        The tensors are the optimizer's own.
        """
        state: dict[str, Tensor] = {}
        for name, master in zip(self.names, self.masters, strict=True):
            moments = self._moments(master)
            state[f"master.{name}"] = master.detach()
            state |= {f"{kind}.{name}": moments[kind] for kind in ("step", "exp_avg", "exp_avg_sq")}
        return state

    def loaded(self) -> None:
        """To be called once the tensors of `state_dict` were filled from a checkpoint: the model gets its weights."""
        self._publish()


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Are they numbers, every one? Of a cut tensor this process's part. Makes no copy."""
    parts = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    return all(math.isfinite(bound.item()) for part in parts if part.numel() for bound in torch.aminmax(part.detach()))


def learning_rate(job: Job, step: int, total_steps: int) -> float:
    """Learning rate of step 1 … total_steps: linear warm-up, then the job's schedule to `min_lr_share` of the peak."""
    warmup = math.ceil(job.warmup_share * total_steps)
    if step <= warmup:
        return job.learning_rate * step / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    match job.schedule:
        case Schedule.COSINE:
            left = (1 + math.cos(math.pi * done)) / 2
        case Schedule.LINEAR:
            left = 1 - done
        case Schedule.CONSTANT:
            left = 1.0
    return job.learning_rate * (job.min_lr_share + (1 - job.min_lr_share) * left)
