"""When do two programs surely mean the same? Rules about what a program says, never about what some tests tell.

Assumed is that numbers and sequences behave as Python's do, that of two equal values either will do, and that it does
not matter with which error a program ends. A program that reads or binds names in ways that are not followed here
(`global`, `eval`, its own `len`) is beyond the rules: there, only what reads the same means the same. The rules:

- 2 + 2 is 2 * 2, `not a == b` is `a != b`, and a length is never negative;
- `range` and slices count whole numbers (n + 1 - 1 is n), and a slice ends where its sequence does (x[:len(x) + 1]);
- at equality `if a >= m: m = a` changes nothing;
- an early `return c` (a constant) may be missing where what runs next is `return c`;
- conditions in a row with the same `return c` are one `or`, in which x > 29 decides and x > 31 does not;
- turns of a loop that do nothing: x *= 1; x += 0; `for j in range(i + 1, n)` where i is n - 1; `if n % k == 0` where k
  is n - 1, at least 2 (the rest is 1), or n + 1 (the rest is n);
- a variable that is only compared with constants by == and != may hold any other than these, and a counter that goes
  one way from 0 and is only compared with 0 may go in any steps;
- where it is known which function is called (`entry`), no function runs that nothing within its reach names.

Not covered: the many equivalences that take more than a few lines to see.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from operator import add, itemgetter, mul, sub

OPPOSITE: dict[type, type] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_Scope = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef
_REFLECTION = {"exec", "eval", "locals", "globals", "vars", "dir"}
_BUILTINS = {"range", "len"}
_UPWARD: dict[type, int] = {ast.Gt: 1, ast.GtE: 1, ast.Lt: -1, ast.LtE: -1}
_COMPLEMENTS = (ast.Eq, ast.NotEq, ast.In, ast.NotIn, ast.Is, ast.IsNot)  # not < and >=, which sets and NaN tell apart
_COUNTED: dict[type, Callable[[int, int], int]] = {ast.Add: add, ast.Sub: sub, ast.Mult: mul}
_PLAIN = (
    ast.Name, ast.Constant, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.List, ast.Tuple, ast.Subscript,
    ast.operator, ast.unaryop, ast.cmpop, ast.boolop, ast.expr_context,
)  # fmt: skip


def meaning(part: ast.AST) -> str:
    """A part of a program as the rules rewrite it: two for which this is the same mean the same."""
    tree = _Folded().visit(ast.parse(ast.unparse(part)))
    for scope in ast.walk(tree):
        if isinstance(scope, (ast.Module, *_FUNCTIONS)):
            _rewrite(scope)
    return ast.dump(tree)


def is_beyond_rules(tree: ast.AST) -> bool:
    """Whether names are read or bound in ways that the rules do not follow, or `range` and `len` are not Python's."""
    return any(
        isinstance(node, ast.Global | ast.Nonlocal)
        or (isinstance(node, ast.Name) and node.id in _REFLECTION)
        or not _BUILTINS.isdisjoint(_bound(node))
        for node in ast.walk(tree)
    )


def _rewrite(scope: _Scope) -> None:
    scope.body = _shortened(scope.body, ast.Return() if isinstance(scope, _FUNCTIONS) else None)
    for node in _inside(scope):
        for field in ("body", "orelse", "finalbody"):
            if isinstance(getattr(node, field, None), list):
                setattr(node, field, _shortened(getattr(node, field), None))
    inside = list(_inside(scope))
    used = _used(scope) if any(isinstance(node, ast.For) for node in inside) else set()  # no rule below changes it
    for node in reversed(inside):  # loops within loops first
        if isinstance(node, ast.If):
            _widen(node.test)
            _settle_extreme(node)
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
            _clip(node.slice, f"len({node.value.id})" if isinstance(node.value, ast.Name) else "")
        elif isinstance(node, ast.For):
            _settle_turns(node, used)
    if isinstance(scope, _FUNCTIONS):
        _level(scope)


def _inside(scope: ast.AST) -> Iterator[ast.AST]:
    """What stands in a scope and in no scope within it, outer nodes first."""
    for node in ast.iter_child_nodes(scope):
        yield node
        if not isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.Lambda)):
            yield from _inside(node)


