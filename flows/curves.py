"""A training stage's curves as one picture: a small panel for each metric that it has, drawn from its metrics files.

The first panel is validation, where there is one, with the model before training and the teacher as lines to compare
with. A step's own value is drawn faintly, the mean of some steps around it over that; what looks like a gap is a step
without the metric.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flows.stages import TRAINED, Stage
from model.training.lines import read_lines
from tasks.store import STUDENTS, Dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = Sequence[Mapping[str, Any]]

# Metric, what its panel is called, and whether its axis begins at 0.
PANELS = (
    ("loss", "loss", False),
    ("reward", "reward", False),
    ("kl", "KL to the reference (nats)", False),
    ("reverse_kl", "KL from the teacher, reverse (nats)", False),
    ("divergence", "divergence from the teacher (nats)", False),
    ("entropy", "entropy (nats a token)", True),
    ("completion_length", "completion length (tokens)", True),
    ("grad_norm", "gradient norm", True),
    ("tokens_per_second", "tokens per second", True),
    ("mfu", "MFU (%)", True),
)
_COLUMNS = 3
_BLUE, _ORANGE, _GREEN, _GREY = "#1f5fa8", "#d1661a", "#2b8a57", "#6b6b6b"
_WIDE = 20  # the largest value over the smallest from which powers of ten are drawn
_SMOOTH_FROM = 30  # points from which a mean is drawn over them
_DOTS_FROM = 3000  # points from which an SVG holds them as dots: as lines they would be megabytes
METRICS, VALIDATIONS = "metrics.jsonl", "validation.jsonl"


def stages_with_curves(dataset: Dataset) -> list[Stage]:
    """The training stages that have measured something, in the recipe's order; one that is under way as well."""
    folders = {stage: dataset.file(f"{STUDENTS}/{stage}") for stage in TRAINED}
    return [stage for stage in TRAINED if any((folders[stage] / name).exists() for name in (METRICS, VALIDATIONS))]


def stage_curves(dataset: Dataset, stage: Stage, teacher: float | None) -> Figure:
    """One stage's picture as its files are now. `teacher`: its pass@1 on the validation problems, if it is known."""
    folder = dataset.file(f"{STUDENTS}/{stage}")
    return drawn(stage.value, read_lines(folder / METRICS), read_lines(folder / VALIDATIONS), teacher)


def as_png(figure: Figure) -> bytes:
    """The picture as dots."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def as_svg(figure: Figure) -> bytes:
    """The picture as lines and text on nothing, so that a page's own background shows through."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    # Letters as text: a tenth of the bytes, and they can be found and copied.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "curves"}):
        figure.savefig(buffer, format="svg", dpi=150, transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def drawn(stage: str, steps: Lines, validations: Lines, teacher: float | None) -> Figure:
    """The picture, before it has a file format."""
    from matplotlib.figure import Figure

    shown = [panel for panel in PANELS if _points(steps, panel[0])[0]]
    validated = bool(_points(validations, "pass@1")[0])
    count = len(shown) + validated
    rows = max(1, -(-count // _COLUMNS))
    figure = Figure(figsize=(4.2 * min(max(count, 1), _COLUMNS), 2.7 * rows + 0.4), layout="constrained")
    figure.suptitle(_title(stage, steps), fontsize=11, x=0.01, ha="left", weight="bold")
    places = [figure.add_subplot(rows, min(max(count, 1), _COLUMNS), place + 1) for place in range(count)]
    if validated:
        _validation(places[0], validations, teacher)
    for axes, (name, label, from_zero) in zip(places[validated:], shown, strict=True):
        _panel(axes, steps, name, label, from_zero=from_zero)
    return figure


def _title(stage: str, steps: Lines) -> str:
    if not steps:
        return f"{stage}: no step is done yet"
    last = steps[-1]
    return f"{stage}: step {last['step']} of {last.get('total_steps', '?')}"


def _panel(axes: Any, steps: Lines, name: str, label: str, *, from_zero: bool) -> None:
    at, values = _points(steps, name)
    if name == "mfu":
        values = [100 * value for value in values]
    smooth = len(values) >= _SMOOTH_FROM
    style = {"alpha": 0.3 if smooth else 1.0, "marker": "" if smooth else ".", "rasterized": len(values) >= _DOTS_FROM}
    axes.plot(at, values, color=_BLUE, lw=1.0, ms=4, **style)
    if smooth:
        axes.plot(at, centred_means(values, max(2, len(values) // 40)), color=_BLUE, lw=1.6)
    _dress(axes, label)
    if from_zero:
        axes.set_ylim(0, 1.08 * max(*values, 1e-12))
    elif min(values) > 0 and max(values) > _WIDE * min(values):
        axes.set_yscale("log")


def _validation(axes: Any, validations: Lines, teacher: float | None) -> None:
    at, values = _points(validations, "pass@1")
    axes.plot(at, values, color=_BLUE, lw=1.6, marker="o", ms=4, label="pass@1")
    further = [name for name in dict.fromkeys(key for line in validations for key in line) if "@" in name]
    for name, colour in zip([name for name in further if name != "pass@1"], (_GREEN, _GREY), strict=False):
        axes.plot(*_points(validations, name), color=colour, lw=1.0, marker=".", ms=3, alpha=0.8, label=name)
    if at[0] == 0:
        axes.axhline(values[0], color=_GREY, lw=1.0, ls=":", label=f"base {values[0]:.2f}")
    if teacher is not None:
        axes.axhline(teacher, color=_ORANGE, lw=1.2, ls="--", label=f"teacher {teacher:.2f}")
    best = max(range(len(at)), key=lambda i: (values[i], -at[i]))
    axes.plot(
        [at[best]], [values[best]], marker="o", ms=9, mfc="none", mec=_BLUE, ls="", label=f"best, step {at[best]}"
    )
    _dress(axes, f"validation ({validations[-1].get('problems', '?')} problems)")
    shown = [float(line[name]) for line in validations for name in ("pass@1", *further) if name in line]
    axes.set_ylim(0, 1.08 * max(*shown, teacher or 0.0, 0.1))
    axes.legend(fontsize=7, frameon=False, ncols=2)


def _dress(axes: Any, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(label, fontsize=9, loc="left")
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _points(lines: Lines, name: str) -> tuple[list[int], list[float]]:
    """Steps that have a metric, and its values; one that is no number has no place on an axis."""
    found = [(int(line["step"]), float(line[name])) for line in lines if isinstance(line.get(name), int | float)]
    found = [(step, value) for step, value in found if math.isfinite(value)]
    return [step for step, _ in found], [value for _, value in found]


def centred_means(values: Sequence[float], half: int) -> list[float]:
    """Each value's mean with `half` neighbours on either side, fewer at the ends (as many on both sides)."""
    means = []
    for place in range(len(values)):
        reach = min(half, place, len(values) - 1 - place)
        around = values[place - reach : place + reach + 1]
        means.append(sum(around) / len(around))
    return means
