"""What goes into the sandbox and what comes out: the plain records that callers and the sandbox share.

No process, no file and no system call here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

MOST_INPUTS = 24  # of one process: each is an open descriptor in it


class Tier(StrEnum):
    """How programs are isolated; `model.sandbox` says what each tier promises."""

    A = "A"
    B = "B"
    C = "C"
    NONE = "none"


class End(StrEnum):
    """How one execution, or one call, ended."""

    OK = "ok"  # ran to its end, or left with status 0
    EXCEPTION = "exception"
    EXIT = "exit"  # left with a status other than 0; in a call: left at all
    CPU_TIME = "cpu_time"
    WALL_TIME = "wall_time"
    MEMORY = "memory"
    OUTPUT = "output_limit"
    SIGNAL = "signal"
    UNSUPPORTED = "unsupported_import"  # a module that the sandbox does not have, which is not the program's fault
    SYNTAX = "syntax_error"


@dataclass(frozen=True, slots=True)
class Limits:
    """Per process: of all inputs, or calls, that it is given.

    `memory_bytes` is address space beyond that of the warm interpreter. `output_bytes` holds for standard output,
    standard error and the encoded results, each.
    """

    cpu_seconds: float = 4.0
    wall_seconds: float = 10.0
    memory_bytes: int = 512 << 20
    output_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of a program on one input. `detail` names the exception, the status, the signal or the module.

    The seconds are those of its whole process.
    """

    end: End
    stdout: bytes
    stderr: bytes
    cpu_seconds: float
    wall_seconds: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """Arguments of one call; only values that `model.sandbox.values` can encode."""

    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CallResult:
    """What one call gave. `value` means something only where `end` is OK; `error` says why otherwise."""

    end: End
    value: object | None
    error: str = ""
