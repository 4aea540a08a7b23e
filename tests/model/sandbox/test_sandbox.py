"""How executions end, what a failing sandbox does, and under which circumstances it must work."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.errors import SandboxError
from model.sandbox import Call, CallResult, End, Limits, Sandbox, Tier, link
from model.sandbox.probes import broken_promises

ROOT = Path(__file__).parents[3]
QUICK = Limits(cpu_seconds=0.3, wall_seconds=30.0, memory_bytes=64 << 20, output_bytes=1000)
BRIEF = Limits(wall_seconds=0.5)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as started:
        yield started


def test_each_input_gets_its_own_output(sandbox: Sandbox) -> None:
    program = "seen = 0\nseen += int(input())\nprint(seen)\nimport sys; print('!', file=sys.stderr)"
    one, two = sandbox.run(program, [b"1\n", b"2\n"])
    assert (one.end, one.stdout, one.stderr, one.detail) == (End.OK, b"1\n", b"!\n", "")
    assert two.stdout == b"2\n"
    assert 0 < two.cpu_seconds < 4


def test_the_tier_of_a_machine_can_be_asked_for(sandbox: Sandbox) -> None:
    command = [sys.executable, "-m", "model.sandbox"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"tier {sandbox.tier}{' (in bubblewrap)' * sandbox.in_bubblewrap}\n"


@pytest.mark.parametrize(
    ("program", "end", "detail"),
    [
        ("", End.OK, ""),
        ("raise SystemExit", End.OK, ""),
        ("import os; os._exit(0)", End.OK, ""),
        ("import atexit, sys; atexit.register(sys.stdout.write, 'late')", End.OK, ""),
        ("import sys; sys.exit(3)", End.EXIT, "exit status 3"),
        ("import sys; sys.exit('words')", End.EXIT, "exit status 1"),
        ("1 / 0", End.EXCEPTION, "ZeroDivisionError: division by zero"),
        ("eval('1 +')", End.EXCEPTION, "SyntaxError: invalid syntax (<string>, line 1)"),
        ("x = = 1", End.SYNTAX, "SyntaxError: invalid syntax (program.py, line 1)"),
        ("x = [0] * (1 << 40)", End.MEMORY, "MemoryError"),
        ("import torch", End.UNSUPPORTED, "ModuleNotFoundError: No module named 'torch'"),
        ("while True: pass", End.CPU_TIME, "0.3 s"),
        ("print('x' * 1001)", End.OUTPUT, "more than 1000 bytes"),
        ("print('x' * 999)", End.OK, ""),
        ("import ctypes; ctypes.string_at(0)", End.SIGNAL, "SIGSEGV"),
    ],
)
def test_how_a_program_ends(sandbox: Sandbox, program: str, end: End, detail: str) -> None:
    [done] = sandbox.run(program, [b""], QUICK)
    assert (done.end, done.detail.removesuffix(": ")) == (end, detail)


def test_waiting_is_limited_too(sandbox: Sandbox) -> None:
    [done] = sandbox.run("import time; time.sleep(99)", [b""], BRIEF)
    assert (done.end, done.detail) == (End.WALL_TIME, "0.5 s")
    assert 0.5 <= done.wall_seconds < 20


def test_output_is_capped_and_kept(sandbox: Sandbox) -> None:
    [done] = sandbox.run("while True: print('x' * 9)", [b""], QUICK)
    assert done.stdout == (b"x" * 9 + b"\n") * 100


def test_memory_is_what_the_program_may_have_beyond_the_interpreter(sandbox: Sandbox) -> None:
    ends = [sandbox.run(f"x = bytearray({size} << 20)", [b""], QUICK)[0].end for size in (40, 80)]
    assert ends == [End.OK, End.MEMORY]


def test_programs_read_input_in_every_usual_way(sandbox: Sandbox) -> None:
    program = """
        import sys, os, io
        first = input(); second = sys.stdin.readline(); rest = sys.stdin.read()
        print(first, second.strip(), rest.strip(), os.fstat(0).st_size, os.pread(0, 2, 0), open(0).read())
    """
    [done] = sandbox.run(textwrap.dedent(program), ["ä\n2\n3\n".encode()])
    assert done.stdout.decode() == "ä 2 3 7 b'\\xc3\\xa4' \n"


def test_threads_pools_and_event_loops_work(sandbox: Sandbox) -> None:
    program = """
        import asyncio, threading, concurrent.futures
        async def main(): return await asyncio.gather(asyncio.sleep(0, 1), asyncio.to_thread(lambda: 2))
        print(asyncio.run(main()))
        with concurrent.futures.ThreadPoolExecutor(4) as pool: print(list(pool.map(abs, [-3])))
        threading.Thread(target=lambda: print("late")).start()
    """
    [done] = sandbox.run(textwrap.dedent(program), [b""])
    assert (done.end, done.stdout) == (End.OK, b"[1, 2]\n[3]\nlate\n")


def test_arguments_and_names(sandbox: Sandbox) -> None:
    [done] = sandbox.run("import sys, __main__\nprint(__name__, sys.argv[1:], __main__.sys is sys)", [b""], argv=["a"])
    assert done.stdout == b"__main__ ['a'] True\n"


def test_calls_give_values(sandbox: Sandbox) -> None:
    program = "def f(a, *, b=2):\n    if a == 0: raise KeyError(a)\n    return (a, {b})"
    assert sandbox.call(program, "f", [Call((1,)), Call((0,)), Call(("x",), {"b": 1.5})]) == [
        CallResult(End.OK, (1, {2})),
        CallResult(End.EXCEPTION, None, "KeyError: 0"),
        CallResult(End.OK, ("x", {1.5})),
    ]


def test_methods_get_a_fresh_instance(sandbox: Sandbox) -> None:
    program = "class Solution:\n    n = 0\n    def f(self):\n        self.n += 1\n        return self.n"
    assert [each.value for each in sandbox.call(program, "Solution.f", [Call(), Call()])] == [1, 1]


def test_subclasses_do_not_come_out_as_their_base(sandbox: Sandbox) -> None:
    program = "class Evil(int):\n    def __eq__(self, o): return True\ndef f(n): return [1, True, 1.0, Evil(1)][n]"
    results = sandbox.call(program, "f", [Call((kind,)) for kind in range(4)])
    assert [type(each.value) for each in results] == [int, bool, float, type(None)]
    assert (results[3].end, results[3].error) == (End.EXCEPTION, "unencodable: Evil")


@pytest.mark.parametrize(
    ("program", "end"),
    [
        ("def f(n):\n    while n: pass\n    return n", End.CPU_TIME),
        ("import os\ndef f(n):\n    if n: os._exit(0)\n    return n", End.EXIT),
        ("import os\ndef f(n):\n    if n: os._exit(9)\n    return n", End.EXIT),
        ("import ctypes\ndef f(n):\n    if n: ctypes.string_at(0)\n    return n", End.SIGNAL),
        ("def f(n): return 'x' * 2000 if n else n", End.OUTPUT),
    ],
)
def test_a_call_that_never_reports_gets_the_processs_end(sandbox: Sandbox, program: str, end: End) -> None:
    results = sandbox.call(program, "f", [Call((0,)), Call((1,)), Call((0,))], QUICK)
    assert [each.end for each in results] == [End.OK, end, end]
    assert results[0].value == 0


def test_a_program_that_does_not_load_fails_every_call(sandbox: Sandbox) -> None:
    assert [each.end for each in sandbox.call("x = = 1", "f", [Call()] * 2)] == [End.SYNTAX] * 2


def test_arguments_that_cannot_travel_are_the_callers_mistake(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="unencodable: object"):
        sandbox.call("", "f", [Call((object(),))])


def test_a_killed_zygote_is_started_anew() -> None:
    with Sandbox(tier=Tier.C) as sandbox:
        before = sandbox._link
        assert before is not None
        os.kill(before.zygote_process, signal.SIGKILL)
        assert sandbox.run("print(1)", [b""])[0].stdout == b"1\n"
        assert sandbox._link is not before


def test_a_sandbox_that_cannot_carry_on_is_an_error_not_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zygote dies and its interpreter is gone; later it is back, and so is the sandbox."""
    with Sandbox(tier=Tier.C) as sandbox:
        assert sandbox._link is not None
        os.kill(sandbox._link.zygote_process, signal.SIGKILL)
        with monkeypatch.context() as broken:
            broken.setattr(link, "_interpreter", lambda: "/nowhere/python3")
            with pytest.raises(SandboxError, match="cannot be started"):
                sandbox.run("print(1)", [b""])
        assert sandbox.run("print(1)", [b""])[0].stdout == b"1\n"


