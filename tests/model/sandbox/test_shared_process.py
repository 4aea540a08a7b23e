"""Several inputs in one process: each meets a program that starts anew, and none gets another's output or end."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from model.sandbox import MOST_INPUTS, End, Execution, Limits, Sandbox

QUICK = Limits(cpu_seconds=0.3, wall_seconds=30.0, memory_bytes=64 << 20, output_bytes=1000)
THREE = [b"1\n", b"2\n", b"3\n"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")


@pytest.fixture(scope="module", params=["A", "C"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    from model.errors import SandboxError
    from model.sandbox import Tier

    started = Sandbox(tier=Tier(request.param))
    try:
        started.start()
    except SandboxError as error:
        pytest.skip(str(error))
    yield started
    started.close()


def _told(done: list[Execution]) -> list[tuple[End, bytes, str]]:
    return [(each.end, each.stdout, each.detail.removesuffix(": ")) for each in done]


@pytest.mark.parametrize(
    ("program", "outputs"),
    [
        ("seen = globals().get('seen', 0) + int(input()); print(seen)", [b"1\n", b"2\n", b"3\n"]),
        ("import os; print(os.fstat(0).st_size, os.pread(0, 9, 0), open(0).read())", [b"2 b'%d\\n' %d\n\n"]),
        ("import io, os, sys; sys.stdin = io.StringIO(os.read(0, 9).decode()); print(input())", [b"%d\n"]),
        ("import sys; sys.stdout = sys.stderr; sys.__stdout__.write(input())", [b"%d"]),
        ("import sys; print(input()); sys.stdout.close()", [b"%d\n"]),
        ("import atexit; x = input(); atexit.register(lambda: print('late', x)); print(x)", [b"%d\nlate %d\n"]),
        ("class A:\n  def __del__(self): print('gone')\na = A(); print(input())", [b"%d\ngone\n"]),
        ("f = open(0); f.loop = f; print(f.readline(), end='')", [b"%d\n"]),
        ("import sys; print(sys.getrecursionlimit()); sys.setrecursionlimit(5000)", [b"1000\n"]),
        ("import threading as t; h = t.Thread(target=print, args=(input(),)); h.start(); h.join()", [b"%d\n"]),
        ("import sys; print(2 * int(input())); exit()", [b"2\n", b"4\n", b"6\n"]),
        (
            "import decimal as d, sys; x = input(); print(d.getcontext().prec, sys.get_int_max_str_digits())\n"
            "d.getcontext().prec = 60; sys.set_int_max_str_digits(0)",
            [b"28 4300\n"],
        ),
        ("import __main__, sys; print(__name__, sys.argv, __main__.sys is sys)", [b"__main__ ['program.py'] True\n"]),
    ],
)
def test_each_input_meets_a_fresh_main(sandbox: Sandbox, program: str, outputs: list[bytes]) -> None:
    wanted = outputs * 3 if len(outputs) == 1 else outputs
    wanted = [each.replace(b"%d", b"%d" % number) for number, each in enumerate(wanted, 1)]
    assert _told(sandbox.run(program, THREE)) == [(End.OK, each, "") for each in wanted]


def test_randomness_is_the_same_for_each_input(sandbox: Sandbox) -> None:
    one, two = sandbox.run("import random; print(random.random())", THREE[:2])
    assert one.stdout == two.stdout


def test_each_input_has_its_own_end_and_errors(sandbox: Sandbox) -> None:
    program = (
        "import sys\nx = int(input())\nprint(x, file=sys.stderr)\nif x == 1: sys.exit(3)\nif x == 2: 1 / 0\nprint(x)\n"
    )
    done = sandbox.run(program, THREE)
    assert _told(done) == [
        (End.EXIT, b"", "exit status 3"),
        (End.EXCEPTION, b"", "ZeroDivisionError: division by zero"),
        (End.OK, b"3\n", ""),
    ]
    assert [each.stderr.splitlines()[0] for each in done] == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    ("at_two", "end", "detail"),
    [
        ("import os; os._exit(0)", End.OK, ""),
        ("import ctypes; ctypes.string_at(0)", End.SIGNAL, "SIGSEGV"),
        ("while True: pass", End.CPU_TIME, "0.3 s"),
        ("print('x' * 1001)", End.OUTPUT, "more than 1000 bytes"),
        ("import os; os.closerange(0, 64)", End.OK, ""),
        ("import threading, time; threading.Thread(target=time.sleep, args=(1,), daemon=True).start()", End.OK, ""),
    ],
)
def test_where_the_process_ends_the_rest_is_not_reached(sandbox: Sandbox, at_two: str, end: End, detail: str) -> None:
    program = f"x = int(input())\nprint(x, flush=True)\nif x == 2:\n  {at_two}\n"
    one, two = sandbox.run(program, THREE, QUICK)
    assert (one.end, one.stdout) == (End.OK, b"1\n")
    assert (two.end, two.detail, two.stdout[:2]) == (end, detail, b"2\n")


def test_what_is_not_flushed_is_written_as_at_an_interpreters_end(sandbox: Sandbox) -> None:
    """The file object closes standard output with it: there is nothing that a next input could write to."""
    [done] = sandbox.run("import os; out = os.fdopen(1, 'w'); out.write(input())", THREE)
    assert _told([done]) == [(End.OK, b"1", "")]


# What judges' templates do with standard output; plain Python ends each with status 0 and this output.
OWN_OUTPUT = {
    "a class that writes in flush": """
