"""A page of HTML from its template, escaped whatever it shows, on which nothing runs and nothing is loaded.

What models write is hostile: markup in it is text here, characters that no HTML file can hold are shown by a sign for
them, and long texts are cut with a note of how much is left out. The template allows neither scripts nor addresses
(its content security policy), so that a mistake here would still do nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

LONGEST_TEXT = 4000  # characters of a text that are shown
UNKNOWN = "–"
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
_UNPAIRED = re.compile("[\ud800-\udfff]")
_FIGURE = re.compile(r"-?[\d.,]+( ?%| s)?|\d+ of \d+( \(.*\))?|")


def render(template: str, values: Mapping[str, Any]) -> bytes:
    """The template of that name in this folder, filled in, as UTF-8."""
    return _environment().get_template(template).render(values).encode()


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count,
        "percent": percent,
        "duration": duration,
        "minute": minute,
        "cut": cut,
        "cell": cell,
        "is_figures": is_figures,
    }
    return environment


def _printable(value: Any) -> Any:
    """What is printed for a value: nothing for None, and a visible sign for what HTML cannot hold."""
    if hasattr(value, "__html__"):  # made by the template itself, of values that went through here
        return value
    return "" if value is None else _UNPAIRED.sub("\ufffd", str(value).translate(_CONTROLS))


def count(value: float | None) -> str:
    """1104 → `1,104`; from ten million on as `23.9 M`."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value < 1e7 else f"{value / 1e6:,.1f} M"


def percent(share: float | None, digits: int = 1) -> str:
    """0.508 → `50.8 %`."""
    return UNKNOWN if share is None else f"{100 * share:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """`9.3 s`, `2 min 10 s`, `1 h 4 min`."""
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours:,} h {left} min" if hours else f"{minutes} min {rest} s"


def minute(moment: datetime) -> str:
    """A time in UTC, to the minute."""
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return f"{aware:%Y-%m-%d %H:%M} UTC"


def cut(text: str | None, most: int = LONGEST_TEXT) -> tuple[str, int]:
    """The text's first `most` characters, and how many are left out."""
    text = text or ""
    return text[:most], max(0, len(text) - most)


def cell(value: Any) -> str:
    """A value in a table whose columns are not known before."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str("" if value is None else value)


def is_figures(rows: Iterable[Mapping[str, Any]], column: str) -> bool:
    """Whether a column holds numbers, with or without a unit, and nothing else: such are set to the right."""
    values = [cell(row[column]) for row in rows]
    return any(values) and all(_FIGURE.fullmatch(value) for value in values)