@pytest.mark.parametrize(
    ("kind", "most", "said"),
    [(resource.RLIMIT_NOFILE, 3, "Too many open files"), (resource.RLIMIT_FSIZE, 0, "File too large")],
)
def test_no_descriptor_or_no_room_for_the_files_is_an_error(sandbox: Sandbox, kind: int, most: int, said: str) -> None:
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, hard))
    try:
        with pytest.raises(SandboxError, match=said):
            sandbox.run("print(1)", [b""])
    finally:
        resource.setrlimit(kind, (soft, hard))
    assert sandbox.run("print(1)", [b""])[0].stdout == b"1\n"


def test_a_full_disk_at_the_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(SandboxError, match="No space left"):
        Sandbox().start()


def test_a_sandbox_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_interpreter", lambda: "/nowhere/python3")
    with pytest.raises(SandboxError, match=r"tier A: .*cannot be started.*\| tier B: .*\| tier C: "):
        Sandbox().start()


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(SandboxError, match="no_such_package"):
        Sandbox(tier=Tier.C, preload=["no_such_package"]).start()


def test_no_isolation_only_when_asked_for() -> None:
    with pytest.raises(ValueError, match="unsafe=True"):
        Sandbox(tier=Tier.NONE)
    with Sandbox(unsafe=True) as sandbox:
        assert sandbox.tier is Tier.NONE
        assert sandbox.run("print(1)", [b""])[0].stdout == b"1\n"


