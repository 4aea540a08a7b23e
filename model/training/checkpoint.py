"""Checkpoints that exist whole or not at all: written under a scratch name beside the training, synced, renamed.

A checkpoint is a folder: `model/`, which vLLM and transformers can load; `trainer/` with the float32 master weights and
the optimizer's moments (of adapters alone where those are trained; of a value model too), by
torch.distributed.checkpoint, so that another number of processes can go on from it; `stage.pt`, what the stage
remembers, and of which job it is; `checksums.json`. There are no generator states: every step seeds torch from (job
seed, step), and its data follow from the same two numbers and from what the stage remembers.

State is copied when a checkpoint is asked for and written by a thread while training goes on; of weights or moments
that are no numbers there is none. The last `keep_checkpoints` are kept. One whose files are not what they were is set
aside for the one before it (`aside-NNNNNN`): it no longer counts as kept, and is not lost.
What the disk refuses becomes an error here; a full or read-only one is told apart, since a retry would end the same.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from model.errors import TrainingError
from model.training.adapters import has_adapters, merged
from model.training.data import Tokenizer
from model.training.forward import Model
from model.training.job import JobError, Precision
from model.training.optimizer import MasterAdamW, all_finite
from model.training.parallel import World, gathered

CHECKSUMS = "checksums.json"
# One process alone is meant.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class DiskError(TrainingError):
    """The disk is full, over quota or read-only: trying again ends the same until someone changes that."""

    retryable = False


class Checkpoints:
    """The checkpoints of one run. In several processes, every one makes the same calls."""

    def __init__(
        self,
        folder: Path,
        precision: Precision,
        world: World,
        keep: int = 2,
        job: Mapping[str, Any] | None = None,
    ) -> None:
        """`job`: the identity that a checkpoint is of, as `manifest.identity_of` reads it; None: it is of any."""
        self.folder, self.precision, self.world, self.keep, self.job = folder, precision, world, keep, job
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None  # the thread's own

    def save(
        self,
        step: int,
        model: Model,
        tokenizer: Tokenizer,
        optimizer: MasterAdamW,
        stage: Any,
        remembered: Mapping[str, Any] | None = None,
    ) -> None:
        """Copies the state, and has `folder/step-NNNNNN` written; waits for the checkpoint before, if need be.

        `remembered`: by the stage when that step had ended, where it has gone on since.
        Where a weight or a moment is no number nothing is written: who went on from there would get nowhere.
        """
        self.wait()
        state = trained_state(optimizer, stage)
        if self.world.any(not all_finite(state.values())):
            return
        trainer = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        weights = whole_weights(model, self.precision, self.world)
        state_of_stage = copy.deepcopy(stage_state(stage)) if remembered is None else remembered
        told = {"step": step, "stage": state_of_stage, "job": self.job}

        def write(scratch: Path) -> None:
            if self.world.leads:
                save_model(scratch / "model", model, tokenizer, weights)
                with (scratch / "stage.pt").open("wb") as file:
                    torch.save(told, file)
            write_sharded(scratch / "trainer", trainer, self._group)
            if self.world.leads:
                write_file(scratch / CHECKSUMS, json.dumps(checksums(scratch)))

        self._pending = self._writer.submit(self._write, step, write)

    def _write(self, step: int, write: Callable[[Path], None]) -> None:
        write_folder(self.folder / f"step-{step:06d}", write, self._group, leads=self.world.leads)
        if self.world.leads:
            for old in complete_checkpoints(self.folder)[: -self.keep]:
                with disk_errors(old):
                    shutil.rmtree(old)

    def wait(self) -> None:
        """Returns when the last checkpoint is on disk; raises what kept it from getting there."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits, and ends the thread; to be called however training ends."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def restore(self, optimizer: MasterAdamW, stage: Any) -> int:
        """Puts the newest sound checkpoint into optimizer, model and stage; returns its step, 0 where there is none.

        Raises JobError for one of another job.
        """
        found: Path | None = self.world.led(lambda: newest_sound(self.folder))
        if found is None:
            return 0
        remembered = torch.load(found / "stage.pt", map_location="cpu", weights_only=True)
        if self.job and (differs := differences(remembered.get("job") or self.job, self.job)):
            raise JobError(f"{found} is of another job ({differs}): remove it or train elsewhere")
        state = trained_state(optimizer, stage)
        require_names(found, state)
        load(state, checkpoint_id=found / "trainer", no_dist=self.world.size == 1)
        for filled in (optimizer, *optimizers_beside(stage)):
            filled.loaded()
        if isinstance(stage, Stateful):
            stage.load_state_dict(remembered["stage"])
        return int(remembered["step"])

    def any_before(self, step: int) -> bool:
        """Is there one of an earlier step?"""
        self.wait()
        found: bool = self.world.led(lambda: any(step_of(each) < step for each in complete_checkpoints(self.folder)))
        return found

    def distrust(self, step: int, why: str) -> None:
        """Sets the checkpoints of this step and later ones aside: what they hold is broken."""

        def distrusted() -> None:
            for found in complete_checkpoints(self.folder):
                if step_of(found) >= step:
                    set_aside(found, f"holds broken weights ({why})")

        self.world.led(distrusted)


