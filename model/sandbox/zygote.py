"""The warm interpreter that forks once for each test. Started by `sandbox.py`; runs no untrusted code itself.

It never holds a program, an input, an output or a result: these travel in sealed or capped memory files whose
descriptors it hands to the child, so that no child finds another's leavings in its memory. Expected outputs never
come near it. It ends, and its child with it, when its control socket closes or its parent dies.

Order: namespaces (A) → imports → new root (A) → privileges → Landlock (A where present, B) → requests.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import json
import math
import os
import resource
import select
import signal
import site
import socket
import sys
import sysconfig
import time
from dataclasses import dataclass
from types import ModuleType
from typing import NoReturn

from model.sandbox import child, landlock, linux, namespaces, privileges, seccomp
from model.sandbox.limits import MOST_INPUTS, Tier
from model.sandbox.preload import preload

_CONTROL, _PARENT, _MESSAGES, _NOTHING = 40, 41, 42, 43  # descriptors, above those of any test
_MOST_DESCRIPTORS = 4 + MOST_INPUTS  # program, output, errors, report, inputs; all below `_CONTROL`
_SHORTEST_WAIT = 0.02  # seconds between two looks at a child's clock
_KILLED_FOR_CPU, _KILLED_FOR_WALL = "cpu", "wall"


@dataclass(frozen=True, slots=True)
class Plan:
    """What the parent wants of this zygote, as it travels in JSON."""

    tier: str
    packages: list[str]
    packages_from: list[str]  # folders, on the import path only while `packages` are imported
    in_bubblewrap: bool  # it stands in namespaces already, and before a root made for it


def main(control: socket.socket, parent: int) -> None:
    """Prepares, says `ready` or why not, and serves until nobody is left. `parent`: a pidfd."""
    plan = Plan(**json.loads(control.recv(1 << 16)))
    try:
        cage = _prepare(Tier(plan.tier), plan, control)
    except (OSError, KeyError, ImportError, ValueError) as error:
        control.send(json.dumps({"failed": f"{error}"}).encode())
        return
    control.send(json.dumps({"ready": os.getpid()}).encode())
    _serve(control, parent, cage)


def _prepare(tier: Tier, plan: Plan, control: socket.socket) -> child.Cage:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    makes_namespaces = tier is Tier.A and not plan.in_bubblewrap
    if makes_namespaces:
        namespaces.leave()
        _go_on_as_first_process(control)
    # What is left out comes from the library when asked for, where that can be read later on.
    folders = preload(plan.packages, plan.packages_from, whole=tier in (Tier.B, Tier.C))
    library = sysconfig.get_path("stdlib")
    space = _address_space()
    if makes_namespaces:
        hidden = [f"{library}/site-packages", f"{library}/dist-packages", f"{library}/test"]
        namespaces.build_root([library], hidden, folders)
    if tier is not Tier.NONE:
        privileges.drop()
    if tier is Tier.A:  # not earlier: a change of credentials clears it
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if tier is Tier.B or plan.in_bubblewrap or (tier is Tier.A and _has_landlock()):
        landlock.restrict_to_reading([library, *folders])
    filter_address = None if tier is Tier.NONE else _filter(paths=tier is not Tier.C)
    child.limit_once()
    _settle()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    return child.Cage(os.getpid(), space, most, filter_address)


def _settle() -> None:
    """Leaves the interpreter as a program should find it, and its memory as a fork should."""
    for name in [name for name in sys.modules if name.split(".")[0] == "model"]:
        del sys.modules[name]  # a program that imports `model` means another one
    sys.modules["__main__"] = ModuleType("__main__")
    for put in (site.setquit, site.sethelper, site.setcopyright):  # exit, quit, help: `-S` leaves them out
        put()
    child.seed_random()
    atexit._clear()
    gc.collect()
    gc.freeze()


def _go_on_as_first_process(control: socket.socket) -> None:
    """The first child after `unshare` is the pid namespace's init: when it dies, the kernel kills the rest."""
    pid = os.fork()
    if pid:
        control.close()
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 (pathlib would be one more import)
        return int(statm.read().split()[0]) * resource.getpagesize()


def _has_landlock() -> bool:
    try:
        return landlock.abi() > 0
    except OSError:
        return False


_kept_filter: list[object] = []  # the kernel reads it at each fork's end: it must outlive this function