import os, sys
class Out:
    def __init__(self): self.held = ""
    def write(self, text): self.held += text
    def flush(self): os.write(1, self.held.encode()); self.held = ""
sys.stdout = Out()
print(input())""",
    "a wrapper of what was detached": """
import io, sys
sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding="utf-8")
print(input())""",
    "a writer of what was detached": """
import codecs, sys
sys.stdout = codecs.getwriter("utf-8")(sys.stdout.detach())
print(input())""",
    "a destructor that uses a global": """
import sys
class Last:
    def __del__(self): print(sys.argv and LINE)
LINE = input()
last = Last()""",
    "a generator's end": """
LINE = input()
def told():
    try: yield 1
    finally: print(LINE)
waiting = told(); next(waiting)""",
    "no standard output left": """
import sys
print(input()); sys.stdout.flush()
del sys.stdout""",
}


@pytest.mark.parametrize("name", list(OWN_OUTPUT))
def test_output_is_written_as_at_an_interpreters_end(sandbox: Sandbox, name: str) -> None:
    for inputs in ([b"1\n"], THREE):
        done = sandbox.run(OWN_OUTPUT[name], inputs)
        assert _told(done[:1]) == [(End.OK, b"1\n", "")]
        assert [each.stdout for each in done] == [b"1\n", b"2\n", b"3\n"][: len(done)]


@pytest.mark.parametrize(
    "elsewhere",
    [
        "sys.stdout.flush(); os.dup2(2, 1)",
        "os.pwrite(1, b'', 0); sys.stdout.seek(0)",
        "sys.stdout.flush(); os.closerange(3, 64); os.dup(1); os.dup(1)",
    ],
)
def test_an_inputs_output_stays_its_own_whatever_becomes_of_the_descriptors(sandbox: Sandbox, elsewhere: str) -> None:
    done = sandbox.run(f"import os, sys\nprint(2 * int(input()))\n{elsewhere}", THREE)
    assert [each.stdout for each in done] == [b"2\n", b"4\n", b"6\n"][: len(done)]
    assert done[0].end is End.OK


def test_what_does_not_compile_ends_at_the_first_input(sandbox: Sandbox) -> None:
    [done] = sandbox.run("x = = 1", THREE)
    assert done.end is End.SYNTAX


@pytest.mark.parametrize(
    "claims",
    [r'["ran","ok",[0,1000,-5]]\n', r'["ran","ok",[0,\"x\",null]]\n', r'["ran","ok",3]\n', r"[[[\n", r"\xff\n"],
)
def test_a_forged_report_only_deals_out_the_programs_own_output(sandbox: Sandbox, claims: str) -> None:
    """Whatever it says: no more executions than inputs, nothing but what was written, and the sandbox goes on."""
    done = sandbox.run(f"import os\nos.write(3, b'{claims}' * 5)\nprint(input())", THREE)
    assert 1 <= len(done) <= 3
    assert b"".join(each.stdout for each in done) in (b"", b"1\n", b"1\n2\n", b"1\n2\n3\n", b"2\n", b"2\n3\n", b"3\n")
    assert sandbox.run("print(input())", [b"9"])[0].stdout == b"9\n"


def test_as_many_inputs_as_there_are_descriptors_for(sandbox: Sandbox) -> None:
    inputs = [b"%d\n" % number for number in range(MOST_INPUTS)]
    assert [each.stdout for each in sandbox.run("print(input())", inputs)] == inputs
    for wrong in ([], [b""] * (MOST_INPUTS + 1)):
        with pytest.raises(ValueError, match="1 to"):
            sandbox.run("print(1)", wrong)
