"""Which job a training folder belongs to, and whether it is done.

A job's identity is its settings and the contents of what it reads (not the paths: a moved dataset is the same
dataset). `job-started.json` binds the folder to it before the first step; `manifest.json` comes last of all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import Field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from model.training.checkpoint import differences, disk_errors, write_file
from model.training.job import Job, JobError, Keep, as_json

STARTED = "job-started.json"
TOKENS = "tokens"  # a job's examples as token ids, until it is done
# What a job leaves once it has begun to train.
_TRAINED = ("metrics.jsonl", "validation.jsonl", "skipped.json", "checkpoints", "manifest.json")
# How the work is carried out; not what comes out of it.
_NOT_IDENTITY = {"out", "threads", "checkpoint_every", "keep_checkpoints", "check_timeout_seconds"}
_NOT_IDENTITY |= {"tokens_per_micro_batch", "tokens_that_fit"}
_NOT_IDENTITY |= {"activation_checkpointing", "compile", "processes"}
_NOT_IDENTITY |= {
    f"degenerate_{name}" for name in ("window", "silent_share", "truncated_share", "entropy", "clip_share")
}
_NOT_IDENTITY |= {"rollout_python", "rollout_urls", "rollout_lent", "rollout_gpu_memory", "rollout_args"}
_NOT_IDENTITY |= {"trackers", "peak_tflops", "validation_check_timeout_seconds"}
# What is only looked at; with keep = "best" it chooses the weights.
_WATCHING = {"keep", "validate_every", "validation"}
_WATCHING |= {f"validation_{name}" for name in ("limit", "samples", "temperature", "top_p", "max_tokens")}
_WATCHING |= {f"validation_{name}" for name in ("stop", "batch")}
_WATCHING |= {f"validation_{name}" for name in ("checks", "require", "check_settings")}
_OF_ADAPTERS = {"lora_rank", "lora_alpha", "lora_targets"}  # part of it where there are some
# Came later: at their defaults they are left out, so that folders begun before them stay whose they are.
_LATER = {"rollouts_ahead", "validation_limit", "optimizer_state"}


def identity(job: Job) -> dict[str, Any]:
    """Every setting that shapes the result, those that are None left out; a path stands for its content's digest."""
    plain = as_json(job)
    values = {"stage": job.stage}
    left_out = _NOT_IDENTITY | (_WATCHING if job.keep is Keep.LAST else set())
    left_out |= set() if job.lora_rank else _OF_ADAPTERS
    for field in fields(job):
        value = getattr(job, field.name)
        if field.name not in left_out and value is not None and not _as_before(field, value):
            values[field.name] = content_digest(value) if isinstance(value, Path) else plain[field.name]
    return values


def validation_identity(job: Job) -> dict[str, Any]:
    """What validations have to share to be compared with one another."""
    plain = as_json(job)
    same = {field.name for field in fields(job) if _as_before(field, getattr(job, field.name))}
    names = sorted(_WATCHING - {"keep", "validate_every", "validation_batch"} - same)
    return {name: plain[name] for name in names} | {"validation": job.validation and content_digest(job.validation)}


def _as_before(field: Field[Any], value: Any) -> bool:
    """Whether a setting that came later leaves everything as it was."""
    return field.name in _LATER and bool(value == field.default)


def content_digest(path: Path) -> str:
    """Digest of a file, or of a folder's files with their names (not its subfolders)."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:24]
    members = {child.name: content_digest(child) for child in sorted(path.iterdir()) if child.is_file()}
    return hashlib.blake2b(json.dumps(members).encode()).hexdigest()[:24]


def bind(out: Path, wanted: dict[str, Any]) -> None:
    """Ties the folder to this job, or raises JobError saying which settings differ from the job begun there.

    A job that came to no step has nothing there to lose: whoever mends it may stay in the folder.
    """
    begun = identity_of(out)
    if begun is not None and (differs := differences(begun, wanted)):
        if any(_holds_something(out / name) for name in _TRAINED):
            remedy = "set these back to go on with it, or train elsewhere"
            raise JobError(f"{out} holds another job's training ({differs}): {remedy}")
        if (out / TOKENS).exists():
            with disk_errors(out):
                shutil.rmtree(out / TOKENS)  # of the other job
        begun = None
    if begun is None:
        write_file(out / STARTED, json.dumps(wanted, indent=2))


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists() and path.stat().st_size > 0


def identity_of(out: Path) -> dict[str, Any] | None:
    """Of the job that the folder is bound to, if it is. Raises JobError for a file that is not what was written."""
    path = out / STARTED
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise JobError(f"{path} is damaged ({error}): restore it, or remove the folder") from error
    return found


def is_done(out: Path) -> bool:
    """Has the job that this folder is bound to come to its end?"""
    return (out / "manifest.json").exists()


def write_manifest(out: Path, job: Job, wanted: dict[str, Any], results: dict[str, Any]) -> None:
    """Says that the folder is complete: call it last."""
    model = {path.name: path.stat().st_size for path in sorted((out / "model").iterdir())}
    manifest = {
        "job": as_json(job),
        "identity": wanted,
        "model_files": model,
        "versions": {name: version(name) for name in ("torch", "transformers", *["peft"] * bool(job.lora_rank))},
        **results,
    }
    write_file(out / "manifest.json", json.dumps(manifest, indent=2))
