"""A process in which no tier of the sandbox can hold, as under a kernel that was built without all that they need.

A filter, which children inherit, refuses namespaces, Landlock and further filters. Linux on x86-64 and arm64.
"""

from __future__ import annotations

import ctypes
import struct

from model.sandbox import linux

_UNSHARE, _PRCTL, _SECCOMP = {"x86_64": (272, 157, 317), "aarch64": (97, 167, 277)}.get(linux.MACHINE, (-1, -1, -1))
_LANDLOCK_CREATE_RULESET = 444
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOWED, _REFUSED = 0x7FFF0000, 0x50001  # the latter with EPERM
_NUMBER, _FIRST_ARGUMENT = 0, 16  # offsets in `struct seccomp_data`


def _filter() -> bytes:
    def line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    lines = [line(_LOAD, _NUMBER)]
    for number in (_UNSHARE, _LANDLOCK_CREATE_RULESET, _SECCOMP):
        lines += [line(_EQUAL, number, 0, 1), line(_RETURN, _REFUSED)]
    lines += [line(_EQUAL, _PRCTL, 0, 3), line(_LOAD, _FIRST_ARGUMENT)]
    lines += [line(_EQUAL, linux.PR_SET_SECCOMP, 0, 1), line(_RETURN, _REFUSED), line(_RETURN, _ALLOWED)]
    return b"".join(lines)


def confine() -> None:
    """From now on, this process and its children."""
    program = _filter()
    lines = ctypes.create_string_buffer(program, len(program))
    whole = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(lines))
    address = ctypes.create_string_buffer(whole, len(whole))
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.load_filter(ctypes.addressof(address))
