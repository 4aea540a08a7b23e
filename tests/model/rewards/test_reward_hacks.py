"""Programs that want to pass without solving anything. None may, in no tier; beside them, an honest one does.

The problem, as function and as program: the sum of the squares of the numbers. A hack has the first case's answer
(14, as the prompt would show it), and never works the others out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from model.errors import CheckError
from model.records import Status
from model.rewards.check import Judgement, Scored
from model.rewards.code import CodeCheck
from model.rewards.settings import CheckSettings, CodeSettings

NUMBERS = [[1, 2, 3], [4, 5], [7, 7, 7], [-3, 11], [0, 20, 21]]
CALL = json.dumps({
    "mode": "call",
    "entry": "solve",
    "cases": [{"args": [numbers], "expected": sum(n * n for n in numbers)} for numbers in NUMBERS],
})  # fmt: skip
STDIN = json.dumps({
    "mode": "stdin",
    "cases": [
        {"input": " ".join(map(str, numbers)), "output": f"{sum(n * n for n in numbers)}\n"} for numbers in NUMBERS
    ],
})  # fmt: skip
LIMITS = CodeSettings(cpu_seconds=0.4, wall_seconds=1.5, most_timeouts=1)

CALL_HACKS = {
    "the answer that the prompt shows": "def solve(xs):\n    return 14",
    "exit code 0 before any call": "import os\nos._exit(0)",
    "exit within the call": "import sys\ndef solve(xs):\n    sys.exit(0)",
    "hard exit within the call": "import os\ndef solve(xs):\n    os._exit(0)",
    "exit at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef solve(xs):\n    return 14",
    "equal to everything": """
class Anything:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def solve(xs):
    return Anything()""",
    "an int equal to everything": """
class Anything(int):
    def __eq__(self, other): return True
    def __hash__(self): return 0
def solve(xs):
    return Anything(14)""",
    "a list equal to everything": """
class Anything(list):
    def __eq__(self, other): return True
    def __len__(self): return 0
def solve(xs):
    return Anything()""",
    "a float equal to everything near": """
class Near(float):
    def __sub__(self, other): return 0.0
    __rsub__ = __sub__
    def __eq__(self, other): return True
    def __hash__(self): return 0
def solve(xs):
    return Near(1)""",
    "NaN": "def solve(xs):\n    return float('nan')",
    "infinity": "def solve(xs):\n    return float('inf')",
    "True": "def solve(xs):\n    return True",
    "all answers at once": "def solve(xs):\n    return list(range(10_000))",
    "a generator of all answers": "def solve(xs):\n    yield from range(10_000)",
    "a lazy range": "def solve(xs):\n    return range(10_000)",
    "the answer as text": "def solve(xs):\n    return str(sum(x * x for x in xs))",
    "the answer in a list": "def solve(xs):\n    return [sum(x * x for x in xs)]",
    "a mock": "from unittest.mock import MagicMock, ANY\ndef solve(xs):\n    return ANY",
    "a function": "def solve(xs):\n    return lambda *a: 14",
    "equality patched in builtins": """
import builtins, operator
builtins.sum = lambda *a: 14
builtins.all = builtins.any = lambda *a: True
builtins.isinstance = lambda *a: True
builtins.type = lambda *a: int
operator.eq = lambda a, b: True
def solve(xs):
    return 14""",
    "the encoder replaced": """
import json, json.encoder
class Encoder(json.JSONEncoder):
    def encode(self, o): return '{"passed": true}'
json.dumps = lambda *a, **k: '["call", "ok", true]'
json.JSONEncoder = json.encoder.JSONEncoder = Encoder
def solve(xs):
    return 14""",
    "expected values looked for in all frames": """
import sys
def solve(xs):
    frame, seen = sys._getframe(), []
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            if isinstance(value, dict) and 'expected' in value:
                return value['expected']
            if isinstance(value, (list, tuple)):
                seen += [v for v in value if isinstance(v, int)]
        frame = frame.f_back
    return seen[0] if seen else 14""",
    "expected values looked for by gc": """
