"""What a recipe would cost, before anything is spent: samples, shards, tokens, disk, GPU hours, money.

Every figure says where it comes from: the recipe, an assumption in its `[plan]`, a source, or what a
pilot of the same dataset measured. An unknown is `unknown`, never a guess. Not covered: verification
(CPU, a few hundred samples a second and core), downloads, idle time. Nothing heavy is imported; the
answer comes in under a second. Training operations: 6·N·D forward and backward, 2·N·D forward alone
(Kaplan et al., arXiv 2001.08361, section 2.1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from flows.recipe import Recipe
from flows.recipe_sections import VLLMTeacher
from model.sampling.stored_size import stored_bytes
from tasks.sources import count_rows

# What a pilot may have measured; each replaces the field of the same name in [plan].
MEASURABLE = (
    "tokens_per_second",
    "mean_prompt_tokens",
    "mean_completion_tokens",
    "accepted_share",
    "bytes_per_token",
)

_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_FORWARD_BACKWARD, _FORWARD = 6.0, 2.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a plan. `value` is None where it cannot be known yet; `origin` says where it comes from."""

    key: str
    label: str
    value: float | None
    unit: str
    origin: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe's figures, in the order in which one leads to the next."""

    name: str
    figures: tuple[Figure, ...]
    source: str = ""  # where the assumptions in [plan] come from, in the recipe's words

    def __getitem__(self, key: str) -> float | None:
        """The value of a figure by key. Raises KeyError."""
        for figure in self.figures:
            if figure.key == key:
                return figure.value
        raise KeyError(key)


class _Rates:
    """The recipe's assumptions, each overruled by what was measured, with the origin of either."""

    def __init__(self, recipe: Recipe, measured: Mapping[str, float]) -> None:
        self._recipe, self._measured = recipe, measured

    def get(self, name: str) -> tuple[float | None, str]:
        if self._measured.get(name):
            return float(self._measured[name]), "measured by a pilot"
        if name == "mean_completion_tokens" and not self._recipe.plan.mean_completion_tokens:
            return self._recipe.generate.max_tokens / 2, "assumed: half of generate.max_tokens"
        value = float(getattr(self._recipe.plan, name))
        return value or None, f"plan.{name}" if value else f"set plan.{name}"


def plan(recipe: Recipe, measured: Mapping[str, float] | None = None) -> Plan:
    """The plan of a recipe. `measured` may hold any of MEASURABLE (other keys and zeros are ignored).

    Raises ProblemsError when a problems file that the recipe names is not there.
    """
    rates = _Rates(recipe, measured or {})
    figures: list[Figure] = []
    for part in (_problems, _generation, _training, _evaluation, _money):
        figures.extend(part(recipe, rates, {figure.key: figure.value for figure in figures}))
    return Plan(recipe.name, tuple(figures), recipe.plan.source)


_Known = Mapping[str, float | None]


def _problems(recipe: Recipe, _rates: _Rates, _known: _Known) -> list[Figure]:
    total, held_out, origins = 0.0, 0.0, []
    for index, section in enumerate(recipe.problems):
        source = section.to_source()
        rows, origin = count_rows(source)
        if source.limit and (rows is None or source.limit < rows):
            rows, origin = source.limit, "limit"
        if rows is None:
            unknown = f"set problems.{index}.limit or expected_rows ({origin})"
            return [Figure(key, label, None, "", unknown) for key, label in _PROBLEM_LABELS.items()]
        total, held_out = total + rows, held_out + rows * source.held_out
        origins.append(f"{source.label} {_count(rows)} ({origin})")
    counted = ", ".join(origins)
    values = (total, float(round(held_out)), total - round(held_out))
    return [
        Figure(key, label, value, "", origin)
        for (key, label), value, origin in zip(
            _PROBLEM_LABELS.items(), values, (counted, "problems.*.held_out", "the others"), strict=True
        )
    ]


_PROBLEM_LABELS = {
    "problems": "problems",
    "held_out": "held out for evaluation",
    "train": "left for generation and training",
}


def _generation(recipe: Recipe, rates: _Rates, known: _Known) -> list[Figure]:
    generate = recipe.generate
    samples = _times(known["train"], generate.replicas)
    prompt_mean, prompt_origin = rates.get("mean_prompt_tokens")
    mean, mean_origin = rates.get("mean_completion_tokens")
    mean = min(mean or 0.0, float(generate.max_tokens))
    prompt, completion = _times(samples, prompt_mean), _times(samples, mean)
    speed, speed_origin = rates.get("tokens_per_second")
    disk, disk_origin = rates.get("bytes_per_token")
    shards = None if samples is None else float(math.ceil(samples / generate.shard_size))
    return [
        Figure("samples", "samples", samples, "", f"{generate.replicas} each, generate.replicas"),
        Figure("shards", "shards", shards, "", f"{generate.shard_size} samples each, generate.shard_size"),
        Figure("prompt_tokens", "prompt tokens", prompt, "", f"{_count(prompt_mean)} each, {prompt_origin}"),
        Figure("completion_tokens", "completion tokens", completion, "", f"{_count(mean)} each, {mean_origin}"),
        Figure("disk_bytes", "disk", _times(completion, disk), "B", f"{disk} bytes a token, {disk_origin}"),
        Figure(
            "generate_hours",
            "generation",
            _hours(completion, speed),
            _hour_unit(recipe),
            _speed(speed, speed_origin),
        ),
    ]


