"""Runs untrusted Python programs quickly and lets nothing out but bytes and plain values. One sitting's reading.

    with Sandbox() as sandbox:                        # the best tier that passes its self-test, or SandboxError
        sandbox.run(program, [b"1\\n", b"2\\n"], Limits())    # one process, a new `__main__` for each input
        sandbox.call(program, "f", [Call((1, 2))])    # one process for all calls

Who attacks
-----------
A program written by a model that was trained against this very check: it may do whatever Python, ctypes and machine
code can, to pass without being right, or to read, change, reach or slow down what lies outside. It does not hold an
unknown hole of the kernel; against that there is only how little of the kernel is within its reach.

How it is held
--------------
`sandbox.py` (parent) starts one zygote (`zygote.py`), a clean interpreter with the library imported. Per run the
zygote forks; the child (`child.py`) takes its limits, loads the filter (`seccomp.py`), and then compiles and runs.

- Tier A: own namespaces and a read-only root with nothing but the library (`namespaces.py`), the filter, and Landlock
  where present; where this user may not make namespaces and bubblewrap may, it does that part (`bubblewrap.py`).
  Tier B: Landlock (`landlock.py`) and the filter; works inside Docker's default profile. Tier C: the
  filter without any call that takes a path. In each: root becomes nobody, no capability stays (`privileges.py`).
- A tier is used only after its self-test (`probes.py`); a failing one gives way to the next; below C nothing runs.
- `unsafe=True` is Tier.NONE: limits only. Callers stamp that on what they record.

Promises, and the test that holds each (tests/model/sandbox/)
-------------------------------------------------------------
1. Nothing outside is written, removed, reached, signalled or traced: `test_attacks.py` over `attacks.py`, FILES to
   KERNEL, in every tier, as root, as an ordinary user, as in Docker, and in bubblewrap.
2. No file is read but the interpreter's library and preloaded packages (C: none): FILES; secrets: INTERPRETER.
3. CPU time, wall time, memory, output, threads and descriptors are bounded: EXHAUSTION; `test_sandbox.py`.
4. No program meets what another program left: memory files are new for each run, the zygote never holds a program,
   an input or a result: INTERPRETER (`scan_memory`, `walk_objects`), and an honest program after every attack.
5. What comes out is plain and of the very type, and decoding it is cheap: `test_values.py`; CALLS.
6. Expected outputs are never inside, so forging a report (which any program can do: the report is its own word) can
   only claim a value, which the caller compares outside: CALLS (`forge_*`). How a process ended is the kernel's word;
   how an input before its last ended is a claim, as is every call's. None turns a failure of the program into one of
   the sandbox: `fake_note`.
7. A failure of the sandbox is SandboxError after one new start, never a result: `test_sandbox.py`.
8. Zygote and child die with the parent, and no other way leaves a process: `test_sandbox.py`.
9. The filter is the list in `seccomp.py` and nothing else, on both architectures: `test_seccomp.py`.

Not covered
-----------
- Holes of the kernel in what is left open (memory, futex, epoll, AF_UNIX streams), and of the hardware; timing.
- In tiers B and C, and in bubblewrap, a program can learn of a path whether it exists, its size and its times, never
  its content (Landlock does not mediate stat; libc needs newfstatat for a descriptor's own status).
- All inputs of one `run`, and all calls of one `call`, share a process: one sees what earlier ones left and may read
  what later ones are given. Put what must not meet into separate ones (`model/rewards/programs/run.py` says when).
- In tier A, process ids count up: a program can tell how many processes and threads there were before it.
- Inside its memory limit a program may use the machine's caches and one CPU per thread until its time is over.
- Programs that need fork, files to write, /dev/stdin, sockets or another package: they end as exception or
  unsupported_import.
  In tiers B (where the interpreter lies out of an ordinary user's reach) and C, so does what `preload.py` leaves out.
"""

from model.sandbox.limits import MOST_INPUTS, Call, CallResult, End, Execution, Limits, Tier
from model.sandbox.sandbox import Sandbox

__all__ = ["MOST_INPUTS", "Call", "CallResult", "End", "Execution", "Limits", "Sandbox", "Tier"]
