"""A check's version: its rules' number, and a digest of those settings that change what its verdicts mean.

The number is raised by hand when rules change; verdicts of another version are other files and are made anew.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

from model.records import content_hash

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")


def version_string(number: int, settings: S, defaults: S) -> str:
    """`"1"` under the default settings (a dataclass), else `"1+"` and six hex digits of them."""
    if settings == defaults:
        return str(number)
    return f"{number}+{content_hash(asdict(settings), digits=6)}"
