"""Starts a command as somebody else would meet it: as an ordinary user, or inside Docker's default profile.

    python confine.py (user|restricted|docker) PYTHON_PREFIX PROJECT EMPTY_FOLDER ARGUMENT...

Runs `PYTHON ARGUMENT...`, where `{project}` stands for the project's place. `user`: the interpreter and the project
are bound into EMPTY_FOLDER first, since they may lie in a folder that only root can enter. `restricted`: a user who may
not make namespaces, as where a distribution names the programs that may. `docker`: still root, with Docker's default
capabilities and a filter that refuses what Docker's default seccomp profile refuses of it.
Needs root; exits with 77 and a reason on standard error where this machine does not allow it.
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

ORDINARY_USER = 61999
# chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod,
# audit_write, setfcap: https://docs.docker.com/engine/security/#linux-kernel-capabilities
DOCKER_CAPABILITIES = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)
# unshare, setns, mount, umount2, pivot_root, open_tree, move_mount, fsopen, fsmount, mount_setattr, keyctl, add_key,
# request_key, bpf, perf_event_open, userfaultfd, io_uring_*, open_by_handle_at, quotactl, reboot, swapon, init_module
DOCKER_REFUSES = {
    "x86_64": (272, 308, 165, 166, 155, 428, 429, 430, 432, 442, 250, 248, 249, 321, 298, 323, 425, 426, 427, 304),
    "aarch64": (97, 268, 40, 39, 41, 428, 429, 430, 432, 442, 219, 217, 218, 280, 241, 282, 425, 426, 427, 265),
}
_CLONE = {"x86_64": 56, "aarch64": 220}
_NAMESPACES = 0x7E020000


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


_LOAD_NUMBER, _ALLOW, _REFUSE, _PRETEND_OLD = _line(0x20, 0), _line(6, 0x7FFF0000), _line(6, 0x50001), _line(6, 0x50026)


def _refused(numbers: tuple[int, ...]) -> list[bytes]:
    return [line for number in numbers for line in (_line(0x15, number, 0, 1), _REFUSE)]


def _docker_filter(machine: str) -> bytes:
    """`struct sock_filter[]`: everything is allowed but the above, clone3 (ENOSYS) and clone into namespaces."""
    lines = [_LOAD_NUMBER, *_refused(DOCKER_REFUSES[machine]), _line(0x15, 435, 0, 1), _PRETEND_OLD]
    lines += [_line(0x15, _CLONE[machine], 0, 3), _line(0x20, 16), _line(0x45, _NAMESPACES, 0, 1), _REFUSE]
    return b"".join([*lines, _ALLOW])


def _unshare_filter(machine: str) -> bytes:
    """Everything is allowed but `unshare`, which bubblewrap does without."""
    return b"".join([_LOAD_NUMBER, *_refused(DOCKER_REFUSES[machine][:1]), _ALLOW])


def _load(linux: object, program: bytes) -> None:
    import ctypes

    lines = ctypes.create_string_buffer(program, len(program))
    whole = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(lines))
    buffer = ctypes.create_string_buffer(whole, len(whole))
    linux.load_filter(ctypes.addressof(buffer))  # type: ignore[attr-defined]


def _as_in_docker(linux: object) -> None:
    prctl, raw = linux.prctl, linux.syscall  # type: ignore[attr-defined]
    _load(linux, _docker_filter(linux.MACHINE))  # type: ignore[attr-defined]
    for capability in range(64):
        if capability not in DOCKER_CAPABILITIES:
            try:
                prctl(24, capability)
            except OSError:
                break
    kept = sum(1 << capability for capability in DOCKER_CAPABILITIES)
    header = struct.pack("=Ii", 0x20080522, 0)
    raw(linux.CAPSET, header, struct.pack("=6I", kept, kept, 0, 0, 0, 0), what="capset")  # type: ignore[attr-defined]


def _as_ordinary_user(linux: object, prefix: str, project: str, base: Path, program: bytes) -> tuple[str, str]:
    """The new places of interpreter and project, in a mount namespace of our own; then under the filter `program`."""
    linux.unshare(linux.CLONE_NEWNS)  # type: ignore[attr-defined]
    mount, recursive_private, bind = linux.mount, linux.MS_REC | linux.MS_PRIVATE, linux.MS_BIND | linux.MS_REC  # type: ignore[attr-defined]
    mount("none", "/", None, recursive_private)
    mount("tmpfs", str(base), "tmpfs", 0, "mode=755")
    for name, source in (("python", prefix), ("project", project)):
        (base / name).mkdir()
        mount(source, str(base / name), None, bind)
    os.chdir("/")
    if program:
        _load(linux, program)
    os.setgroups([])
    os.setresgid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)
    os.setresuid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)
    return str(base / "python"), str(base / "project")


def main() -> None:
    mode, prefix, project, empty, *arguments = sys.argv[1:]
    sys.path.insert(0, project)
    from model.sandbox import linux

    try:
        if mode == "docker":
            _as_in_docker(linux)
        else:
            program = _unshare_filter(linux.MACHINE) if mode == "restricted" else b""
            prefix, project = _as_ordinary_user(linux, prefix, project, Path(empty), program)
    except OSError as error:
        print(f"this machine does not allow it: {error}", file=sys.stderr)
        sys.exit(77)
    python = f"{prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    os.execve(python, [python, *[each.replace("{project}", project) for each in arguments]], environment)


if __name__ == "__main__":
    main()
