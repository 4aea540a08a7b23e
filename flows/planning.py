"""What a recipe would cost, before anything is spent: samples, shards, tokens, disk, GPU hours, money.

Every figure says where it comes from: the recipe, an assumption in its `[plan]`, a source, or what a
pilot of the same dataset measured. An unknown is `unknown`, never a guess. Not covered: verification
(CPU, a few hundred samples a second and core), downloads, idle time. Nothing heavy is imported, save
pyarrow for problems in small files, which are read as a run reads them; the answer comes in under a
second. Training operations: 6·N·D forward and backward, 2·N·D forward alone
(Kaplan et al., arXiv 2001.08361, section 2.1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flows.recipe import Recipe
from flows.recipe_sections import OptimiserSection, RolloutSection, VLLMTeacher
from flows.stages import TRAINED
from model.sampling.stored_size import stored_bytes
from tasks.sources import (
    SHARES,
    ProblemSource,
    count_rows,
    nothing_held_out,
    nothing_to_validate,
    perhaps_nothing,
    quick_to_read,
)

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
_TOKEN_BYTES = 4  # model/training/examples.py
_NUMBER_BYTES = {"bfloat16": 2, "float32": 4}
_TURN_CHARS = 12  # what a chat template writes around a turn, in the length of text that takes as many tokens


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
    warnings: tuple[str, ...] = ()  # what a run would warn of

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
    """The plan of a recipe. `measured` may hold any of MEASURABLE (other keys and zeros are ignored), and `train`,
    `validation` and `held_out` where the recipe's very problems are loaded already.

    Raises ProblemsError when a problems file that the recipe names is not there, or holds no problem.
    """
    rates = _Rates(recipe, measured or {})
    counts = _counted([section.to_source() for section in recipe.problems])
    figures = _problems(counts, measured or {})
    for part in (_generation, _training, _memory, _students, _evaluation, _totals):
        figures.extend(part(recipe, rates, {figure.key: figure.value for figure in figures}))
    return Plan(recipe.name, tuple(figures), recipe.plan.source, _warnings(counts, measured or {}))


_Known = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class _Counted:
    """A source's problems, those held out and those for validation: read as a run reads them (`exact`), else what is
    to be expected."""

    source: ProblemSource
    problems: int | None
    held_out: float
    validation: float
    origin: str
    exact: bool


def _counted(sources: Sequence[ProblemSource]) -> list[_Counted]:
    """Small files are read: rows that are no problems do not count, and which questions are held out is known."""
    read = [source for source in sources if quick_to_read(source)]
    counts = {}
    if read:
        from tasks.problems import ProblemReader  # imports pyarrow

        reader = ProblemReader(read)
        for _ in reader:
            pass
        counts = reader.counts
    found = []
    for source in sources:
        if source.label in counts:
            count = counts[source.label]
            of = f"{_count(count.rows)} rows of the file"
            found.append(_Counted(source, count.loaded, count.held_out, count.validation, of, exact=True))
            continue
        rows, origin = count_rows(source)
        if source.limit and (rows is None or source.limit < rows):
            rows, origin = source.limit, "limit"
        held_out, validation = ((rows or 0) * share for share in (source.held_out, source.validation))
        found.append(_Counted(source, rows, held_out, validation, origin, exact=False))
    return found


def _warnings(counts: Sequence[_Counted], loaded: Mapping[str, float]) -> tuple[str, ...]:
    some = [(one, one.source, one.problems) for one in counts if one.problems]
    found = [
        *(nothing_held_out(of, count) for one, of, count in some if one.exact and of.held_out and not one.held_out),
        *(
            nothing_to_validate(of, count)
            for one, of, count in some
            if one.exact and of.validation and not one.validation
        ),
        *(
            perhaps_nothing(of, key, count)
            for key in SHARES
            for one, of, count in some
            if not one.exact and not loaded.get(key)
        ),
    ]
    return tuple(warning for warning in found if warning)


def _problems(counts: Sequence[_Counted], loaded: Mapping[str, float]) -> list[Figure]:
    for index, one in enumerate(counts):
        if one.problems is None:
            unknown = f"set problems.{index}.limit or expected_rows ({one.origin})"
            return [Figure(key, label, None, "", unknown) for key, label in _PROBLEM_LABELS.items()]
    total = float(sum(one.problems or 0 for one in counts))
    held_out = float(round(sum(one.held_out for one in counts)))
    validation = float(round(sum(one.validation for one in counts)))
    origins = [", ".join(f"{one.source.label} {_count(one.problems)} ({one.origin})" for one in counts)]
    if all(one.exact for one in counts):
        origins += ["by each question's hash, problems.*.held_out", "the others"]
    elif loaded.get("train") or loaded.get("held_out"):
        held_out, validation = loaded["held_out"], loaded.get("validation", 0.0)
        total = loaded["train"] + validation + held_out
        origins += ["of the problems loaded, by each question's hash", "the others"]
    else:
        origins += ["about: problems.*.held_out, but each question's hash decides", "about: the others"]
    values = (total, held_out, total - held_out - validation)
    labels = _PROBLEM_LABELS.items()
    found = [Figure(*label, value, "", origin) for label, value, origin in zip(labels, values, origins, strict=True)]
    if any(one.source.validation for one in counts):
        apart = Figure("validation", "kept for validation", validation, "", "likewise, problems.*.validation")
        found.insert(2, apart)
    return found


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
        Figure("disk_bytes", "disk: samples", _times(completion, disk), "B", f"{disk:g} bytes a token, {disk_origin}"),
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
    figures = [Figure("accepted", "accepted samples", accepted, "", f"{share:.3g} of all, {share_origin}")]
    own = _student_share(recipe)
    read: list[float | None] = []  # tokens of one pass, of each stage that keeps its examples as tokens
    if recipe.sft.enabled:
        read.append(_example_tokens(known, accepted, own, recipe.sft.max_length))
        figures += _stage(recipe, "sft", read[0], 0.0)
    if recipe.distill.enabled:
        tokens = _example_tokens(known, accepted, own, recipe.distill.max_length)
        prompted = _example_tokens(known, accepted, 1.0, recipe.distill.max_length)
        teacher = _times(prompted, _parameters(recipe, "teacher"))
        read.append(_sum([tokens, prompted]))
        figures += _stage(recipe, "distill", tokens, _times(teacher, _FORWARD))
    if recipe.distill.enabled and recipe.distill.teacher_logits == "stored":
        figures.append(_stored(recipe, rates, accepted))
    if read:
        most = None if None in read else max(tokens or 0.0 for tokens in read)
        origin = "four bytes a token, until the stage is done"
        figures.append(Figure("token_bytes", "disk: examples as tokens", _times(most, _TOKEN_BYTES), "B", origin))
    if recipe.on_policy.enabled:
        figures += _on_policy(recipe, rates)
    if recipe.grpo.enabled:
        figures += _grpo(recipe, rates)
    return figures


def _student_share(recipe: Recipe) -> float:
    """The student's prompt over the teacher's, which has the worked turns too: by length, as no tokenizer is loaded.

    A question is taken to be as long as those of the worked turns.
    """
    template = recipe.template
    if not template.shots:
        return 1.0
    question = sum(len(shot.user) for shot in template.shots) / len(template.shots)
    own = question + 2 * _TURN_CHARS + (len(template.system) + _TURN_CHARS if template.system else 0)
    shots = sum(len(shot.user) + len(shot.assistant) + 2 * _TURN_CHARS for shot in template.shots)
    return own / (own + shots)


def _example_tokens(known: _Known, accepted: float | None, prompt_share: float, longest: int) -> float | None:
    """Tokens of one pass over the accepted samples, with so much of their prompts, none above `longest`."""
    samples, prompt, completion = known["samples"], known["prompt_tokens"], known["completion_tokens"]
    if accepted is None or not samples:
        return None
    mean = (prompt_share * (prompt or 0.0) + (completion or 0.0)) / samples
    return accepted * min(mean, longest)


def _stage(recipe: Recipe, name: str, tokens: float | None, forward: float | None) -> list[Figure]:
    """Tokens, steps and device hours of SFT, or of KL distillation, whose teacher adds `forward` operations a pass."""
    section = recipe.sft if name == "sft" else recipe.distill
    seen, origin = _times(tokens, section.epochs), f"{section.epochs} passes, {name}.epochs"
    if recipe.template.shots:
        origin += "; without the teacher's worked turns"
    steps = None if tokens is None else float(section.epochs * math.ceil(tokens / section.tokens_per_batch))
    if steps is not None and section.max_steps and section.max_steps < steps:
        steps, origin = float(section.max_steps), f"{name}.max_steps"
        seen = steps * section.tokens_per_batch
    student, operations = _parameters(recipe, "student"), None
    if tokens is not None and seen is not None and student is not None and forward is not None:
        once = name == "distill" and recipe.distill.teacher_logits == "stored"
        passes = seen / tokens if tokens else 0.0
        operations = _FORWARD_BACKWARD * student * seen + forward * (1.0 if once else passes)
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


def _memory(recipe: Recipe, _rates: _Rates, _known: _Known) -> list[Figure]:
    """What one process of the largest stage holds whatever runs at once; a run expects the rest before its first step.

    As `model/training/memory.py` counts it, a reference and a live teacher with it.
    """
    needs: dict[str, float | None] = {}
    student, teacher = _parameters(recipe, "student"), _parameters(recipe, "teacher")
    for name in TRAINED:
        section: OptimiserSection = getattr(recipe, name)
        weights, moments = _NUMBER_BYTES[section.dtype], 2 * _NUMBER_BYTES[section.optimizer_state]
        whole = section.dtype == "float32" or section.processes > 1  # no masters, and gradients once
        each = weights if section.lora_rank else 8 + moments + (0 if whole else 2 * weights)
        reference = weights if name == "grpo" and recipe.grpo.kl_weight and not section.lora_rank else 0
        lives = name == "on_policy" or (name == "distill" and recipe.distill.teacher_logits == "live")
        beside = _times(teacher, weights) if lives else 0.0
        if section.enabled:
            needs[name] = _times(_sum([_times(student, each + reference), beside]), 1 / section.processes)
    if not needs:
        return []
    most = max(needs, key=lambda name: needs[name] or 0.0)
    origin = f"{most}: weights, gradients, optimizer; activations, logits and rollouts come on top"
    if None in needs.values():
        origin = "set plan.student_parameters (and teacher_parameters)"
    return [Figure("training_memory", "memory: a training process", needs[most], "B", origin)]


def _students(recipe: Recipe, _rates: _Rates, known: _Known) -> list[Figure]:
    """Disk for every student: its weights, and the checkpoints that stay, each with its optimizer's state."""
    sections: dict[str, OptimiserSection] = {name: getattr(recipe, name) for name in TRAINED}
    steps = {**known, "on_policy_steps": float(recipe.on_policy.steps), "grpo_steps": float(recipe.grpo.steps)}
    trained = [(section, steps[f"{name}_steps"]) for name, section in sections.items() if section.enabled]
    if not trained:
        return []
    checkpoints, per_parameter = 0.0, 0.0
    for section, count in trained:
        weights = _NUMBER_BYTES[section.dtype]
        optimizer = 4 + 2 * _NUMBER_BYTES[section.optimizer_state]  # masters and two moments
        # The last step writes the model and no checkpoint. Without a count of steps the most that stay are counted.
        most = section.keep_checkpoints
        written = most if count is None else max(count - 1, 0) // section.checkpoint_every
        kept = min(most, written)
        checkpoints += kept
        # Best weights: those of now, and those that each checkpoint would have as the best if a run went on from it.
        best = (1 + kept) * weights if section.validate_every else 0
        per_parameter += weights + kept * (weights + optimizer) + best
    origin = f"weights of {len(trained)}, {checkpoints:.0f} checkpoint{'s' * (checkpoints != 1)} with optimizer state"
    parameters = _parameters(recipe, "student")
    if parameters is None:
        origin = "set plan.student_parameters"
    return [Figure("student_bytes", "disk: students", _times(parameters, per_parameter), "B", origin)]