class _Folded(ast.NodeTransformer):
    """Expressions whose value, or whose simpler form, is known from themselves."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        match self.generic_visit(node):
            case ast.BinOp(left=ast.Constant(value=int(a)), op=op, right=ast.Constant(value=int(b))):
                return ast.Constant(_COUNTED[type(op)](a, b)) if type(op) in _COUNTED else node
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        match self.generic_visit(node):
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(a))):
                return ast.Constant(-a)
            case ast.UnaryOp(op=ast.Not(), operand=ast.Compare(ops=[op]) as compared) if isinstance(op, _COMPLEMENTS):
                compared.ops = [OPPOSITE[type(op)]()]
                return compared
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        match self.generic_visit(node):
            case ast.Compare(left=left, ops=[op], comparators=[ast.Constant(value=int(least))]) if _is_length(left):
                # Not by `is`: one number may be two objects.
                if (least < 0 and isinstance(op, (*_UPWARD, ast.Eq, ast.NotEq))) or (
                    least == 0 and isinstance(op, ast.GtE | ast.Lt)
                ):
                    return ast.Constant(isinstance(op, ast.GtE | ast.Gt | ast.NotEq))
        return node


def _shortened(block: list[ast.stmt], after: ast.stmt | None) -> list[ast.stmt]:
    """Conditions with the same end in one, and nothing returned that is returned next anyway. `after`: what follows."""
    kept: list[ast.stmt] = []
    for statement, following in zip(block, [*block, after][1:], strict=True):
        if isinstance(statement, ast.If):
            statement.body = _shortened(statement.body, following)
            statement.orelse = _shortened(statement.orelse, following)
        match kept, statement:
            case [*_, ast.If(test=p) as last], ast.If(test=q) if _guarded(last) and _guarded(last) == _guarded(
                statement
            ):
                last.test = ast.BoolOp(ast.Or(), [*_alternatives(p), *_alternatives(q)])
            case _, ast.Return() if _returned(statement) and _returned(statement) == _returned(following):
                kept.append(ast.Pass())
            case _:
                kept.append(statement)
    return kept


def _guarded(statement: ast.stmt) -> str:
    """The constant that an `if` returns, where that is all it does."""
    match statement:
        case ast.If(body=[only], orelse=[]):
            return _returned(only)
    return ""


def _returned(statement: ast.stmt | None) -> str:
    match statement:
        case ast.Return(value=None):
            return ast.dump(ast.Constant(None))
        case ast.Return(value=ast.Constant() as value):
            return ast.dump(value)
    return ""


def _alternatives(test: ast.expr) -> list[ast.expr]:
    return test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or) else [test]


def _widen(test: ast.expr) -> None:
    """Of the bounds `x > c` (or `x < c`) in an `or` of plain conditions, all become the widest."""
    bounds = defaultdict[tuple[str, int], list[tuple[int, bool, ast.Compare]]](list)
    for value in _alternatives(test) if _is_plain(test) else []:
        match value:
            case ast.Compare(left=ast.Name(id=name), ops=[op], comparators=[ast.Constant(value=int(bound))]):
                if upward := _UPWARD.get(type(op)):
                    bounds[name, upward].append((upward * bound, isinstance(op, ast.Gt | ast.Lt), value))
    for found in bounds.values():
        *_, widest = min(found, key=itemgetter(0, 1))
        for *_, comparison in found:
            comparison.ops, comparison.comparators = widest.ops, widest.comparators


def _settle_extreme(node: ast.If) -> None:
    match node:
        case ast.If(
            test=ast.Compare(left=a, ops=[ast.GtE() | ast.LtE() as op], comparators=[b]) as test,
            body=[ast.Assign(targets=[ast.Name(id=name)], value=value)],
            orelse=[],
        ):
            if _is_plain(test) and {ast.unparse(a), ast.unparse(b)} == {name, ast.unparse(value)}:
                test.ops = [ast.Gt() if isinstance(op, ast.GtE) else ast.Lt()]


def _clip(bounds: ast.Slice, end: str) -> None:
    for field in ("lower", "upper"):
        if (bound := getattr(bounds, field)) is not None:
            base, more = _summed(bound)
            setattr(bounds, field, _sum(base, min(more, 0) if ast.unparse(base) == end else more))


def _summed(node: ast.expr) -> tuple[ast.expr, int]:
    """A whole number as something and a constant: `n + 1 - 1` is n and 0."""
    match node:
        case ast.BinOp(left=rest, op=ast.Add() | ast.Sub() as op, right=ast.Constant(value=int(constant))):
            base, more = _summed(rest)
            return base, more + (constant if isinstance(op, ast.Add) else -constant)
        case ast.BinOp(left=ast.Constant(value=int(constant)), op=ast.Add(), right=rest):
            base, more = _summed(rest)
            return base, more + constant
    return node, 0


def _sum(base: ast.expr, more: int) -> ast.expr:
    return ast.BinOp(base, ast.Add(), ast.Constant(more)) if more else base


def _settle_turns(loop: ast.For, used: set[str]) -> None:
    """Where turns at the range's start or end do nothing, the range with them, or without them: always the same one."""
    match loop:
        case ast.For(target=ast.Name(id=turn), body=[only]) if turn not in used and (ends := _ends(loop.iter)):
            start, (stop, more) = _settled_start(turn, ends[0], only), _summed(ends[1])
            more = _settled_stop(turn, start, stop, more, only)
            loop.iter = ast.Call(ast.Name("range", ast.Load()), [start, _sum(stop, more)], [])


