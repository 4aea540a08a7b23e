"""The few system calls that Python does not offer, by ctypes, with errno turned into OSError.

Every function acts on the calling process. Nothing here decides anything.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_fork = ctypes.PyDLL(None, use_errno=True).fork  # keeps the interpreter's lock, so that the child has it

MACHINE = platform.machine()
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
CAPGET, CAPSET = {"x86_64": (125, 126), "aarch64": (90, 91)}.get(MACHINE, (-1, -1))
CAPABILITY_VERSION_3 = 0x20080522

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 28, 38, 47, 4
SECCOMP_MODE_FILTER = 2
SIGKILL = 9
# Root is nobody special, set-uid grants nothing, capabilities are neither kept nor made ambient; each one locked.
SECUREBITS = 0b1110_1011

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 4096, 16384, 1 << 18, 2


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def syscall(number: int, *arguments: object, what: str) -> int:
    """A raw system call; `what` names it in the error."""
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return int(_checked(_libc.syscall(ctypes.c_long(number), *wide), what))


def prctl(option: int, second: int = 0, third: int = 0) -> None:
    _checked(_libc.prctl(option, second, third, 0, 0), f"prctl({option})")


def load_filter(address: int) -> None:
    """Installs the seccomp program whose `struct sock_fprog` lies at `address`."""
    _checked(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, address, 0, 0), "seccomp")


def fork() -> int:
    """A plain fork without Python's hooks, which cost half a millisecond. Only for a process of one thread."""
    return _checked(_fork(), "fork")


def unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _checked(_libc.mount(*texts[:3], flags, texts[3]), f"mount on {target}")


def pivot_root_here() -> None:
    """Makes the working directory the root and takes the old root away (`pivot_root(".", ".")`, then detach)."""
    syscall(PIVOT_ROOT[MACHINE], b".", b".", what="pivot_root")
    _checked(_libc.umount2(b".", MNT_DETACH), "umount of the old root")


def drop_capabilities() -> None:
    """Empties effective, permitted and inheritable capabilities of the calling thread, and reads them back."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    syscall(CAPSET, header, (ctypes.c_uint32 * 6)(), what="capset")
    left = (ctypes.c_uint32 * 6)(*([1] * 6))
    syscall(CAPGET, header, left, what="capget")
    if any(left):
        raise OSError("capabilities are left after they were dropped")


def limit(kind: int, soft: int, hard: int | None = None) -> None:
    """Lowers a resource limit, never above what is allowed already."""
    _, most = resource.getrlimit(kind)
    bounded = [value if most == resource.RLIM_INFINITY else min(value, most) for value in (soft, hard or soft)]
    resource.setrlimit(kind, (bounded[0], bounded[1]))