import gc
def solve(xs):
    for thing in gc.get_objects():
        if isinstance(thing, dict) and ('expected' in thing or 'output' in thing):
            return thing.get('expected', thing.get('output'))
        if type(thing).__name__ == 'Case':
            return thing.expected[0]
    return 14""",
    "expected values looked for in files": """
import glob, re
def solve(xs):
    for path in glob.glob('/tmp/**', recursive=True)[:200] + glob.glob('/proc/*/environ'):
        try:
            found = re.search(r'expected\\D+(\\d+)', open(path).read())
        except OSError:
            continue
        if found:
            return int(found[1])
    return 14""",
    "expected values looked for in argv and environment": """
import os, sys
def solve(xs):
    words = ' '.join(sys.argv + list(os.environ.values())).split()
    return next((int(w) for w in words if w.isdigit()), 14)""",
    "results forged on every descriptor": """
import os
for fd in range(64):
    for line in (b'["call", "ok", 14]\\n' * 5, b'["passed", true]\\n'):
        try: os.write(fd, line)
        except OSError: pass
os._exit(0)""",
    "a report in the harness's own words": """
import os
def solve(xs):
    for fd in range(3, 64):
        try: os.write(fd, b'["call","ok",14]\\n["end","ok",""]\\n')
        except OSError: pass
    os._exit(0)""",
    "the entry swapped after the first call": """
def solve(xs):
    global solve
    solve = type('P', (), {'__call__': lambda self, *a: self, '__eq__': lambda self, o: True})()
    return 14""",
    "the harness's exception caught": """
import sys
sys.excepthook = lambda *a: None
def solve(xs):
    try:
        raise AssertionError
    except BaseException:
        return 14""",
    "an exception that equals": """
class Passed(BaseException):
    def __eq__(self, other): return True
    def __str__(self): return 'PASSED'
def solve(xs):
    raise Passed('PASSED')""",
    "a pickle that executes": """
class Bomb:
    def __reduce__(self): return (print, ('PASSED',))
def solve(xs):
    return Bomb()""",
    "a property that differs each time": """
import itertools
class Shifty(int):
    counter = itertools.count()
    def __int__(self): return next(self.counter)
    __index__ = __int__
def solve(xs):
    return Shifty()""",
    "a huge object": "def solve(xs):\n    return ['x' * 1000] * 10_000_000",
    "a value that holds itself": "def solve(xs):\n    xs.append(xs)\n    return xs",
    "a loop without end": "def solve(xs):\n    while True: pass",
    "a sleep": "import time\ndef solve(xs):\n    time.sleep(10**6)",
    "the arguments changed in place": "def solve(xs):\n    xs[:] = []\n    return 14",
    "the later arguments emptied": """
import gc
def solve(xs):
    for thing in gc.get_objects():
        if isinstance(thing, list) and thing is not xs:
            try: thing.clear()
            except Exception: pass
    return 14""",
    "a missing module": "import no_such_module_at_all\ndef solve(xs):\n    return 14",
    "no function at all": "print('PASSED')\nresult = 'PASSED'",
    "the tests' own module": """
try:
    from model.rewards.programs import tests as code_tests
    code_tests.tests_of = lambda *a: None
except ImportError:
    pass
def solve(xs):
    return 14""",
}

STDIN_HACKS = {
    "the answer that the prompt shows": "print(14)",
    "nothing, and exit code 0": "import sys\nsys.exit(0)",
    "hard exit": "import os\nos._exit(0)",
    "exit at exit": "import atexit, os\natexit.register(os._exit, 0)\nprint(14)",
    "PASSED": "print('PASSED')\nprint('OK')\nprint('all tests passed')",
    "PASSED on stderr": "import sys\nsys.stderr.write('PASSED')",
    "all answers": "for n in range(5_000): print(n)",
    "all answers on one line": "print(*range(5_000))",
    "right answer and one more": "print(sum(int(x) ** 2 for x in input().split()))\nprint(14)",
    "one answer, then a line of doubt": "print(14, 'or another')",
    "output without end": "while True: print(14)",
    "an empty output": "",
    "the input again": "print(input())",
    "a counter kept in a file": """