def _ends(call: ast.expr) -> tuple[ast.expr, ast.expr] | None:
    """Start and stop of a range in steps of one."""
    match call:
        case ast.Call(func=ast.Name(id="range"), args=[stop], keywords=[]):
            return ast.Constant(0), stop
        case ast.Call(func=ast.Name(id="range"), args=[start, stop], keywords=[]):
            return start, stop
    return None


def _settled_start(turn: str, start: ast.expr, only: ast.stmt) -> ast.expr:
    match only, start:
        case ast.AugAssign(target=ast.Name(), op=ast.Mult(), value=ast.Name(id=name)), ast.Constant(value=1):
            return ast.Constant(2) if name == turn else start
        case ast.AugAssign(target=ast.Name(), op=ast.Add(), value=ast.Name(id=name)), ast.Constant(value=0):
            return ast.Constant(1) if name == turn else start
    return start


def _settled_stop(turn: str, start: ast.expr, stop: ast.expr, more: int, only: ast.stmt) -> int:
    """What to add to `stop`, which now is `more`."""
    match only, start:
        case ast.For(orelse=[]), _:
            return _stop_of_pairs(turn, stop, more, only)
        case ast.If(test=test, orelse=[]), ast.Constant(value=int(first)) if first >= 2:
            if _divided(test, turn) == ast.unparse(stop) and _is_still(stop, only):
                return {-1: 0, 2: 1}.get(more, more)
    return more


def _stop_of_pairs(turn: str, stop: ast.expr, more: int, inner: ast.For) -> int:
    """No j in range(i + ahead, stop + beyond) from i = stop + beyond - ahead on."""
    if ends := _ends(inner.iter):
        (first, ahead), (same, beyond) = map(_summed, ends)
        is_triangle = (ast.unparse(first), ast.unparse(same)) == (turn, ast.unparse(stop))
        if is_triangle and ahead > 0 and more >= beyond - ahead and _is_still(stop, inner):
            return beyond
    return more


def _divided(test: ast.expr, divisor: str) -> str:
    """The n of `n % divisor == 0`, alone or as the first condition of several."""
    match test:
        case ast.BoolOp(op=ast.And(), values=[first, *_]):
            return _divided(first, divisor)
        case ast.Compare(
            left=ast.BinOp(left=number, op=ast.Mod(), right=ast.Name(id=name)),
            ops=[ast.Eq()],
            comparators=[ast.Constant(value=0)],
        ) if name == divisor:
            return ast.unparse(number)
    return ""


def _level(scope: _Scope) -> None:
    """Gives flags and counters the same values as all that mean the same have."""
    uses = defaultdict[str, list[ast.Assign | ast.AugAssign | ast.Compare]](list)
    for node in ast.walk(scope):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=int()))
                | ast.AugAssign(target=ast.Name(id=name), op=ast.Add() | ast.Sub(), value=ast.Constant(value=int()))
                | ast.Compare(
                    left=ast.Name(id=name), ops=[ast.Eq() | ast.NotEq()], comparators=[ast.Constant(value=int())]
                )
            ):
                uses[name].append(node)
            case ast.ClassDef():  # its names are read as attributes
                return
    named = Counter(name for node in ast.walk(scope) for name in _named(node))
    for name, nodes in uses.items():
        if named[name] == len(nodes):
            _level_name(nodes)


