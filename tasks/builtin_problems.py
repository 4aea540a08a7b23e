"""Problem sets that need no file and no network: seeded families of reasoning-gym, reworded to one line, and HumanEval.

Each set lists every distinct question of its family in one fixed order, so that a larger `limit` only
adds to a smaller one. Golds of the families are integers as strings, HumanEval's are programs
(`human_eval.py`). The packages take a second to import and are loaded on first use only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.errors import ProblemsError
from tasks.human_eval import human_eval_rows

# The order of every set depends on this seed. Changing it changes what `limit = 200` means in old recipes.
_SEED = 1


@dataclass(frozen=True, slots=True)
class BuiltinSet:
    """One family of reasoning-gym with its settings, or HumanEval; `size` is the number of distinct questions."""

    generator: str
    terms: int
    digits: int
    size: int
    description: str
    domain: str = "math"


BUILTIN_SETS: dict[str, BuiltinSet] = {
    "sums-2x1": BuiltinSet("chain_sum", 2, 1, 10 * 10 * 2, "a + b and a - b, one digit each"),
    "sums-3x1": BuiltinSet("chain_sum", 3, 1, 10**3 * 2**2, "three one-digit terms, + and -"),
    "sums-2x2": BuiltinSet("chain_sum", 2, 2, 90 * 90 * 2, "a + b and a - b, two digits each"),
    "products-1x1": BuiltinSet("products", 2, 1, 10 * 10, "a * b, one digit each"),
    "humaneval": BuiltinSet("", 0, 0, 164, "Python functions with their own tests (HumanEval)", domain="code"),
    "humaneval-strict": BuiltinSet("", 0, 0, 164, "the same with further calls, for weak tests", domain="code"),
}


def builtin_rows(name: str) -> Iterator[dict[str, Any]]:
    """Rows {prompt, gold, metadata, tests for code} of a set, each question once, in the set's fixed order.

    Raises ProblemsError for an unknown name or when the set's package is not installed.
    """
    family = BUILTIN_SETS.get(name)
    if family is None:
        raise ProblemsError(f"no built-in problem set `{name}`; there are: {', '.join(BUILTIN_SETS)}")
    if family.domain == "code":
        yield from human_eval_rows(strict=name == "humaneval-strict")
        return
    seen: set[str] = set()
    for item in _draws(family):
        expression = item["metadata"]["expression"]
        if expression in seen:
            continue
        seen.add(expression)
        yield _row(name, family, expression, item)
        if len(seen) == family.size:
            return


def _row(name: str, family: BuiltinSet, expression: str, item: dict[str, Any]) -> dict[str, Any]:
    index = item["metadata"]["source_index"]
    metadata = {"family": name, "generator": f"reasoning_gym.{family.generator}", "index": index}
    return {"prompt": f"Calculate {expression}.", "gold": item["answer"], "metadata": metadata}


def _draws(family: BuiltinSet) -> Iterator[dict[str, Any]]:
    """Endless for our purposes: item i is drawn from seed + i, so nothing is made before it is asked for."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise ProblemsError("built-in problem sets need reasoning-gym: pip install reasoning-gym") from error
    draws = 1000 * family.size
    dataset = reasoning_gym.create_dataset(
        family.generator,
        size=draws,
        seed=_SEED,
        min_terms=family.terms,
        max_terms=family.terms,
        min_digits=family.digits,
        max_digits=family.digits,
    )
    return (dataset[index] for index in range(draws))