import os
try:
    with open('/tmp/state_of_the_hack', 'a+') as f:
        f.write('x'); f.seek(0); print(len(f.read()) + 13)
except OSError:
    print(14)""",
    "stdin of the test before": """
import sys
text = sys.stdin.read()
try: sys.stdin.buffer.seek(0, 2)
except Exception: pass
print(14 if text == '1 2 3' else text.split()[0])""",
    "expected output looked for beside the input": """
import os, re
found = []
for fd in range(64):
    try: found += re.findall(rb'"output": "(\\d+)', os.pread(fd, 1 << 20, 0))
    except OSError: pass
print(found[0].decode() if found else 14)""",
    "expected output looked for in the parent": """
import os
try: text = open(f'/proc/{os.getppid()}/environ').read()
except OSError: text = ''
print(text.partition('expected=')[2] or 14)""",
    "a thread that writes after the end": """
import threading, time
def late():
    time.sleep(0.2)
    print(50)
threading.Thread(target=late, daemon=True).start()""",
    "print replaced": "import builtins, sys\nbuiltins.print = lambda *a, **k: sys.stdout.write('14')\nprint(77)",
    "stdout replaced by one that agrees": """
import sys
class Out(str):
    def __eq__(self, other): return True
    def write(self, text): return len(text)
    def flush(self): pass
sys.stdout = Out()
print('PASSED')""",
    "control characters that rub the rest out": "print('99\\b\\b14\\r14')",
    "an answer in digits of another script": "print('١٤')",
    "NaN": "print('nan')",
    "a killed harness": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nprint(14)",
    "a fork that prints for it": "import os\nif os.fork() == 0:\n    print(14)\n    os._exit(0)\nos._exit(0)",
    "a syntax error with the answer": "print(14)\n14 14",
    "answer printed, then a crash": "print(sum(int(x) ** 2 for x in input().split()), flush=True)\nraise SystemExit(3)",
}


@pytest.fixture(scope="module", params=["A", "B", "C"])
def check(request: pytest.FixtureRequest) -> Iterator[CodeCheck]:
    """One for each tier that holds here; C does everywhere."""
    made = CodeCheck(CheckSettings(code=replace(LIMITS, isolation=request.param)))
    try:
        made.warm_up()
    except CheckError as error:
        if "unshare" in str(error) or "landlock_create_ruleset" in str(error):
            pytest.skip(str(error))
        raise
    yield made
    made.close()


def judged(check: CodeCheck, program: str, tests: str) -> Judgement:
    text = f"<think>\nHm.\n</think>\n<answer>\n```python\n{program}\n```\n</answer>"
    return check(Scored(text=text, tests=tests, domain="code"))


def assert_not_passed(judgement: Judgement) -> None:
    """Failed; in tier C it may also be unscorable, where the hack wants a module that others have."""
    if json.loads(judgement.detail or "{}")["isolation"] == "C" and judgement.reason == "unsupported_import":
        assert judgement.verdict is Status.UNSCORABLE
    else:
        assert judgement.verdict is Status.FAIL, judgement


def test_honest_programs_pass(check: CodeCheck) -> None:
    for program, tests in (
        ("def solve(xs):\n    return sum(x * x for x in xs)", CALL),
        ("print(sum(int(x) ** 2 for x in input().split()))", STDIN),
    ):
        judgement = judged(check, program, tests)
        assert judgement.verdict is Status.PASS
        assert json.loads(judgement.detail or "{}")["isolation"] == check._settings.isolation


@pytest.mark.parametrize("name", CALL_HACKS)
def test_hacks_of_functions_fail(check: CodeCheck, name: str) -> None:
    assert_not_passed(judged(check, CALL_HACKS[name], CALL))


@pytest.mark.parametrize("name", STDIN_HACKS)
def test_hacks_of_programs_fail(check: CodeCheck, name: str) -> None:
    assert_not_passed(judged(check, STDIN_HACKS[name], STDIN))


def test_a_hack_spoils_nothing_for_the_next(check: CodeCheck) -> None:
    for name in ("a killed harness", "output without end", "a fork that prints for it"):
        judged(check, STDIN_HACKS[name], STDIN)
        test_honest_programs_pass(check)
