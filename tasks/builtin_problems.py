"""Problem sets that need no file and no network: seeded families of reasoning-gym, reworded to one line.

Each set lists every distinct question of its family in one fixed order, so that a larger `limit` only
adds to a smaller one. Golds are integers as strings. The package takes a second to import and is loaded
on first use only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.errors import ProblemsError

# The order of every set depends on this seed. Changing it changes what `limit = 200` means in old recipes.
_SEED = 1


@dataclass(frozen=True, slots=True)
class BuiltinSet:
    """One family of reasoning-gym with its settings; `size` is the number of distinct questions it has."""

    generator: str
    terms: int
    digits: int
    size: int
    description: str


BUILTIN_SETS: dict[str, BuiltinSet] = {
    "sums-2x1": BuiltinSet("chain_sum", 2, 1, 10 * 10 * 2, "a + b and a - b, one digit each"),
    "sums-3x1": BuiltinSet("chain_sum", 3, 1, 10**3 * 2**2, "three one-digit terms, + and -"),
    "sums-2x2": BuiltinSet("chain_sum", 2, 2, 90 * 90 * 2, "a + b and a - b, two digits each"),
    "products-1x1": BuiltinSet("products", 2, 1, 10 * 10, "a * b, one digit each"),
}


def builtin_rows(name: str) -> Iterator[dict[str, Any]]:
    """Rows {prompt, gold, metadata} of a set, each question once, in the set's fixed order.

    Raises ProblemsError for an unknown name or when reasoning-gym is not installed.
    """
    family = BUILTIN_SETS.get(name)
    if family is None:
        raise ProblemsError(f"no built-in problem set `{name}`; there are: {', '.join(BUILTIN_SETS)}")
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