def _level_name(uses: list[ast.Assign | ast.AugAssign | ast.Compare]) -> None:
    asked = {_number(use.comparators[0]) for use in uses if isinstance(use, ast.Compare)}
    given = [use for use in uses if isinstance(use, ast.Assign)]
    steps = [use for use in uses if isinstance(use, ast.AugAssign)]
    if not steps:
        for use in given:
            if _number(use.value) not in asked:
                use.value = ast.Constant(max(asked, default=0) + 1)
    elif asked <= {0} and {_number(use.value) for use in given} <= {0} and _go_one_way(steps):
        for step in steps:
            step.op, step.value = ast.Add(), ast.Constant(1)


def _go_one_way(steps: list[ast.AugAssign]) -> bool:
    signed = [_number(step.value) * (1 if isinstance(step.op, ast.Add) else -1) for step in steps]
    return min(signed) > 0 or max(signed) < 0


def _number(node: ast.expr) -> int:
    return int(ast.literal_eval(node))


def _is_plain(node: ast.expr) -> bool:
    """Names, constants, operators, indices, lengths of names: evaluated once more or once less, nothing changes."""
    return all(isinstance(part, _PLAIN) or _is_length(part) for part in ast.walk(node))


def _is_length(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="len"), args=[ast.Name()], keywords=[]):
            return True
    return False


def _is_still(node: ast.expr, statement: ast.stmt) -> bool:
    """Whether a plain expression has one value all through a statement."""
    parts = list(ast.walk(statement))
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    if not _is_plain(node) or any(not names.isdisjoint(_bound(part)) for part in parts):
        return False
    has_content = any(isinstance(part, ast.Call | ast.Subscript) for part in ast.walk(node))
    return not (has_content and any(_may_change_content(part) for part in parts))


def _may_change_content(node: ast.AST) -> bool:
    match node:
        case ast.Subscript(ctx=context) | ast.Attribute(ctx=context):
            return not isinstance(context, ast.Load)
        case ast.Call(func=ast.Name(id="len" | "range")):
            return False
    return isinstance(node, ast.Call | ast.AugAssign | ast.Yield | ast.YieldFrom | ast.Await)


def _used(node: ast.AST, turns: frozenset[str] = frozenset()) -> set[str]:
    """The names used other than in loops and comprehensions of which they are the variable. `turns`: those around."""
    found = {name for name in _named(node) if name not in turns}
    outside, within, new = _turning(node)
    return found.union(*(_used(part, turns) for part in outside), *(_used(part, turns | new) for part in within))


def _turning(node: ast.AST) -> tuple[Iterable[ast.AST], Iterable[ast.AST], set[str]]:
    """A node's parts outside and within its turns, and the variables of these."""
    match node:
        case ast.For(target=ast.Name(id=turn)):
            return [node.iter, *node.orelse], node.body, {turn}
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            first, *others = node.generators
            made = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
            targets = {name for each in node.generators for part in ast.walk(each.target) for name in _named(part)}
            return [first.iter], [*made, first.target, *first.ifs, *others], targets
    return ast.iter_child_nodes(node), [], set()


def _named(node: ast.AST) -> list[str]:
    return [node.id] if isinstance(node, ast.Name) else _bound(node)


def _bound(node: ast.AST) -> list[str]:
    """The names that this node binds: a variable, an argument, a function, an import, a caught error, …"""
    if isinstance(node, ast.Name):
        return [] if isinstance(node.ctx, ast.Load) else [node.id]
    names = (getattr(node, field, None) for field in ("arg", "name", "asname", "rest"))
    return [name for name in names if isinstance(name, str)]


def never_run(tree: ast.Module, entry: str | None) -> set[ast.AST]:
    """What stands in the module's functions that nothing within reach of `entry` names, not even in a string."""
    waiting = {item.name: item for item in tree.body if isinstance(item, _FUNCTIONS) and not item.decorator_list}
    if entry not in waiting or is_beyond_rules(tree):
        return set()
    functions = list(waiting.values())
    named = {entry, *_words(item for item in tree.body if item not in functions), *_words(f.args for f in functions)}
    while reached := waiting.keys() & named:
        named.update(*(_words(waiting.pop(name).body) for name in reached))
    return {node for function in waiting.values() for statement in function.body for node in ast.walk(statement)}


def _words(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in chain.from_iterable(map(ast.walk, nodes)):
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.Constant(value=str(word)):
                yield word
