"""From the kernel's word on a dead process, and its own hostile report, to how it ended.

The report can turn one failure into another and nothing more: a process that was killed, that left with a status
or that wrote too much has ended so, whatever it claims.
"""

from __future__ import annotations

import signal
from typing import Any

from model.sandbox import values
from model.sandbox.files import Files
from model.sandbox.limits import CallResult, End, Limits
from model.sandbox.link import Reply

Claim = tuple[str, End, object]  # "call" or "end", how, and an encoded value or a detail

_CLAIMABLE = frozenset({End.EXCEPTION, End.SYNTAX, End.UNSUPPORTED, End.MEMORY})


def claims(report: bytes) -> list[Claim]:
    """The lines of a report up to the first one that is not as it should be."""
    found: list[Claim] = []
    for line in report.split(b"\n")[:-1]:
        try:
            read: Any = values.parse(line)
            what, end, payload = read
            found.append((str(what), End(end), payload))
        except (ValueError, TypeError):
            break
    return found


def end_of(reply: Reply, files: Files, limits: Limits, claimed: list[Claim]) -> tuple[End, str]:
    """How the process ended, and a word on it."""
    if files.largest() > limits.output_bytes or reply.status == -signal.SIGXFSZ:
        return End.OUTPUT, f"more than {limits.output_bytes} bytes"
    if reply.killed == "wall":
        return End.WALL_TIME, f"{limits.wall_seconds:g} s"
    if reply.killed == "cpu" or reply.cpu > limits.cpu_seconds:
        return End.CPU_TIME, f"{limits.cpu_seconds:g} s"
    if reply.status < 0:
        return End.SIGNAL, _signal_name(-reply.status)
    if reply.status == 0:
        return End.OK, ""
    for what, end, detail in claimed[-1:]:
        if what == "end" and end in _CLAIMABLE:
            return end, str(detail)
    return End.EXIT, f"exit status {reply.status}"


def result_of(claim: Claim) -> CallResult:
    """A call's result as it was claimed; what cannot be decoded is an exception."""
    _, end, payload = claim
    if end is not End.OK:
        return CallResult(end, None, str(payload))
    try:
        return CallResult(End.OK, values.decode(payload))
    except ValueError as error:
        return CallResult(End.EXCEPTION, None, f"undecodable: {error}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