def test_the_self_test_sees_that_nothing_isolates() -> None:
    """Check the checker: each mechanism's probe reports its absence."""
    with Sandbox(unsafe=True) as sandbox:
        broken = broken_promises(sandbox)
    for name in (
        "read_file",
        "write_file",
        "connect",
        "fork",
        "execute",
        "signal_zygote",
        "memfd",
        "trace",
        "io_uring",
    ):
        assert f"{name} works" in broken
    assert "files were made or removed" in broken
    assert "a connection was made" in broken


def test_packages_are_there_when_preloaded() -> None:
    program = "import numpy as np, numpy.testing\ndef f(n): return float(np.linalg.norm(np.eye(n) * 2) ** 2)"
    with Sandbox(preload=["numpy"]) as sandbox:
        assert sandbox.call(program, "f", [Call((4,))]) == [CallResult(End.OK, 16.0)]
        assert sandbox.run("import scipy", [b""])[0].end is End.UNSUPPORTED


def test_the_hash_seed_is_the_callers() -> None:
    program = "import random\nprint(hash('x'), random.random())"
    said = []
    for seed in (1, 1, 2):
        with Sandbox(tier=Tier.C, hash_seed=seed) as sandbox:
            said.append(sandbox.run(program, [b""])[0].stdout)
    assert said[0] == said[1] != said[2]


def test_nothing_of_a_parent_with_many_descriptors_is_inherited() -> None:
    """Control socket and handles get numbers far above, or among, those that the zygote uses itself."""
    program = "import os\nfor n in range(4, 2000):\n    try: print(n, os.fstat(n))\n    except OSError: pass"
    for many in (34, 35, 36, 37, 38, 39, 300):
        taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(many)]
        for each in taken:
            os.set_inheritable(each, True)
        with Sandbox(tier=Tier.C) as sandbox:
            [done] = sandbox.run(program, [b""])
        for each in taken:
            os.close(each)
        assert (done.end, done.stdout) == (End.OK, b"")


def test_it_works_in_a_thread_that_ends_and_under_a_memory_limit() -> None:
    """As in a verifier's worker: 2 GiB of address space, started by a thread, used by another one."""
    code = """
        import resource, threading
        from model.errors import SandboxError
        from model.sandbox import Limits, Sandbox
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        sandbox = Sandbox()
        starter = threading.Thread(target=sandbox.start); starter.start(); starter.join()
        before = sandbox._link
        print(sandbox.run("print(1)", [b""])[0].stdout, sandbox._link is before)
        try: sandbox.run("print(1)", [b""], Limits(memory_bytes=4 << 30))
        except SandboxError as error: print("RLIMIT_AS allows 2048 MiB here" in str(error))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "b'1\\n' True\nTrue\n"


@pytest.mark.parametrize("tier", ["A", "B", "C"])
def test_zygote_and_child_die_with_the_parent(tier: str) -> None:
    """Killed hard in the middle of a test, although a sibling still holds the parent's descriptors."""
    code = f"""
        import os, threading, time
        from model.sandbox import Limits, Sandbox, Tier
        sandbox = Sandbox(tier=Tier("{tier}")); sandbox.start()
        if os.fork() == 0: time.sleep(60)
        print(sandbox._link.zygote_process, flush=True)
        sandbox.run("import time; time.sleep(60)", [b""], Limits(wall_seconds=60))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True) as parent:
        assert parent.stdout is not None
        line = parent.stdout.readline()
        if not line:
            pytest.skip(f"tier {tier} does not hold here")
        session = int(line)
        time.sleep(0.2)
        parent.kill()
        deadline = time.monotonic() + 10
        while _members(session) and time.monotonic() < deadline:
            time.sleep(0.02)
        left = _members(session)
        os.killpg(parent.pid, signal.SIGKILL)  # the sibling
    assert not left


def _members(session: int) -> list[int]:
    """Living processes of that session; the zygote leads one."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                state, _, _, its = (place / "stat").read_text().rsplit(")", 1)[1].split()[:4]
            except OSError:  # ended meanwhile
                continue
            if int(its) == session and state != "Z":
                found.append(int(place.name))
    return found