def _stored(recipe: Recipe, rates: _Rates, accepted: float | None) -> Figure:
    """Disk for the teacher's likeliest tokens at every accepted completion token (end-of-turn tokens left out)."""
    mean, _ = rates.get("mean_completion_tokens")
    tokens = _times(accepted, min(mean or 0.0, float(recipe.generate.max_tokens)))
    k = recipe.distill.top_k
    size = None if tokens is None else stored_bytes(tokens, k)
    origin = f"{stored_bytes(1, k):g} bytes a token before compression, distill.top_k"
    return Figure("stored_bytes", "distill: stored log-probabilities", size, "B", origin)


def _grpo(recipe: Recipe, rates: _Rates) -> list[Figure]:
    """Rollouts, updates, the reference's pass."""
    tokens, figures = _rollouts("grpo", recipe, recipe.grpo, rates)
    per_token = _FORWARD_BACKWARD * recipe.grpo.updates_per_step + _FORWARD
    operations = _times(_parameters(recipe, "student"), per_token * tokens)
    return [*figures, _compute(recipe, "grpo", operations, "6·N·D + 2·N·D (reference)")]


def _on_policy(recipe: Recipe, rates: _Rates) -> list[Figure]:
    """Rollouts, updates, and the teacher's pass over them."""
    section = recipe.on_policy
    tokens, figures = _rollouts("on_policy", recipe, section, rates)
    student, teacher = _parameters(recipe, "student"), _parameters(recipe, "teacher")
    own, theirs = _times(student, _FORWARD_BACKWARD * tokens), _times(teacher, _FORWARD * tokens)
    operations = None if own is None or theirs is None else own + theirs
    return [*figures, _compute(recipe, "on_policy", operations, "6·N·D + 2·N(teacher)·D, prompts left out")]


