"""Arithmetic on tables of logits in few passes over memory where that is what it costs: on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch

_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")


def is_fused(table: torch.Tensor) -> bool:
    """Are `fused` functions compiled for such a table? Else work in place is faster, which keeps no other."""
    return table.is_cuda


def fused(function: Callable[_Given, _Found]) -> Callable[_Given, _Found]:
    """`function`, compiled into a kernel or two where its first argument is on a GPU, and as it is elsewhere.

    It is to have no numbers as arguments: compiled, they are computed with in float64. A vocabulary is compiled for,
    and for the second number of tokens all others.
    """

    @cache
    def compiled() -> Callable[_Given, _Found]:  # not before there is a GPU: the compiler takes a second to import
        return torch.compile(function)

    @wraps(function)
    def call(*arguments: _Given.args, **more: _Given.kwargs) -> _Found:
        first = arguments[0]
        assert isinstance(first, torch.Tensor)
        return (compiled() if is_fused(first) else function)(*arguments, **more)

    return call
