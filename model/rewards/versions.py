"""A check's version: its rules' number, and a digest of those settings that change what its verdicts mean.

The number is raised by hand when rules change; verdicts of another version are other files and are made anew.
"""

from __future__ import annotations

from model.records import content_hash


def version_string(number: int, settings: object, defaults: object) -> str:
    """`"1"` under the default settings, else `"1+"` and six hex digits of them."""
    return str(number) if settings == defaults else f"{number}+{content_hash(settings, digits=6)}"
