"""The stages of a recipe, in the order in which one feeds the next."""

from __future__ import annotations

import difflib
from enum import StrEnum

from model.errors import RecipeError


class Stage(StrEnum):
    """What `--only` may name. A stage that is left out is taken as it lies on disk."""

    PROBLEMS = "problems"
    AUDIT = "audit"
    GENERATE = "generate"
    VERIFY = "verify"
    SFT = "sft"
    DISTILL = "distill"
    ON_POLICY = "on_policy"
    GRPO = "grpo"
    EVALUATE = "evaluate"


ALL_STAGES = tuple(Stage)
TRAINED = (Stage.SFT, Stage.DISTILL, Stage.ON_POLICY, Stage.GRPO)  # in the order in which one may start from another


def parse_stages(text: str) -> tuple[Stage, ...]:
    """The stages named in "generate,verify", in the recipe's order; all of them for an empty text."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in Stage.__members__.values():
            near = difflib.get_close_matches(name, [stage.value for stage in Stage], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"stages are {', '.join(Stage)}"
            raise RecipeError(f"--only names an unknown stage {name!r}; {hint}")
    return tuple(stage for stage in Stage if stage in names) or ALL_STAGES
