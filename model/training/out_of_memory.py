"""How torch's allocators say that memory is used up, which they do in several ways."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from model.errors import TrainingError

# What they say beside OutOfMemoryError: on the CPU, and where CUDA fails inside a library.
_MEMORY = re.compile(r"can't allocate memory|CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED|not enough memory")


class OutOfMemoryError(TrainingError):
    """The machine's or the device's memory is used up: a smaller token budget may fit."""


def is_out_of_memory(error: BaseException) -> bool:
    """Is it one of theirs?"""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error)))


@contextmanager
def out_of_memory(why: str, kind: type[TrainingError] = OutOfMemoryError) -> Iterator[None]:
    """Tells the allocators' errors, which are several, by one name."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise kind(f"out of memory: {why}") from error