@runtime_checkable
class Stateful(Protocol):
    """A stage that remembers more than the step number, as tensors and plain values; a checkpoint keeps it."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def stage_state(stage: Any) -> dict[str, Any]:
    """What a stage remembers, if anything."""
    return stage.state_dict() if isinstance(stage, Stateful) else {}


def trained_state(optimizer: MasterAdamW, stage: Any) -> dict[str, Tensor]:
    """What a resumed run needs of the model and of what is trained beside it; the tensors are the optimizers' own."""
    state = optimizer.state_dict()
    for other in optimizers_beside(stage):
        state |= {f"beside.{name}": tensor for name, tensor in other.state_dict().items()}
    return state


def differences(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """In which settings one job differs from another; empty where in none."""

    def told(job: Mapping[str, Any], name: str) -> str:
        value = job.get(name)
        return "the default" if name not in job else repr(str(value) if isinstance(value, str) else value)

    names = [name for name in {**begun, **wanted} if begun.get(name) != wanted.get(name)]
    return "; ".join(f"{name} was {told(begun, name)}, now {told(wanted, name)}" for name in names)


def require_names(checkpoint: Path, state: Mapping[str, Tensor]) -> None:
    """Raises JobError for a checkpoint that does not hold all of it."""
    there = FileSystemReader(checkpoint / "trainer").read_metadata().state_dict_metadata
    if missing := sorted(state.keys() - there.keys()):
        raise JobError(
            f"{checkpoint} holds no {missing[0]}: another version of Stillhouse wrote it; train in another folder"
        )


def optimizers_beside(stage: Any) -> list[MasterAdamW]:
    """Those of what a stage trains beside its model: one, or none."""
    return [stage.beside.optimizer] if stage.beside else []


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("step-*"))


def step_of(checkpoint: Path) -> int:
    """Of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step-"))


def newest_sound(folder: Path) -> Path | None:
    """The newest checkpoint whose files are what was written; later ones are set aside."""
    for found in reversed(complete_checkpoints(folder)):
        if is_sound(found):
            return found
        set_aside(found, "is damaged (a file is not what was written)")
    return None


def set_aside(checkpoint: Path, why: str) -> None:
    """Takes a checkpoint out of those that a run goes on from, and says so. An earlier one of that step goes."""
    aside = checkpoint.with_name(checkpoint.name.replace("step-", "aside-"))
    print(f"{checkpoint} {why}: set aside as {aside.name}, which nothing reads or removes", file=sys.stderr)
    with disk_errors(checkpoint):
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)


def is_sound(checkpoint: Path) -> bool:
    """Does every file have the content that it was written with?"""
    try:
        written = json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8"))
        return bool(written == checksums(checkpoint))
    except (OSError, ValueError):
        return False


def checksums(folder: Path) -> dict[str, str]:
    """Digest of every file below, the list itself left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != CHECKSUMS:
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, "blake2b").hexdigest()[:24]
    return found


