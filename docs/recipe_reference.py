"""Writes docs/recipe.md: every setting of a recipe, from the models that read it.

.venv/bin/python -m docs.recipe_reference
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.recipe import Recipe

FILE = Path(__file__).parent / "recipe.md"
SHOWN = 60  # characters of a default
HEAD = """# Every setting of a recipe

Written by `python -m docs.recipe_reference` from `flows/recipe_sections.py` and `model/rewards/settings.py`; a test
keeps it in step. A recipe says only what differs from the defaults. On the command line a setting is
`--set section.key=value`, an item of a list is called by its number: `--set problems.0.limit=100`. What several
settings must agree in, `flows/recipe.py` checks; the bounds of the checks' settings (`verify.*.*`),
`model/rewards/settings.py`. [training.md](training.md) and [checks.md](checks.md) say more than one sentence.

R1 = arXiv 2501.12948, GRPO = 2402.03300, Dr. GRPO = 2503.20783, DAPO = 2503.14476, GSPO = 2507.18071,
CISPO = 2506.13585.
"""
_TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}
_BOUNDS = {
    "minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}",
    "minLength": "{} characters or more", "maxLength": "{} characters or fewer", "pattern": "`{}`",
    "minItems": "{} items or more", "maxItems": "{} items or fewer",
}  # fmt: skip

Schema = dict[str, Any]


def page() -> str:
    """The page as it is to be."""
    schema = Recipe.model_json_schema()
    return "\n".join([HEAD, *_section(schema, schema["$defs"], "", set())])


def _section(schema: Schema, models: Schema, path: str, told: set[str], chosen_by: str = "") -> Iterator[str]:
    """The table of one section's own settings, then the sections within it that are not `told` yet.

    `chosen_by`: the setting that says which of several sections this is.
    """
    required = {*schema.get("required", []), chosen_by}
    inner = {name: found for name, field in schema["properties"].items() if (found := _models_of(field, models))}
    own = {name: field for name, field in schema["properties"].items() if name not in inner}
    if own:
        yield "| setting | kind | default | bounds | meaning |\n|---|---|---|---|---|"
        yield from (_row(name, field, name in required) for name, field in own.items())
        yield ""
    for name, found in inner.items():
        repeated = schema["properties"][name].get("type") == "array"
        for model in found:
            heading = f"`[[{path}{name}]]`" if repeated else f"`[{path}{name}]`"
            if len(found) > 1:
                heading += f' with `type = "{model["properties"]["type"]["const"]}"`'
            if heading not in told:
                told.add(heading)
                yield f"## {heading}\n\n{_sentence(model)}\n"
                yield from _section(model, models, f"{path}{name}.", told, "type" if len(found) > 1 else "")


def _models_of(field: Schema, models: Schema) -> list[Schema]:
    """The sections that a field holds: one, a choice of several, or those of a list's items."""
    options = field.get("oneOf") or [field]
    if "items" in field:
        return _models_of(field["items"], models)
    return [models[option["$ref"].rpartition("/")[2]] for option in options if "$ref" in option]


def _row(name: str, field: Schema, required: bool) -> str:
    default = "must be given" if required else _default(field.get("default"))
    cells = [f"`{name}`", _kind(field), default, _bounds(field), _sentence(field)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _kind(field: Schema) -> str:
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in field["enum"])
    if "anyOf" in field:
        return " or ".join(_kind(option) for option in field["anyOf"] if option.get("type") != "null")
    if field["type"] == "array":
        return f"list of {_kind(field['items'])}"
    return _TYPES[field["type"]]


def _default(value: Any) -> str:
    """As TOML has it, which for these is as JSON has it."""
    if value is None:
        return "none"
    text = json.dumps(value, ensure_ascii=False)
    return f"`{text}`" if len(text) <= SHOWN else f"`{text[:SHOWN]}…`"


def _bounds(field: Schema) -> str:
    found = [text.format(field[name]) for name, text in _BOUNDS.items() if name in field]
    each = _bounds(field["items"]) if "items" in field else ""
    return ", ".join([*found, *([f"each {each}"] if each else [])])


def _sentence(schema: Schema) -> str:
    return " ".join(schema["description"].split())


if __name__ == "__main__":
    FILE.write_text(page(), encoding="utf-8")
