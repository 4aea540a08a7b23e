"""Which checks there are, by name: the one place that a new check is added to.

A name of the form `package.module:factory` is imported instead; the factory is called with the settings and
returns a check. Building a check is cheap: what is heavy (sympy, language models) waits for `warm_up`.
Nothing here scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import cast

from model.errors import CheckError
from model.rewards.check import Check
from model.rewards.code import CodeCheck
from model.rewards.code_block import CodeBlockCheck
from model.rewards.contamination import ContaminationCheck
from model.rewards.finish import FinishCheck
from model.rewards.format import FormatCheck
from model.rewards.language import LanguageCheck
from model.rewards.length import LengthCheck
from model.rewards.long_paragraph import LongParagraphCheck
from model.rewards.math import MathCheck
from model.rewards.mixed_language import MixedLanguageCheck
from model.rewards.repetition import RepetitionCheck
from model.rewards.settings import CheckSettings

Factory = Callable[[CheckSettings], Check]

CHECKS: dict[str, Factory] = {
    "finish": FinishCheck,
    "format": FormatCheck,
    "math": MathCheck,
    "language": LanguageCheck,
    "length": LengthCheck,
    "code": CodeCheck,
    "mixed_language": MixedLanguageCheck,
    "repetition": RepetitionCheck,
    "long_paragraph": LongParagraphCheck,
    "code_block": CodeBlockCheck,
    "contamination": ContaminationCheck,
}


def build_checks(names: Sequence[str], settings: CheckSettings | None = None) -> list[Check]:
    """The named checks, in the given order. CheckError for an unknown name or a setting out of bounds."""
    resolved = settings or CheckSettings()
    return [_factory(name)(resolved) for name in names]


def _factory(name: str) -> Factory:
    if ":" in name:
        return _imported(name)
    if name in CHECKS:
        return CHECKS[name]
    nearest = get_close_matches(name, CHECKS, n=1, cutoff=0.0)
    raise CheckError(f"there is no check {name!r}; did you mean {nearest[0]!r}? (known: {', '.join(CHECKS)})")


def _imported(name: str) -> Factory:
    module, _, attribute = name.partition(":")
    try:
        return cast(Factory, getattr(import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise CheckError(f"the check {name!r} cannot be imported: {error}") from error
