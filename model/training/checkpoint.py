"""Checkpoints that exist whole or not at all: written under a scratch name, synced, renamed.

A checkpoint is a model folder that vLLM and transformers can load, and beside it `trainer.pt` with the master weights
and the optimizer's moments. There are no generator states: every step seeds torch from (job seed, step), and its
data follow from the same two numbers and from what the stage remembers (`stage.json`: a cursor where the step number
is not enough). The last two checkpoints are kept.
What the disk refuses becomes an error here; a full or read-only one is told apart, since a retry would end the same.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from model.errors import TrainingError
from model.training.data import Tokenizer
from model.training.forward import Model
from model.training.optimizer import MasterAdamW

KEPT = 2

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class DiskError(TrainingError):
    """The disk is full, over quota or read-only: trying again ends the same until someone changes that."""

    retryable = False


def save_checkpoint(
    folder: Path,
    step: int,
    model: Model,
    tokenizer: Tokenizer,
    optimizer: MasterAdamW,
    stage: Mapping[str, int] | None = None,
) -> None:
    """Writes `folder/step-NNNNNN` and drops all but the last two."""

    def write(scratch: Path) -> None:
        save_model(scratch, model, tokenizer)
        (scratch / "stage.json").write_text(json.dumps(dict(stage or {})), encoding="utf-8")
        with (scratch / "trainer.pt").open("wb") as file:  # given a path, torch does not say why it could not write
            torch.save({"step": step, **optimizer.state_dict()}, file)

    write_folder(folder / f"step-{step:06d}", write)
    for old in complete_checkpoints(folder)[:-KEPT]:
        with disk_errors(old):
            shutil.rmtree(old)


def restore_checkpoint(folder: Path, optimizer: MasterAdamW) -> int:
    """Puts the newest checkpoint into optimizer and model; returns its step, 0 where there is none."""
    found = complete_checkpoints(folder)
    if not found:
        return 0
    state = torch.load(found[-1] / "trainer.pt", map_location="cpu", weights_only=True, mmap=True)
    optimizer.load_state_dict(state)
    return int(state["step"])


def stage_state(folder: Path) -> dict[str, int]:
    """What the stage had to remember at the newest checkpoint; nothing where there is none."""
    found = complete_checkpoints(folder)
    state: dict[str, int] = json.loads((found[-1] / "stage.json").read_text(encoding="utf-8")) if found else {}
    return state


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("step-*"))


def save_model(folder: Path, model: Model, tokenizer: Tokenizer) -> None:
    """A model folder in the Hugging Face layout, in the precision that the model computes in."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Makes a folder appear at once: written by `write` under a scratch name, synced to disk, renamed."""
    scratch = folder.with_name(f".{folder.name}.partial")
    with disk_errors(folder):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        write(scratch)
        for path in [*scratch.iterdir(), scratch]:
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
        sync(folder.parent)


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
