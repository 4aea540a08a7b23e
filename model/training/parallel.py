"""The processes that train one model together: FSDP2 (torch's `fully_shard`) under `torchrun`, or one process alone.

Each process holds a part of every weight, of its gradient and of its moments in float32, and takes its share of a
step's micro-batches; a layer's whole weights are there, in the job's precision, only while the layer runs. Gradients
are summed and not averaged, because the weights of tokens are those of the whole global batch (`losses/normalise.py`).
All processes draw the same data in the same order from the seed, so nothing but shares is agreed on.

The vocabulary head is not run as a module (`model/losses/head.py`): its weight is gathered once a step, and its
gradient, summed over the step, is scattered once; a pass that only scores tokens gathers it once more.

What is not a step's arithmetic (rollouts, rewards, answers) is dealt out one by one and collected again, so that every
process holds all of it and decides alike. All processes run the cut model equally often; one that is to write texts is
whole meanwhile (`World.whole`), since they end at different lengths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from model.errors import StillhouseError
from model.training.job import Precision

_Item = TypeVar("_Item")
# One process may wait that long for another, which reads a model or writes one, or whose last rollout is a long one.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    device: torch.device
    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None

    @property
    def leads(self) -> bool:
        """Does this process write what is written once?"""
        return self.rank == 0

    def shard(self, model: Any, precision: Precision) -> None:
        """Cuts a transformers model without weights (`load.outline`), to which `fill` gives every process its part.

        In float32; beside adapters, frozen weights stay in the precision that they have.
        The trunk is cut layer by layer, the rest of it (embedding, last norm) at once; a head of its own apart.
        """
        # What layers are called with is in their precision already; casting would copy it, and `Documents` anew.
        policy = MixedPrecisionPolicy(getattr(torch, precision), torch.float32, cast_forward_inputs=False)
        trunk, head = model.base_model, model.get_output_embeddings()
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        adapted = len(trained) < len(list(model.parameters()))
        for weight in trained if adapted else ():  # whole, but small
            weight.data = weight.data.float()
        tied = head.weight is model.get_input_embeddings().weight
        for part in (*trunk.layers, trunk, *([] if tied else [head])):
            self.shard_part(part, policy)
        if not adapted:
            model.float()
        model.to_empty(device=self.device)
        if tied:
            model.tie_weights()

    @torch.no_grad()
    def fill(self, model: Any, whole: Any, types: Mapping[str, torch.dtype]) -> None:
        """Gives a cut model the weights of a whole one, which only the leading process has; one after another."""
        source = dict(named_tensors(whole)) if self.leads else {}
        for name, own in named_tensors(model):
            sent = torch.empty(own.shape, dtype=types[name], device=self.device)
            if self.leads:
                sent.copy_(source[name])
            dist.broadcast(sent, 0)
            if isinstance(own, DTensor):
                sent = distribute_tensor(sent, self.mesh, own.placements, src_data_rank=None)
            own.copy_(sent)

    def shard_part(self, part: Any, policy: MixedPrecisionPolicy | None = None) -> None:
        """Cuts one module, by itself in the precision that it has. Alone: no change."""
        if self.mesh is None:
            return
        fully_shard(part, mesh=self.mesh, mp_policy=policy or MixedPrecisionPolicy())
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no other

    @contextmanager
    def whole(self, model: Any) -> Iterator[None]:
        """A block in which a cut model is whole in every process, in the job's precision: it may be called at will.

        Without gradient; nothing that changes or saves its weights belongs here. All processes enter and leave.
        """
        if self.mesh is None:
            yield
            return
        trunk, head = model.base_model, model.get_output_embeddings()
        weight, tied = head.weight, not isinstance(head, FSDPModule)
        cut = (trunk, *trunk.layers, *([] if tied else [head]))
        for part in cut:
            part.unshard()
        for layer in trunk.layers:
            layer.set_reshard_after_forward(False)
        if tied:
            head.weight = model.get_input_embeddings().weight
        try:
            yield
        finally:
            if tied:
                head.weight = weight
            for layer in trunk.layers:
                layer.set_reshard_after_forward(True)
            for part in cut:
                part.reshard()
            for root in (trunk, head):
                cut_again(root)

    def scattered_sum(self, whole: Tensor, like: Tensor) -> Tensor:
        """The sum of every process's tensor, this process's part of it, cut as `like` is."""
        if not isinstance(like, DTensor):
            return whole
        return DTensor.from_local(whole, self.mesh, [Partial()]).redistribute(placements=[Shard(0)])

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each name's sum over the processes, the same in all of them. A process may lack names."""
        total: dict[str, float] = {}
        for its in self.gather(dict(values)):
            total |= {name: total.get(name, 0.0) + value for name, value in its.items()}
        return total

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def meet(self) -> None:
        """Returns when every process has come here."""
        self.gather(None)

    def together(self, own_N: Tensor) -> Tensor:
        """Every process's numbers, one after another by rank, on the CPU: for what is measured over a whole step."""
        return torch.cat(self.gather(own_N.cpu()))

    def any(self, holds: bool) -> bool:
        """Does it hold in any process?"""
        return any(self.gather(holds))

    def led(self, decide: Callable[[], Any]) -> Any:
        """What the leading process decides, told to all; where it fails, all raise its error."""
        decided, failed = None, None
        if self.leads:
            try:
                decided = decide()
            except StillhouseError as error:
                failed = error
        decided, failed = self.gather((decided, failed))[0]
        if failed:
            raise failed
        return decided

    def read(self, reading: Callable[[], _Item]) -> _Item | None:
        """What the leading process reads, there; None in the others. Where it fails, all raise its error."""
        found: list[_Item] = []
        self.led(lambda: found.append(reading()))
        return found[0] if found else None

    def share(self, packs: Sequence[_Item]) -> Sequence[_Item]:
        """This process's packs of rows, as many as every other has; their number is a multiple of the processes'."""
        assert len(packs) % self.size == 0, "every process has to run as often as the others"
        return self.dealt(packs)

    def dealt(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """This process's part of what is done by one process each."""
        return items[self.rank :: self.size]

    def collected(self, own: Sequence[_Item]) -> list[_Item]:
        """Every process's results of what was dealt out, in its order."""
        parts = self.gather(list(own))
        found: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            found[rank :: self.size] = part
        return found


def named_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, also those that no checkpoint has; what is tied once."""
    return chain(model.named_parameters(), model.named_buffers())


def gathered(weight: Tensor, precision: torch.dtype) -> Tensor:
    """A weight whole and, where it was cut, in the precision that the model computes in; without gradient."""
    if not isinstance(weight, DTensor):
        return weight.detach()
    part = weight.detach().to(precision)
    assert isinstance(part, DTensor), "another precision is cut alike"
    return part.full_tensor()


def cut_again(root: Any) -> None:
    """To be called after passes without gradient, of whose modules this is the outermost, if it was cut.

    For a backward pass that does not come, torch keeps its own weights whole and notes every pass.
    """
    if isinstance(root, FSDPModule) and root._get_fsdp_state()._is_root:  # once it has run
        root.reset_iter_state()


@contextmanager
def joined() -> Iterator[World]:
    """The world that `torchrun` has made (its environment variables), or this process alone."""
    cuda = torch.cuda.is_available()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(torch.device("cuda" if cuda else "cpu"))
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    # Objects and checkpoints go over gloo, weights and gradients over NCCL where there is CUDA.
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
    try:
        yield World(device, dist.get_rank(), size, init_device_mesh(device.type, (size,)))
    finally:
        dist.destroy_process_group()