def _training(recipe: Recipe, rates: _Rates, known: _Known) -> list[Figure]:
    share, share_origin = rates.get("accepted_share")
    accepted = _times(known["samples"], share)
    cap = recipe.accept.max_per_problem
    if accepted is not None and cap:
        accepted = min(accepted, (known["train"] or 0.0) * cap)
    figures = [Figure("accepted", "accepted samples", accepted, "", f"{share}, {share_origin}")]
    tokens = _example_tokens(recipe, known, accepted)
    if recipe.sft.enabled:
        figures += _stage(recipe, "sft", tokens, _parameters(recipe, "student"), 0.0)
    if recipe.distill.enabled:
        figures += _stage(recipe, "distill", tokens, _parameters(recipe, "student"), _parameters(recipe, "teacher"))
    if recipe.distill.enabled and recipe.distill.teacher_logits == "stored":
        figures.append(_stored(recipe, rates, accepted))
    if recipe.grpo.enabled:
        figures += _grpo(recipe, rates)
    return figures


def _example_tokens(recipe: Recipe, known: _Known, accepted: float | None) -> float | None:
    """Tokens of one pass over the accepted samples, prompts included, none above sft.max_length."""
    samples, prompt, completion = known["samples"], known["prompt_tokens"], known["completion_tokens"]
    if accepted is None or not samples:
        return None
    mean = ((prompt or 0.0) + (completion or 0.0)) / samples
    return accepted * min(mean, recipe.sft.max_length)


def _stage(
    recipe: Recipe, name: str, tokens: float | None, student: float | None, teacher: float | None
) -> list[Figure]:
    """Tokens, steps and device hours of SFT, or of KL distillation (whose teacher adds a forward pass)."""
    section = recipe.sft if name == "sft" else recipe.distill
    seen, origin = _times(tokens, section.epochs), f"{section.epochs} passes, {name}.epochs"
    steps = None if seen is None else float(math.ceil(seen / section.tokens_per_batch))
    if steps is not None and section.max_steps and section.max_steps < steps:
        steps, origin = float(section.max_steps), f"{name}.max_steps"
        seen = steps * section.tokens_per_batch
    operations = None
    if tokens is not None and seen is not None and student is not None and teacher is not None:
        once = name == "distill" and recipe.distill.teacher_logits == "stored"
        operations = _FORWARD_BACKWARD * student * seen + _FORWARD * teacher * (tokens if once else seen)
    formula = "6·N·D" if name == "sft" else "6·N·D + 2·N(teacher)·D"
    return [
        Figure(f"{name}_tokens", f"{name}: tokens", seen, "", origin),
        Figure(
            f"{name}_steps",
            f"{name}: optimizer steps",
            steps,
            "",
            f"{_count(section.tokens_per_batch)} tokens each, {name}.tokens_per_batch",
        ),
        _compute(recipe, name, operations, formula),
    ]


def _stored(recipe: Recipe, rates: _Rates, accepted: float | None) -> Figure:
    """Disk for the teacher's likeliest tokens at every accepted completion token (end-of-turn tokens left out)."""
    mean, _ = rates.get("mean_completion_tokens")
    tokens = _times(accepted, min(mean or 0.0, float(recipe.generate.max_tokens)))
    k = recipe.distill.top_k
    size = None if tokens is None else stored_bytes(tokens, k)
    origin = f"{stored_bytes(1, k):g} bytes a token before compression, distill.top_k"
    return Figure("stored_bytes", "distill: stored log-probabilities", size, "B", origin)


def _grpo(recipe: Recipe, rates: _Rates) -> list[Figure]:
    """Rollouts at the teacher's rate (a smaller student is quicker), updates, the reference's pass."""
    section = recipe.grpo
    mean, _ = rates.get("mean_completion_tokens")
    tokens = section.steps * section.problems_per_step * section.group_size * min(mean or 0.0, section.max_tokens)
    speed, origin = rates.get("tokens_per_second")
    student = _parameters(recipe, "student")
    per_token = _FORWARD_BACKWARD * section.updates_per_step + _FORWARD
    return [
        Figure("grpo_tokens", "grpo: rollout tokens", tokens, "", "steps · problems_per_step · group_size"),
        Figure(
            "grpo_rollout_hours",
            "grpo: rollouts",
            _hours(tokens, speed),
            _hour_unit(recipe),
            f"at most: {_speed(speed, origin)}",
        ),
        _compute(recipe, "grpo", _times(student, per_token * tokens), "6·N·D + 2·N·D (reference)"),
    ]


