"""From the kernel's word on a dead process, and its own hostile report, to how it ended.

The report can turn one failure into another, or deal the program's output out among its inputs, and nothing more:
a process that was killed, that left with a status or that wrote too much has ended so, whatever it claims.
"""

from __future__ import annotations

import signal
from typing import Any

from model.sandbox import values
from model.sandbox.files import Files
from model.sandbox.limits import CallResult, End, Execution, Limits
from model.sandbox.link import Reply

Claim = tuple[str, End, object]  # "call", "ran" or "end", how, and an encoded value, counts or a detail

_MOST_LEVELS = values.MOST_LEVELS - 4  # of a result, which may go in again as an argument
_CLAIMABLE = frozenset({End.EXCEPTION, End.SYNTAX, End.UNSUPPORTED, End.MEMORY})


def executions(reply: Reply, files: Files, limits: Limits, count: int) -> list[Execution]:
    """Of the first of `count` inputs, up to the one in which the process ended, which has the process's end."""
    claimed = _claims(files.report(limits.output_bytes))
    out, err = files.outputs(limits.output_bytes)
    done: list[Execution] = []
    first, out_start, err_start = 0, 0, 0
    for place, (what, _, payload) in enumerate(claimed):
        if what == "ran" and len(done) + 1 < count:
            status, out_end, err_end = _counts(payload, out_start, err_start)
            end, detail = _own_end(status, claimed[first:place])
            own_out, own_err = out[out_start:out_end], err[err_start:err_end]
            done.append(Execution(end, own_out, own_err, reply.cpu, reply.wall, detail))
            first, out_start, err_start = place + 1, out_end, err_end
    end, detail = _end_of(reply, files, limits, claimed[first:])
    return [*done, Execution(end, out[out_start:], err[err_start:], reply.cpu, reply.wall, detail)]


def call_results(reply: Reply, files: Files, limits: Limits, count: int) -> list[CallResult]:
    """One for each of `count` calls; those that never reported have the process's end."""
    claimed = _claims(files.report(limits.output_bytes))
    results = [_result_of(claim) for claim in claimed if claim[0] == "call"][:count]
    end, detail = _end_of(reply, files, limits, claimed)
    if end is End.OK:
        end, detail = End.EXIT, "left before every call had reported"
    return results + [CallResult(end, None, detail)] * (count - len(results))


def _claims(report: bytes) -> list[Claim]:
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


def _counts(payload: Any, out_start: int, err_start: int) -> tuple[int, int, int]:
    """Status, and bytes written by then. What is claimed against sense tells of no output, and of failure."""
    try:
        status, out_end, err_end = map(int, payload)
    except (ValueError, TypeError):
        return 1, out_start, err_start
    return status, max(out_end, out_start), max(err_end, err_start)


def _end_of(reply: Reply, files: Files, limits: Limits, claimed: list[Claim]) -> tuple[End, str]:
    """How the process ended, and a word on it."""
    if files.largest() > limits.output_bytes or reply.status == -signal.SIGXFSZ:
        return End.OUTPUT, f"more than {limits.output_bytes} bytes"
    if reply.killed == "wall":
        return End.WALL_TIME, f"{limits.wall_seconds:g} s"
    if reply.killed == "cpu" or reply.cpu > limits.cpu_seconds:
        return End.CPU_TIME, f"{limits.cpu_seconds:g} s"
    if reply.status < 0:
        return End.SIGNAL, _signal_name(-reply.status)
    return _own_end(reply.status, claimed)


def _own_end(status: int, claimed: list[Claim]) -> tuple[End, str]:
    """The end of a program that left by itself."""
    if status == 0:
        return End.OK, ""
    for what, end, detail in claimed[-1:]:
        if what == "end" and end in _CLAIMABLE:
            return end, str(detail)
    return End.EXIT, f"exit status {status}"


def _result_of(claim: Claim) -> CallResult:
    """A call's result as it was claimed; what cannot be decoded is an exception."""
    _, end, payload = claim
    if end is not End.OK:
        return CallResult(end, None, str(payload))
    try:
        return CallResult(End.OK, values.decode(payload, _MOST_LEVELS))
    except ValueError as error:
        return CallResult(End.EXCEPTION, None, f"undecodable: {error}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
