"""Wrong programs made from a right one: each differs in one place, in a way that programmers really err.

Kinds: comparison (its opposite), boundary (< for <=), arithmetic (- for +), constant (one more, one less), boolean
(False for True), negation (a condition turned round), logic (or for and), min_max, return (None instead, or an
early one gone), range (the last turn missing) and slice (a bound one more). Deterministic: the same source gives the
same mutants in the same order.

What provably means the same as the source is no mutant, and of mutants that provably mean the same one is made
(`meaning.py`: by what the program says, never by what some tests tell). Other equivalent mutants are made, since no
rule sees them all. Not made is also what nearly always is one: changes in annotations and docstrings, None for a
returned False, 0 or empty value (callers take either for false), one turn more of a loop (its body mostly does
nothing then).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from model.rewards.programs.meaning import OPPOSITE, is_beyond_rules, meaning, never_run

_BOUNDARY: dict[type, type] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
_ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_LOGIC: dict[type, type] = {ast.And: ast.Or, ast.Or: ast.And}
_ALONE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)  # parts of a module
_MIN_MAX = {"min": "max", "max": "min"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """`name` is the kind, the source's line and what was done: `comparison:3: Lt to GtE`."""

    name: str
    source: str

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]


# One field of one node, and what it becomes: kind, what to say, field, new value.
_Change = tuple[str, str, str, Any]


def mutants(source: str, entry: str | None = None, most: int | None = None) -> list[Mutant]:
    """The mutants of a program: all, or `most` of them (fewer where there are fewer), spread over it.

    Only `entry` is called, if that is said. No more changes are looked into than `most` takes. SyntaxError when it is
    no program.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        _drop_what_does_nothing(node)
    idle = never_run(tree, entry)
    said_by = ast.unparse if is_beyond_rules(tree) else meaning
    # What the rules look at: one function, class or assignment of the module, or where that is not enough, all of it.
    parts = {node: item for item in tree.body if isinstance(item, _ALONE) for node in ast.walk(item)}
    seen = {(part, said_by(part)) for part in (tree, *tree.body)}
    changes = [(node, change) for node in ast.walk(tree) if node not in idle for change in _changes(node)]
    found: dict[int, Mutant] = {}
    for place in range(len(changes)) if most is None else _spread(len(changes)):
        if len(found) == most:
            break
        node, (kind, said, field, value) = changes[place]
        part = parts.get(node, tree)
        with _changed(node, field, value):
            what = part, said_by(part)
            if what not in seen:
                seen.add(what)
                found[place] = Mutant(f"{kind}:{getattr(node, 'lineno', 0)}: {said}", ast.unparse(tree))
    return [found[place] for place in sorted(found)]


def _spread(count: int) -> list[int]:
    """The places in an order of which any beginning is spread over all: halves, quarters, … (by bits backwards)."""
    bits = count.bit_length()
    return sorted(range(count), key=lambda place: f"{place:0{bits}b}"[::-1])


def _drop_what_does_nothing(node: ast.AST) -> None:
    """Annotations and docstrings: a change there would count as a mutant that survives."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        node.returns = None
    if isinstance(node, ast.arg):
        node.annotation = None
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
        node.body = [item for item in node.body if not _is_text(item)] or [ast.Pass()]


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


@contextmanager
def _changed(node: ast.AST, field: str, value: Any) -> Iterator[None]:
    """While this lasts the field has this value; afterwards the tree is as it was."""
    before = getattr(node, field)
    setattr(node, field, value)
    try:
        yield
    finally:
        setattr(node, field, before)


def _changes(node: ast.AST) -> Iterator[_Change]:
    for kind_of_node, changes in _BY_NODE:
        if isinstance(node, kind_of_node):
            yield from changes(node)


def _of_comparison(node: ast.Compare) -> Iterator[_Change]:
    for place, operator in enumerate(node.ops):
        for kind, table in (("comparison", OPPOSITE), ("boundary", _BOUNDARY)):
            if type(operator) in table:
                new = table[type(operator)]
                operators = [*node.ops[:place], new(), *node.ops[place + 1 :]]
                yield kind, f"{type(operator).__name__} to {new.__name__}", "ops", operators