def _filter(*, paths: bool) -> int:
    """Address of a `struct sock_fprog` with this machine's filter."""
    if not seccomp.supported(linux.MACHINE):
        raise OSError(f"no list of system calls for the architecture {linux.MACHINE}")
    program = seccomp.program(linux.MACHINE, paths=paths)
    lines = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_void_p))

    whole = Program(len(program) // 8, ctypes.addressof(lines))
    _kept_filter.extend((lines, whole))
    return ctypes.addressof(whole)


def _serve(control: socket.socket, parent: int, cage: child.Cage) -> None:
    waiting = select.poll()
    waiting.register(control.fileno(), select.POLLIN)
    waiting.register(parent, select.POLLIN)
    while True:
        if any(descriptor == parent for descriptor, _ in waiting.poll()):
            return
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, _MOST_DESCRIPTORS)
        if not message:
            return
        try:
            reply = _carry_out(child.Request(**json.loads(message)), descriptors, cage, control.fileno(), parent)
        except OSError as error:  # no process, no descriptor, no memory: the sandbox's failure, and said so
            reply = {"failed": f"{error}"}
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        control.send(json.dumps(reply).encode())


def _carry_out(
    request: child.Request, descriptors: list[int], cage: child.Cage, control: int, parent: int
) -> dict[str, object]:
    """Forks, waits, and tells how the process ended; `failed` when it did not get as far as the program."""
    note_read, note_write = os.pipe()
    started = time.monotonic()
    try:
        pid = _forked(request, descriptors, note_write, cage)
    finally:
        os.close(note_write)
    try:
        killed = _watch(pid, request, started, control, parent)
        _, status, usage = os.wait4(pid, 0)
        note = os.read(note_read, 1 << 12)
    finally:
        os.close(note_read)
    if note != child.CLOSED:
        return {"failed": note.decode("utf-8", "replace") or "the child died before it was shut in"}
    seconds = {"cpu": usage.ru_utime + usage.ru_stime, "wall": time.monotonic() - started}
    return {"status": os.waitstatus_to_exitcode(status), "killed": killed, **seconds}


def _forked(request: child.Request, descriptors: list[int], note: int, cage: child.Cage) -> int:
    """Puts descriptors in their slots here, where memory is warm: each page that a child touches is copied."""
    program, out, err, report, *given = descriptors
    for descriptor, place in ((program, child.PROGRAM), (out, 1), (err, 2), (report, child.REPORT), (note, child.NOTE)):
        os.dup2(descriptor, place)
    try:
        pid = linux.fork()
        if pid == 0:
            child.live(request, given, cage)
    finally:
        _empty_slots()
    return pid


def _empty_slots() -> None:
    """Nothing of one test is left open for the next one."""
    for place in range(child.PROGRAM + 1):
        os.dup2(_MESSAGES if place == 2 else _NOTHING, place)


def _watch(pid: int, request: child.Request, started: float, control: int, parent: int) -> str:
    """Returns once the child is dead or about to be: why it was killed, or nothing."""
    clock = (~pid << 3) | 2  # CPU clock of that process, see clock_getcpuclockid(3)
    child_handle = os.pidfd_open(pid)
    waiting = select.poll()
    for descriptor in (child_handle, control, parent):
        waiting.register(descriptor, select.POLLIN)
    try:
        while True:
            cpu_left = request.cpu_seconds - time.clock_gettime(clock)
            wall_left = request.wall_seconds - (time.monotonic() - started)
            if cpu_left <= 0 or wall_left <= 0:
                os.kill(pid, signal.SIGKILL)
                return _KILLED_FOR_CPU if cpu_left <= 0 else _KILLED_FOR_WALL
            patience = min(wall_left, max(cpu_left / 2, _SHORTEST_WAIT))
            events = {descriptor for descriptor, _ in waiting.poll(math.ceil(patience * 1000))}
            if child_handle in events:
                return ""
            if events:  # nobody is left to hear the answer
                _die_with(pid)
    finally:
        os.close(child_handle)


def _die_with(pid: int) -> NoReturn:
    os.kill(pid, signal.SIGKILL)
    os._exit(0)


def begin(control: int, parent: int) -> None:
    """What the parent's command line calls: lays descriptors out, and closes whatever else was inherited."""
    given = ((control, _CONTROL), (parent, _PARENT), (2, _MESSAGES), (0, _NOTHING))
    # Out of the way first, so that no descriptor lands on one that is still needed.
    away = [(fcntl.fcntl(descriptor, fcntl.F_DUPFD, _NOTHING + 1), place) for descriptor, place in given]
    for descriptor, place in away:
        os.dup2(descriptor, place)
    _empty_slots()
    kept = {*range(child.PROGRAM + 1), *(place for _, place in given)}
    for descriptor in {int(each) for each in os.listdir("/proc/self/fd")} - kept:  # noqa: PTH208
        with contextlib.suppress(OSError):  # the listing's own descriptor is closed already
            os.close(descriptor)
    main(socket.socket(fileno=_CONTROL), _PARENT)