def _rollouts(name: str, recipe: Recipe, section: RolloutSection, rates: _Rates) -> tuple[float, list[Figure]]:
    """Tokens that a student samples, and their time at the teacher's rate (a smaller student is quicker)."""
    mean, _ = rates.get("mean_completion_tokens")
    group: int = section.group_size  # type: ignore[attr-defined]  # every such section has one
    tokens = section.steps * section.problems_per_step * group * min(mean or 0.0, section.max_tokens)
    speed, origin = rates.get("tokens_per_second")
    return tokens, [
        Figure(f"{name}_tokens", f"{name}: rollout tokens", tokens, "", "steps · problems_per_step · group_size"),
        Figure(
            f"{name}_rollout_hours",
            f"{name}: rollouts",
            _hours(tokens, speed),
            _hour_unit(recipe),
            f"at most: {_speed(speed, origin)}",
        ),
    ]


def _compute(recipe: Recipe, stage: str, operations: float | None, formula: str) -> Figure:
    rates = recipe.plan
    hours = None if operations is None else operations / (rates.peak_tflops * 1e12 * rates.mfu) / 3600
    origin = f"{formula}, {rates.peak_tflops:g} TFLOP/s · {rates.mfu:g} MFU"
    if operations is None:
        origin = "set plan.student_parameters (and teacher_parameters)"
    return Figure(f"{stage}_hours", f"{stage}: training", hours, _hour_unit(recipe), origin)