def whole_weights(model: Model, precision: Precision, world: World) -> dict[str, Tensor] | None:
    """A copy of a model's weights in the CPU's memory, in the leading process; the others help and get None.

    What the model ties stays one tensor.
    """
    dtype, found, whole = getattr(torch, precision), dict[int, Tensor](), dict[str, Tensor]()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in found:
            one = gathered(tensor, dtype)  # in all processes, one weight at a time
            found[id(tensor)] = one.to("cpu", dtype, copy=True) if world.leads else torch.empty(0)
        whole[name] = found[id(tensor)]
    return whole if world.leads else None


def save_model(folder: Path, model: Model, tokenizer: Tokenizer, weights: Mapping[str, Tensor] | None) -> None:
    """A model folder in the Hugging Face layout, with the given weights (`whole_weights`; None: as they are).

    What adapters have learned is added to the weights that are written, so whoever loads them needs none.
    """
    if has_adapters(model):
        weights = merged(model, model.state_dict() if weights is None else weights)
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)


def write_sharded(folder: Path, state: dict[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Every process writes its part of `state`."""
    try:
        save(state, checkpoint_id=folder, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        raise _refusal([cause for cause, _ in error.failures.values()]) from error


def _refusal(causes: Sequence[BaseException]) -> BaseException:
    """What the system said, where it is behind one of these errors (torch's own follow from it); else the first."""
    for cause in causes:
        behind: BaseException | None = cause
        while behind is not None and not isinstance(behind, OSError):
            behind = behind.__cause__ or behind.__context__
        if behind is not None:
            return behind
    return causes[0]


def write_folder(
    folder: Path, write: Callable[[Path], None], group: dist.ProcessGroup | None = None, *, leads: bool = True
) -> None:
    """Makes a folder appear at once: written by `write` under a scratch name, synced to disk, renamed.

    With a `group`, every process of it writes into the same folder.
    """
    scratch = folder.with_name(f".{folder.name}.partial")
    with disk_errors(folder):
        if leads:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
        _meet(group)
        write(scratch)
        _meet(group)
        if leads:
            for path in [*scratch.rglob("*"), scratch]:
                sync(path)
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
            sync(folder.parent)
        _meet(group)  # torchrun ends the others 30 s after the first has left, whatever is still being synced


def _meet(group: dist.ProcessGroup | None) -> None:
    if group is not None:
        dist.barrier(group)


def write_file(path: Path, text: str) -> None:
    """Makes a file appear at once, with all of its text."""
    scratch = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        scratch.write_text(text, encoding="utf-8")
        sync(scratch)
        scratch.rename(path)
        sync(path.parent)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns the system's refusal to write `path` into a DiskError, or a TrainingError where a retry may pass."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError | SafetensorError) -> TrainingError:
    """The error of one line for what was refused."""
    number = error.errno if isinstance(error, OSError) else _safetensors_errno(error)
    cause = os.strerror(number) if number else str(error)
    if number in _FULL:
        return DiskError(f"the disk is full or a quota is reached: cannot write {path} ({cause}); free some space")
    if number in _READ_ONLY:
        return DiskError(f"cannot write {path} ({cause}): make it writable or choose another folder")
    return TrainingError(f"cannot write {path}: {cause}")


def _safetensors_errno(error: SafetensorError) -> int | None:
    found = re.search(r"os error (\d+)", str(error))  # Rust's way to print one; the exception has no field for it
    return int(found[1]) if found else None


def sync(path: Path) -> None:
    """Waits until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
