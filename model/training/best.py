"""The weights of the best validated step: kept crash-safe, and made the job's `model/` where it asks for them.

`checkpoints/best-NNNNNN/` holds a model folder, its adapter where it has one, and the checksums of their files. It is
written whole before the line of its validation, and goes only when no checkpoint is left from which a resumed run would
find it to be the best: a run that is killed at any moment and resumed has the weights it needs. Weights only, without
the optimizer: a ninth of a checkpoint. Step 0 has no such folder, since the job's `init` is it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from model.errors import TrainingError
from model.training.adapters import has_adapters, save_adapter
from model.training.checkpoint import (
    CHECKSUMS,
    checksums,
    disk_errors,
    is_sound,
    save_model,
    whole_weights,
    write_file,
    write_folder,
)
from model.training.data import Tokenizer
from model.training.forward import Model
from model.training.job import Job
from model.training.load import load_model
from model.training.parallel import World

METRIC = "pass@1"  # what is best

Lines = Sequence[Mapping[str, float]]


class DamagedBestError(TrainingError):
    """The best step's weights are gone or not what was written. They are not made twice, so a retry ends the same."""

    retryable = False


def best_step(lines: Lines, up_to: float = float("inf")) -> int | None:
    """The validated step with the highest pass@1, the first of equals; None where none has a value."""
    found = [line for line in lines if METRIC in line and line["step"] <= up_to]
    return int(max(found, key=lambda line: (line[METRIC], -line["step"]))["step"]) if found else None


class BestWeights:
    """The folders `best-NNNNNN` of one run."""

    def __init__(self, job: Job, world: World) -> None:
        self.job, self.world, self.folder = job, world, job.out / "checkpoints"

    def path(self, step: int) -> Path:
        """Where a step's weights lie."""
        return self.folder / f"best-{step:06d}"

    def save(self, step: int, model: Model, tokenizer: Tokenizer) -> None:
        """The leading process writes the model as it is; returns there when it is on disk."""
        weights = whole_weights(model, self.job.dtype, self.world)
        if weights is None:
            return

        def write(scratch: Path) -> None:
            save_model(scratch / "model", model, tokenizer, weights)
            if has_adapters(model):
                save_adapter(scratch / "adapter", model, weights)
            write_file(scratch / CHECKSUMS, json.dumps(checksums(scratch)))

        write_folder(self.path(step), write)

    def prune(self, lines: Lines, checkpoints: Collection[int]) -> None:
        """Removes what was best once and will not be again: neither by all lines, nor to who resumes from a step."""
        needed = {best_step(lines), *(best_step(lines, step) for step in checkpoints)}
        for found in self.folder.glob("best-*"):
            if int(found.name.removeprefix("best-")) not in needed:
                with disk_errors(found):
                    shutil.rmtree(found)

    def write_model(self, step: int) -> None:
        """Makes the weights of a step that was best the job's `model/` (and `adapter/`; step 0 has none)."""
        if step == 0:
            model, tokenizer = load_model(self.job.init, self.job.dtype, torch.device("cpu"))
            write_folder(self.job.out / "model", lambda scratch: save_model(scratch, model, tokenizer, None))
            return
        found = self.path(step)
        if not is_sound(found):
            raise DamagedBestError(
                f"{found}, the best step's weights, is damaged or gone: train again in another folder"
            )

        for part in sorted(path.name for path in found.iterdir() if path.is_dir()):
            write_folder(self.job.out / part, partial(copied, found / part))


def copied(source: Path, target: Path) -> None:
    """A folder's contents into another folder."""
    shutil.copytree(source, target, dirs_exist_ok=True)