def _validation(recipe: Recipe, rates: _Rates, known: _Known) -> list[Figure]:
    """Answers that students write while they are trained, at the teacher's rate (by themselves they are slower)."""
    mean, _ = rates.get("mean_completion_tokens")
    speed, rate_origin = rates.get("tokens_per_second")
    steps = {**known, "on_policy_steps": float(recipe.on_policy.steps), "grpo_steps": float(recipe.grpo.steps)}
    found = []
    for name in TRAINED:
        section: OptimiserSection = getattr(recipe, name)
        if not (section.enabled and section.validate_every):
            continue
        count = steps[f"{name}_steps"]
        times = None if count is None else 1.0 + math.ceil(count / section.validate_every)
        problems = known.get("validation")
        if problems is not None and section.validation_limit:
            problems = min(problems, float(section.validation_limit))
        answers = _times(_times(problems, section.validation_samples), times)
        origin = f"{section.validation_samples} for each problem, every {section.validate_every} steps"
        found.append(Figure(f"{name}_validation", f"{name}: validation answers", answers, "", origin))
        hours = _hours(_times(answers, min(mean or 0.0, float(recipe.evaluate.max_tokens))), speed)
        told = f"at least: {_speed(speed, rate_origin)}"
        found.append(Figure(f"{name}_validation_hours", f"{name}: validation", hours, _hour_unit(recipe), told))
    return found


def _evaluation(recipe: Recipe, rates: _Rates, known: _Known) -> list[Figure]:
    section = recipe.evaluate
    running = {"teacher": True, "student": True} | {s.value: getattr(recipe, s).enabled for s in TRAINED}
    models = [model for model in section.models if running[model]]
    problems = known["held_out"]
    if problems is not None and section.limit:
        problems = min(problems, float(section.limit))
    samples = _times(problems, section.replicas * len(models))
    mean, _ = rates.get("mean_completion_tokens")
    tokens = _times(samples, min(mean or 0.0, float(section.max_tokens)))
    speed, origin = rates.get("tokens_per_second")
    return [
        *_validation(recipe, rates, known),
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


def _totals(recipe: Recipe, _rates: _Rates, known: _Known) -> list[Figure]:
    total = _sum([value for key, value in known.items() if key.endswith("_hours")])
    disk = _sum([value for key, value in known.items() if key.endswith("_bytes")])
    price = recipe.prices
    return [
        Figure("all_bytes", "disk: all of it", disk, "B", "the sum"),
        Figure("total_hours", "time: all of it", total, _hour_unit(recipe), "the sum"),
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


def _sum(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(value or 0.0 for value in values)


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
    notes = ["", *(f"warning: {warning}" for warning in plan.warnings)] * bool(plan.warnings)
    notes += ["", f"plan.*: {plan.source}"] * bool(plan.source)
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
