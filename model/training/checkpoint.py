"""Checkpoints that exist whole or not at all: written under a scratch name, synced, renamed.

A checkpoint is a model folder that vLLM and transformers can load, and beside it `trainer.pt` with the master weights
and the optimizer's moments. There are no generator states: every step seeds torch from (job seed, step), and its
data follow from the same two numbers, so the step number is the only cursor. The last two checkpoints are kept.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from model.errors import TrainingError
from model.training.data import Tokenizer
from model.training.forward import Model
from model.training.optimizer import MasterAdamW

KEPT = 2


def save_checkpoint(folder: Path, step: int, model: Model, tokenizer: Tokenizer, optimizer: MasterAdamW) -> None:
    """Writes `folder/step-NNNNNN` and drops all but the last two."""

    def write(scratch: Path) -> None:
        save_model(scratch, model, tokenizer)
        torch.save({"step": step, **optimizer.state_dict()}, scratch / "trainer.pt")

    write_folder(folder / f"step-{step:06d}", write)
    for old in complete_checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old)


def restore_checkpoint(folder: Path, optimizer: MasterAdamW) -> int:
    """Puts the newest checkpoint into optimizer and model; returns its step, 0 where there is none."""
    found = complete_checkpoints(folder)
    if not found:
        return 0
    state = torch.load(found[-1] / "trainer.pt", map_location="cpu", weights_only=True, mmap=True)
    optimizer.load_state_dict(state)
    return int(state["step"])


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
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        write(scratch)
        for path in [*scratch.iterdir(), scratch]:
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
        sync(folder.parent)
    except OSError as error:
        raise TrainingError(f"cannot write {folder}: {error.strerror or error}") from error


def write_file(path: Path, text: str) -> None:
    """Makes a file appear at once, with all of its text."""
    scratch = path.with_name(f".{path.name}.partial")
    try:
        scratch.write_text(text, encoding="utf-8")
        sync(scratch)
        scratch.rename(path)
        sync(path.parent)
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error.strerror or error}") from error


def sync(path: Path) -> None:
    """Waits until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
