"""Landlock: the kernel's own list of what a process may open. Only reading below the given folders is left.

Not covered by Landlock, and left to seccomp: chmod, chown, utime, stat and their kin, and sockets other than TCP.
Numbers from linux/landlock.h (the system calls have the same number on every architecture).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable

from model.sandbox import linux

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_EVERY_TCP = 0b11  # bind, connect
_EVERY_SCOPE = 0b11  # abstract unix sockets, signals to outside


def abi() -> int:
    """The kernel's Landlock version. Raises OSError where there is none."""
    return linux.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG, what="landlock_create_ruleset")


def _file_rights(version: int) -> int:
    """Every file right that this version knows: 13 at first, then refer (2), truncate (3), ioctl on devices (5)."""
    return (1 << (13 + (version >= 2) + (version >= 3) + (version >= 5))) - 1


def restrict_to_reading(folders: Iterable[str]) -> None:
    """From here on this process and its children open nothing but files below `folders`, for reading.

    Raises OSError when the kernel cannot enforce it. Folders that cannot be reached are left out: nothing below
    them can be opened anyway.
    """
    version = abi()
    ruleset = _ruleset(version)
    try:
        for folder in folders:
            _allow_reading(ruleset, folder)
        linux.syscall(_RESTRICT_SELF, ruleset, 0, what="landlock_restrict_self")
    finally:
        os.close(ruleset)


def _ruleset(version: int) -> int:
    """`struct landlock_ruleset_attr`, as much of it as this version knows."""
    fields = [_file_rights(version)] + [_EVERY_TCP] * (version >= 4) + [_EVERY_SCOPE] * (version >= 6)
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    return linux.syscall(_CREATE_RULESET, attributes, len(attributes), 0, what="landlock_create_ruleset")


def _allow_reading(ruleset: int, folder: str) -> None:
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return
    try:
        rule = struct.pack("=Qi", _READ_FILE | _READ_DIR, descriptor)
        linux.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0, what="landlock_add_rule")
    finally:
        os.close(descriptor)
