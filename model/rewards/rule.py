"""The required checks of an accept rule, in Python: what the view `tested` says in SQL, for answers that are no rows.

A requirement is a check's name, or alternatives of which one has to pass: `math|code`. A sample is lost at the first
requirement that it does not meet; the verdict that counts there is that of the first alternative that failed, else of
the first in error, else of the first that could not be scored. A test holds this file and `tasks/views.py` together.

Reading a recipe loads this file, so it loads nothing heavy itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.rewards.check import Judgement

_GRAVITY = ("fail", "error", "unscorable")  # values of `model.records.Status`


def alternatives(requirement: str) -> list[str]:
    """The checks of which one has to pass."""
    return [name.strip() for name in requirement.split("|")]


def checks_of(require: Sequence[str]) -> list[str]:
    """Every check that a rule names, each once, in order."""
    return list(dict.fromkeys(name for requirement in require for name in alternatives(requirement)))


def limited_to(require: Sequence[str], checks: Collection[str]) -> tuple[str, ...]:
    """The part of a rule that these checks can decide; a requirement none of whose checks is there is dropped."""
    kept = ([name for name in alternatives(requirement) if name in checks] for requirement in require)
    return tuple("|".join(names) for names in kept if names)


def first_loss(require: Sequence[str], judgements: Mapping[str, Judgement]) -> tuple[str, Judgement] | None:
    """The requirement that is not met first and the judgement that counts there, or None: all are met.

    KeyError for a check that has no judgement.
    """
    return next(_losses(require, judgements), None)


def is_right(require: Sequence[str], judgements: Mapping[str, Judgement]) -> bool | None:
    """Whether every requirement is met; None where that could not be judged (an error, nothing to compare with)."""
    lost = first_loss(require, judgements)
    if lost is None:
        return True
    return False if lost[1].verdict == "fail" else None


def _losses(require: Sequence[str], judgements: Mapping[str, Judgement]) -> Iterator[tuple[str, Judgement]]:
    for requirement in require:
        found = [judgements[name] for name in alternatives(requirement)]
        if not any(judgement.verdict == "pass" for judgement in found):
            yield requirement, min(found, key=lambda judgement: _GRAVITY.index(judgement.verdict))