def _of_operator(node: ast.BinOp | ast.AugAssign | ast.BoolOp) -> Iterator[_Change]:
    old = type(node.op)
    for kind, table in (("arithmetic", _ARITHMETIC), ("logic", _LOGIC)):
        if old in table:
            yield kind, f"{old.__name__} to {table[old].__name__}", "op", table[old]()


def _of_unary(node: ast.UnaryOp) -> Iterator[_Change]:
    if isinstance(node.op, ast.Not):
        # `not not x` is x's truth: one place changed, and the negation is gone.
        yield "negation", "not gone", "operand", ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node.op, ast.USub):
        yield "arithmetic", "minus gone", "op", ast.UAdd()


def _of_constant(node: ast.Constant) -> Iterator[_Change]:
    if isinstance(node.value, bool):
        yield "boolean", f"{node.value} to {not node.value}", "value", not node.value
    elif isinstance(node.value, int):
        for new in (node.value + 1, node.value - 1):
            yield "constant", f"{node.value} to {new}", "value", new


def _of_condition(node: ast.If | ast.While | ast.IfExp) -> Iterator[_Change]:
    yield "negation", f"condition of {type(node).__name__.lower()}", "test", ast.UnaryOp(ast.Not(), node.test)


def _of_comprehension(node: ast.comprehension) -> Iterator[_Change]:
    for place, condition in enumerate(node.ifs):
        negated = ast.UnaryOp(ast.Not(), condition)
        yield "negation", "condition of comprehension", "ifs", [*node.ifs[:place], negated, *node.ifs[place + 1 :]]


def _of_call(node: ast.Call) -> Iterator[_Change]:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name in _MIN_MAX:
        yield "min_max", f"{name} to {_MIN_MAX[name]}", "func", ast.Name(_MIN_MAX[name])
    if name == "range" and node.args:
        place = 0 if len(node.args) == 1 else 1
        stop = node.args[place]
        if not isinstance(stop, ast.Constant):
            yield (
                "range",
                "stop one less",
                "args",
                [*node.args[:place], _moved(stop, ast.Sub()), *node.args[place + 1 :]],
            )


def _of_slice(node: ast.Slice) -> Iterator[_Change]:
    for field in ("lower", "upper"):
        bound = getattr(node, field)
        if bound is not None and not isinstance(bound, ast.Constant):
            yield "slice", f"{field} one more", field, _moved(bound, ast.Add())


def _of_return(node: ast.Return) -> Iterator[_Change]:
    if node.value is not None and not _is_empty(node.value):
        yield "return", "value to None", "value", ast.Constant(None)


def _of_block(node: ast.If | ast.For | ast.While) -> Iterator[_Change]:
    """An early return that is gone. The last one of a function is `_of_return`'s."""
    for field in ("body", "orelse"):
        statements = getattr(node, field)
        for place, statement in enumerate(statements):
            if isinstance(statement, ast.Return):
                yield "return", "gone", field, [*statements[:place], ast.Pass(), *statements[place + 1 :]]


def _moved(node: ast.expr, way: ast.operator) -> ast.expr:
    return ast.BinOp(node, way, ast.Constant(1))


def _is_empty(node: ast.expr) -> bool:
    """False, None, 0, an empty text or list: what is false wherever it is written so."""
    if isinstance(node, ast.List | ast.Tuple):
        return not node.elts
    return (isinstance(node, ast.Constant) and not node.value) or (isinstance(node, ast.Dict) and not node.keys)


_BY_NODE: tuple[tuple[Any, Callable[[Any], Iterator[_Change]]], ...] = (
    (ast.Compare, _of_comparison),
    ((ast.BinOp, ast.AugAssign, ast.BoolOp), _of_operator),
    (ast.UnaryOp, _of_unary),
    (ast.Constant, _of_constant),
    ((ast.If, ast.While, ast.IfExp), _of_condition),
    (ast.comprehension, _of_comprehension),
    (ast.Call, _of_call),
    (ast.Slice, _of_slice),
    (ast.Return, _of_return),
    ((ast.If, ast.For, ast.While), _of_block),
)
