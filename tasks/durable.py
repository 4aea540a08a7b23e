"""Files that exist whole or not at all, after a kill or a power cut at any instant.

A file is written under a `.tmp-` name in a scratch folder of the same file system, flushed to the disk and
only then renamed to its place; who has the old file open goes on reading the old one. What the operating
system refuses (disk full, read-only, quota) becomes a StoreError with one line. Local POSIX file systems
only: an object store has no rename.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model.errors import StoreError, first_line

SCRATCH = ".scratch"
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write `path` into a StoreError of one line."""
    try:
        yield
    except OSError as error:
        raise _store_error(path, error) from error


def refused(message: str) -> StoreError:
    """A StoreError that trying again will not mend."""
    error = StoreError(message)
    error.retryable = False
    return error


@contextmanager
def scratch_file(dataset: Path, suffix: str) -> Iterator[Path]:
    """A fresh name under DATASET/.scratch; whatever is left there when the block ends is removed."""
    folder = dataset / SCRATCH
    with store_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".tmp-{os.getpid()}-{uuid.uuid4().hex}{suffix}"
    try:
        yield path
    finally:
        # The block's own error matters more than a leftover, which the next run's lock sweeps away.
        with suppress(OSError):
            path.unlink(missing_ok=True)


def publish(scratch: Path, target: Path) -> None:
    """Flushes `scratch` to the disk and renames it over `target`: readers see the old file or the new one."""
    with store_errors(target):
        _flush(scratch)
        _make_folder(target.parent)
        scratch.replace(target)
        _flush(target.parent)


def write_bytes(dataset: Path, target: Path, payload: bytes) -> None:
    """Writes a small file atomically and durably."""
    with scratch_file(dataset, target.suffix) as scratch:
        with store_errors(target):
            scratch.write_bytes(payload)
        publish(scratch, target)


def write_beside(target: Path, payload: bytes) -> None:
    """Writes a small file atomically and durably without a dataset's scratch folder, which the next run may sweep.

    For what lies anywhere, or is written by who does not hold the dataset.
    """
    scratch = target.with_name(f".tmp-{os.getpid()}-{uuid.uuid4().hex}{target.suffix}")
    try:
        with store_errors(target):
            _make_folder(target.parent)
            scratch.write_bytes(payload)
        publish(scratch, target)
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def remove(target: Path) -> None:
    """Deletes a file so that no crash brings it back; a missing one is fine."""
    with store_errors(target), suppress(FileNotFoundError):
        target.unlink()
        _flush(target.parent)


def _make_folder(folder: Path) -> None:
    """Makes missing folders and flushes each one's entry in its parent."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _store_error(path: Path, error: OSError) -> StoreError:
    cause = os.strerror(error.errno) if error.errno else first_line(error)
    if error.errno == errno.ENOSPC:
        return refused(f"the disk is full: cannot write {path} ({cause}); free some space, then run again")
    if error.errno in (errno.EFBIG, errno.EDQUOT):
        return refused(f"a file-size limit or quota stops {path} ({cause}); raise it, then run again")
    if error.errno in _READ_ONLY:
        return refused(f"{path} is read-only for this user ({cause}); make it writable or choose another folder")
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG):
        return refused(f"cannot write {path}: {cause}; choose another folder")
    return StoreError(f"cannot write {path}: {cause}")
