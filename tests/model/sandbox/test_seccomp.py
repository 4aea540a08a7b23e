"""The filter, carried out step by step for both architectures: what it allows, and nothing else."""

from __future__ import annotations

import struct

import pytest

from model.sandbox import seccomp

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NAMES = ("read", "openat", "clone", "fcntl", "prlimit64", "socketpair", "newfstatat")
NUMBERS = {
    "x86_64": dict(zip(NAMES, (0, 257, 56, 72, 302, 53, 262), strict=True)),
    "aarch64": dict(zip(NAMES, (63, 56, 220, 25, 261, 199, 79), strict=True)),
}
# fork, execve, socket, connect, kill, ptrace, memfd_create, mount, bpf, io_uring_setup, unlink(at), chmod and more
REFUSED = {
    "x86_64": (57, 58, 59, 322, 41, 42, 62, 101, 319, 165, 321, 425, 87, 263, 90, 310, 434, 272, 308, 250, 29, 10_000),
    "aarch64": (221, 281, 198, 203, 129, 117, 279, 40, 280, 425, 35, 53, 270, 434, 97, 268, 219, 194, 10_000),
}


def _decision(machine: str, number: int, *arguments: int, paths: bool = True, audit: int | None = None) -> int:
    """Classic BPF: load, and, jump, return."""
    data = struct.pack("=iIQ6Q", number, audit or AUDIT[machine], 0, *(*arguments, *[0] * (6 - len(arguments))))
    program, place, register = seccomp.program(machine, paths=paths), 0, 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("=HBBI", program, 8 * place)
        place += 1
        if code == 0x20:
            [register] = struct.unpack_from("=I", data, value)
        elif code == 0x54:
            register &= value
        elif code == 0x05:
            place += value
        elif code in (0x15, 0x35):
            place += if_true if (register == value if code == 0x15 else register >= value) else if_false
        else:
            assert code == 0x06
            return int(value)


@pytest.mark.parametrize("machine", list(AUDIT))
def test_only_listed_calls_pass(machine: str) -> None:
    assert _decision(machine, NUMBERS[machine]["read"]) == ALLOW
    assert {number: _decision(machine, number) for number in REFUSED[machine]} == dict.fromkeys(REFUSED[machine], EPERM)
    assert _decision(machine, 435) == ENOSYS  # clone3


@pytest.mark.parametrize("machine", list(AUDIT))
def test_another_gate_kills(machine: str) -> None:
    assert _decision(machine, 0, audit=0x40000003) == KILL  # i386
    assert _decision(machine, 0x40000000 | NUMBERS[machine]["read"]) == EPERM  # x32


@pytest.mark.parametrize("machine", list(AUDIT))
def test_arguments_are_looked_at(machine: str) -> None:
    call = NUMBERS[machine]
    assert _decision(machine, call["openat"], 0, 0, 0o2000000) == ALLOW  # O_CLOEXEC
    for flags in (0o1, 0o2, 0o100, 0o1000, 0o20200000):
        assert _decision(machine, call["openat"], 0, 0, flags) == EPERM
    assert _decision(machine, call["clone"], 0x3D0F00) == ALLOW  # as pthread_create
    for flags in (17, 0x4111, 0x10000000 | 0x3D0F00, 0x20000, 0x100 | 0x800):
        assert _decision(machine, call["clone"], flags) == EPERM
    assert _decision(machine, call["fcntl"], 3, 3) == ALLOW
    assert _decision(machine, call["fcntl"], 3, 8) == EPERM  # F_SETOWN
    assert (_decision(machine, call["prlimit64"], 0), _decision(machine, call["prlimit64"], 1)) == (ALLOW, EPERM)
    assert _decision(machine, call["socketpair"], 1, 0o2000001) == ALLOW
    assert _decision(machine, call["socketpair"], 1, 2) == EPERM
    assert _decision(machine, call["socketpair"], 2, 1) == EPERM


@pytest.mark.parametrize("machine", list(AUDIT))
def test_without_paths_only_a_descriptors_own_status_is_left(machine: str) -> None:
    call = NUMBERS[machine]
    assert _decision(machine, call["openat"], paths=False) == EPERM
    assert _decision(machine, call["newfstatat"], 0, 0, 0, 0, paths=False) == EPERM
    assert _decision(machine, call["newfstatat"], 0, 0, 0, 0x1000, paths=False) == ALLOW


def test_unknown_architectures_are_not_guessed() -> None:
    assert not seccomp.supported("riscv64")
