"""The list of system calls that a program may make, and its assembly into a classic BPF program.

Everything not listed is refused with EPERM; clone3 with ENOSYS, so that libc falls back to clone, whose flags
can be read. A call by another architecture's gate (int 0x80, x32 numbers) is refused or kills. Arguments are
compared by their low 32 bits, which is all the kernel looks at in each place used here.

What is left open on purpose: reading files (where they can be reached), threads, pipes, a connected pair of
AF_UNIX streams (asyncio needs one), timers and signal handlers of one's own.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass

# name: (x86_64, aarch64); None: not on that architecture. From asm/unistd_64.h and asm-generic/unistd.h.
_PLAIN = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "lseek": (8, 62), "close": (3, 57), "close_range": (436, 436), "fstat": (5, 80),
    "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59),
    "fsync": (74, 82), "fdatasync": (75, 83), "fadvise64": (221, 223), "eventfd2": (290, 19),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "epoll_create": (213, None), "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None),
    "epoll_pwait": (281, 22), "getsockopt": (55, 209), "getsockname": (51, 204), "getpeername": (52, 205),
    "shutdown": (48, 210),
    "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226), "madvise": (28, 233),
    "brk": (12, 214), "mincore": (27, 232), "getrandom": (318, 278),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "rt_sigsuspend": (130, 133), "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "pause": (34, None),
    "futex": (202, 98), "set_robust_list": (273, 99), "set_tid_address": (218, 96), "rseq": (334, 293),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168), "getpriority": (140, 141),
    "gettid": (186, 178), "getpid": (39, 172), "getppid": (110, 173), "getpgrp": (111, None),
    "getpgid": (121, 155), "getsid": (124, 156), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158), "getresuid": (118, 148),
    "getresgid": (120, 150), "uname": (63, 160), "sysinfo": (99, 179), "getrusage": (98, 165),
    "times": (100, 153), "getrlimit": (97, 163), "time": (201, None), "gettimeofday": (96, 169),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101), "getitimer": (36, 102), "setitimer": (38, 103), "alarm": (37, None),
    "exit": (60, 93), "exit_group": (231, 94), "restart_syscall": (219, 128),
}  # fmt: skip
# Calls that take a path and only read. Tier C goes without them.
_PATHS = {
    "stat": (4, None), "lstat": (6, None), "statx": (332, 291), "access": (21, None), "faccessat": (269, 48),
    "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61),
    "getcwd": (79, 17),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Where:
    """Allowed where the argument at `place`, masked, is one of `values`."""

    place: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF


_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o20000000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_TMPFILE's own bit
_THREAD = 0x100 | 0x800 | 0x10000  # CLONE_VM, CLONE_SIGHAND, CLONE_THREAD
_NO_THREAD = 0x7E020000 | 0x2000 | 0x4000 | 0x8000 | 0x80  # any namespace, PTRACE, VFORK, PARENT, NEWTIME
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC: no F_SETOWN, which sends signals to others.
_DESCRIPTOR_COMMANDS = (0, 1, 2, 3, 4, 1030)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_DEVICE_COMMANDS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_NO_OUT_OF_BAND = _Where(3, (0,), mask=socket.MSG_OOB)  # this corner of AF_UNIX has had holes
_AT_EMPTY_PATH = 0x1000

_CONDITIONAL: dict[str, tuple[tuple[int | None, int | None], tuple[_Where, ...]]] = {
    "clone": ((56, 220), (_Where(0, (_THREAD,), mask=_THREAD | _NO_THREAD),)),
    "fcntl": ((72, 25), (_Where(1, _DESCRIPTOR_COMMANDS),)),
    "ioctl": ((16, 29), (_Where(1, _DEVICE_COMMANDS),)),
    "prctl": ((157, 167), (_Where(0, (15, 16)),)),  # PR_SET_NAME, PR_GET_NAME
    "prlimit64": ((302, 261), (_Where(0, (0,)),)),  # one's own, which can only sink
    "socketpair": ((53, 199), (_Where(0, (socket.AF_UNIX,)), _Where(1, (socket.SOCK_STREAM,), mask=0xF))),
    "sendto": ((44, 206), (_NO_OUT_OF_BAND,)),
    "recvfrom": ((45, 207), (_NO_OUT_OF_BAND,)),
}
_OPENING: dict[str, tuple[tuple[int | None, int | None], tuple[_Where, ...]]] = {
    "open": ((2, None), (_Where(1, (0,), mask=_WRITING),)),
    "openat": ((257, 56), (_Where(2, (0,), mask=_WRITING),)),
    "newfstatat": ((262, 79), ()),
}
# libc asks for a descriptor's own status this way. BPF cannot see that the path is empty: status may leak.
_STATUS_ONLY = {"newfstatat": ((262, 79), (_Where(3, (_AT_EMPTY_PATH,)),))}

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*
_CLONE3 = 435
_X32_BIT = 0x40000000

# struct seccomp_data: number, architecture, instruction pointer, six arguments of 64 bits, little-endian
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP, _JUMP_EQUAL, _JUMP_AT_LEAST = 0x05, 0x15, 0x35
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def supported(machine: str) -> bool:
    return machine in _ARCHITECTURES


def program(machine: str, *, paths: bool) -> bytes:
    """The filter as `struct sock_filter[]`, 8 bytes each. `paths`: may files be opened for reading?"""
    column, audit = _ARCHITECTURES[machine]
    conditional = _CONDITIONAL | (_OPENING if paths else _STATUS_ONLY)
    rules = {numbers[column]: _ALLOWED for numbers in (_PLAIN | (_PATHS if paths else {})).values()}
    rules |= {numbers[column]: _guarded(conditions) for numbers, conditions in conditional.values()}
    rules[_CLONE3] = [_refusal(errno.ENOSYS)]
    lines = [_line(_LOAD, _ARCHITECTURE_AT), _line(_JUMP_EQUAL, audit, 1, 0), _line(_RETURN, _KILL_PROCESS)]
    lines += [_line(_LOAD, _NUMBER_AT), _line(_JUMP_AT_LEAST, _X32_BIT, 0, 1), _refusal(errno.EPERM)]
    return b"".join(lines + _tree(_ranges({number: body for number, body in rules.items() if number is not None})))


def _ranges(rules: dict[int, list[bytes]]) -> list[tuple[int, list[bytes]]]:
    """(first number, body) in order, each up to the next one's first; the gaps between the rules are refusals."""
    ranges: list[tuple[int, list[bytes]]] = [(0, _REFUSED)]
    for number in range(max(rules) + 2):
        body = rules.get(number, _REFUSED)
        if body != ranges[-1][1]:
            ranges.append((number, body))
    return ranges


def _tree(ranges: list[tuple[int, list[bytes]]]) -> list[bytes]:
    """Binary search: the kernel walks the whole filter once per known call at each load, so it must be shallow."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    below, above = _tree(ranges[:middle]), _tree(ranges[middle:])
    # Jumps of more than 255 lines do not fit a conditional one.
    return [_line(_JUMP_AT_LEAST, ranges[middle][0], 0, 1), _line(_JUMP, len(below)), *below, *above]


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _refusal(error: int) -> bytes:
    return _line(_RETURN, _ERRNO | error)


_ALLOWED, _REFUSED = [_line(_RETURN, _ALLOW)], [_refusal(errno.EPERM)]


def _guarded(conditions: tuple[_Where, ...]) -> list[bytes]:
    lines: list[bytes] = []
    for where in conditions:
        lines += [_line(_LOAD, _ARGUMENTS_AT + 8 * where.place), _line(_AND, where.mask)]
        # The n-th comparison that holds jumps over the rest of them and the refusal.
        left = len(where.values)
        lines += [_line(_JUMP_EQUAL, value, left - place, 0) for place, value in enumerate(where.values)]
        lines.append(_refusal(errno.EPERM))
    return lines + _ALLOWED