def _compute(recipe: Recipe, stage: str, operations: float | None, formula: str) -> Figure:
    rates = recipe.plan
    hours = None if operations is None else operations / (rates.peak_tflops * 1e12 * rates.mfu) / 3600
    origin = f"{formula}, {rates.peak_tflops:g} TFLOP/s · {rates.mfu:g} MFU"
    if operations is None:
        origin = "set plan.student_parameters (and teacher_parameters)"
    return Figure(f"{stage}_hours", f"{stage}: training", hours, _hour_unit(recipe), origin)


def _evaluation(recipe: Recipe, rates: _Rates, known: _Known) -> list[Figure]:
    section = recipe.evaluate
    running = {
        "teacher": True,
        "student": True,
        **{s: getattr(recipe, s).enabled for s in ("sft", "distill", "grpo")},
    }
    models = [model for model in section.models if running[model]]
    problems = known["held_out"]
    if problems is not None and section.limit:
        problems = min(problems, float(section.limit))
    samples = _times(problems, section.replicas * len(models))
    mean, _ = rates.get("mean_completion_tokens")
    tokens = _times(samples, min(mean or 0.0, float(section.max_tokens)))
    speed, origin = rates.get("tokens_per_second")
    return [
        Figure(
            "evaluate_samples",
            "evaluation samples",
            samples,
            "",
            f"{section.replicas} for each of {len(models)} models",
        ),
        Figure(
            "evaluate_hours",
            "evaluation",
            _hours(tokens, speed),
            _hour_unit(recipe),
            f"at most: {_speed(speed, origin)}",
        ),
    ]


def _money(recipe: Recipe, _rates: _Rates, known: _Known) -> list[Figure]:
    hours = [value for key, value in known.items() if key.endswith("_hours")]
    total = None if any(value is None for value in hours) else sum(value or 0.0 for value in hours)
    price = recipe.prices
    return [
        Figure("total_hours", "all of it", total, _hour_unit(recipe), "the sum"),
        Figure(
            "money",
            "price",
            _times(total, price.gpu_hour),
            price.currency,
            f"{price.gpu_hour:g} an hour, prices.gpu_hour",
        ),
    ]


def _parameters(recipe: Recipe, role: str) -> float | None:
    stated: float = getattr(recipe.plan, f"{role}_parameters")
    model = recipe.student.model if role == "student" else recipe.teacher.model
    return stated or parameters_in_name(model)


def parameters_in_name(model: str) -> float | None:
    """Parameters that a model's name states: `Qwen2.5-Math-1.5B` -> 1.5e9, `smollm2-135m` -> 1.35e8."""
    found = re.findall(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([kmbt])(?![a-z0-9])", model.lower())
    return float(found[0][0]) * _UNITS[found[0][1]] if found else None


def _times(value: float | None, factor: float | None) -> float | None:
    return None if value is None or factor is None else value * factor


def _hours(tokens: float | None, per_second: float | None) -> float | None:
    return None if tokens is None or not per_second else tokens / per_second / 3600


def _hour_unit(recipe: Recipe) -> str:
    on_cpu = isinstance(recipe.teacher, VLLMTeacher) and recipe.teacher.gpus == 0
    return "machine h" if on_cpu else "GPU h"


def _speed(speed: float | None, origin: str) -> str:
    return f"{_count(speed)} tokens/s, {origin}" if speed else origin


# --- rendering -------------------------------------------------------------------------------------


def render(plan: Plan) -> str:
    """The plan as aligned lines: figure, value, where it comes from."""
    rows = [(figure.label, _value(figure), figure.origin) for figure in plan.figures]
    label_width = max(len(label) for label, _, _ in rows)
    value_width = max(len(value) for _, value, _ in rows)
    lines = [f"{label:<{label_width}}  {value:>{value_width}}  {origin}" for label, value, origin in rows]
    notes = ["", f"plan.*: {plan.source}"] * bool(plan.source)
    return "\n".join([f"plan of {plan.name}", "", *lines, *notes])


def _value(figure: Figure) -> str:
    if figure.value is None:
        return "unknown"
    if figure.unit == "B":
        return _bytes(figure.value)
    if not figure.unit:
        return _count(figure.value)
    return f"{_decimal(figure.value)} {figure.unit}"


def _count(value: float | None) -> str:
    """1234567 -> 1,234,567; from ten million on 12.3 M, 4.87 G (thousands of millions)."""
    if value is None:
        return "unknown"
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e7, " M")):
        if value >= size:
            return f"{value / (1e6 if size == 1e7 else size):.3g}{unit}"
    return f"{value:,.0f}"


def _bytes(value: float) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _decimal(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
