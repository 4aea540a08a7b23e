"""docs/recipe.md says of every setting what the code says."""

from __future__ import annotations

import re

import pytest

from docs.recipe_reference import FILE, page
from flows.recipe import Recipe


def test_the_page_is_that_of_the_code() -> None:
    assert FILE.read_text(encoding="utf-8") == page(), "run python -m docs.recipe_reference"


@pytest.mark.parametrize(
    "row",
    [
        '| `normalise` | `"token"`, `"sequence"`, `"constant"` | `"token"` |  | What the loss is divided by: the batch',
        "| `epochs` | integer | `2` | ≥ 1, ≤ 1000 | Passes over the accepted samples (R1's distillation: 2 to 3). |",
        "| `learning_rate` | number | `1e-06` | > 0.0, ≤ 1.0 | Highest learning rate (GRPO: 1e-6, R1: 3e-6). |",
        "| `k` | list of integer | `[1, 4]` | 1 items or more, each ≥ 1 | The k of pass@k; none above `replicas`. |",
        '| `type` | `"vllm"` | must be given |  | A server managed by the run. |',
    ],
)
def test_a_row_says_kind_default_bounds_and_meaning(row: str) -> None:
    assert f"\n{row}" in page()


def test_every_setting_has_a_row_or_is_a_section_of_its_own() -> None:
    schema = Recipe.model_json_schema()
    names = {name for section in (schema, *schema["$defs"].values()) for name in section["properties"]}
    rows = re.findall(r"^\| `(\w+)` \|", page(), re.MULTILINE)
    headings = re.findall(r"^## `\[+([\w.]+)", page(), re.MULTILINE)
    assert names == {*rows, *(heading.rpartition(".")[2] for heading in headings)}
