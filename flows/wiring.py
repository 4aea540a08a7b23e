"""From the recipe's sections to the objects that tasks are handed: the one place that knows both sides."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run

from flows.recipe import Recipe
from flows.recipe_sections import (
    SHARD_CHECK_NAMES,
    EvaluateSection,
    GenerateSection,
    OnPolicySection,
    OptimiserSection,
    RolloutSection,
    VLLMTeacher,
)
from model.errors import ModelFolderError, RecipeError
from model.pretrained import load_tokenizer, resolve_model, revision_of
from model.records import Provenance
from model.rewards.registry import build_checks
from model.rewards.reward import ACCURACY_CHECKS
from model.rewards.rule import checks_of, limited_to
from model.rewards.settings import CheckSettings
from model.rewards.workers.pool import VerifierPool
from model.sampling.request import SamplingParams
from model.sampling.vllm_server import EngineOptions
from model.templates import ChatTokenizer, PromptTemplate
from tasks.capture import Questions
from tasks.duplicates import DuplicateCheck
from tasks.engine import Engine, EngineSpec, Standby
from tasks.judge import judge_check
from tasks.progress import announce
from tasks.reward_model import reward_model_check
from tasks.run import Run
from tasks.shard_checks import ShardCheck
from tasks.store import RECIPE, STUDENTS, Dataset
from tasks.verify import Verifier

_open_runs: dict[Path, Run] = {}


@contextmanager
def opened(recipe: Recipe) -> Iterator[Run]:
    """The recipe's dataset, bound to it and locked for this run; a sub-flow joins the run of its parent."""
    dataset = Dataset.create(recipe.dataset)
    if dataset.path in _open_runs:
        yield _open_runs[dataset.path]
        return
    with Standby() as standby, dataset.lock(run_id := flow_run.id or uuid.uuid4().hex):
        run = Run(dataset, run_id, standby if keeps_engine(recipe) else None)
        before = dataset.read_json(RECIPE)
        dataset.bind(recipe.fingerprint_fields(), recipe.resolved())
        _open_runs[dataset.path] = run
        try:
            yield run
        except RecipeError:
            # Refused only once its problems were read: the dataset stays with the recipe that it was made by.
            if before is not None:
                dataset.write_text(RECIPE, json.dumps(before, indent=1))
            raise
        finally:
            del _open_runs[dataset.path]


def keeps_engine(recipe: Recipe) -> bool:
    """Whether one engine serves all stages of a run."""
    return isinstance(recipe.teacher, VLLMTeacher) and recipe.teacher.keep_running


def template_of(recipe: Recipe) -> PromptTemplate:
    """The recipe's template, worked turns included."""
    return PromptTemplate(**recipe.template.to_kwargs())


def provenance_of(recipe: Recipe) -> Provenance:
    """What every sample of this recipe is drawn from."""
    teacher = recipe.teacher
    managed = isinstance(teacher, VLLMTeacher)
    return Provenance(
        teacher=teacher.model,
        teacher_revision=revision_of(teacher.model, teacher.revision) if managed else teacher.revision,
        template=template_of(recipe).fingerprint,
        temperature=recipe.generate.temperature,
        top_p=recipe.generate.top_p,
    )


def tokenizer_of(recipe: Recipe) -> ChatTokenizer:
    """The tokenizer whose chat template the teacher's prompts are rendered with."""
    teacher = recipe.teacher
    if isinstance(teacher, VLLMTeacher):
        return tokenizer_at(teacher.model, teacher.revision)
    return tokenizer_at(teacher.tokenizer, "main") if teacher.tokenizer else student_tokenizer(recipe)


def student_tokenizer(recipe: Recipe) -> ChatTokenizer:
    """The tokenizer of the student."""
    return tokenizer_at(recipe.student.model, recipe.student.revision)


def tokenizer_at(model: str, revision: str) -> ChatTokenizer:
    """The tokenizer of a model folder, hub name or `builtin:` model."""
    tokenizer: ChatTokenizer = load_tokenizer(resolve_model(model, revision, say=announce), revision)
    return tokenizer


def teacher_engine(recipe: Recipe, run: Run) -> Engine:
    """The recipe's teacher, not started yet."""
    return _engine(recipe, run, recipe.generate, "teacher", teacher_spec(recipe))


def evaluation_engine(recipe: Recipe, run: Run) -> Engine:
    """The engine that answers held-out problems; `serve` says for whom."""
    return _engine(recipe, run, recipe.evaluate, "evaluate", teacher_spec(recipe))


def capture_engine(recipe: Recipe, run: Run) -> Engine:
    """The engine of the model to distil from, not started yet; it tells as many log-probabilities as are stored."""
    return _engine(recipe, run, recipe.generate, "capture", distill_spec(recipe))


def lent_engine(recipe: Recipe, run: Run, stage: str) -> AbstractContextManager[Engine | None]:
    """The engine that the run keeps, not started yet, for a stage's rollouts; None where the trainer has its own."""
    section: RolloutSection = getattr(recipe, stage)
    if run.standby is None or section.rollouts != "vllm" or section.rollout_urls:
        return nullcontext()
    student = str(weights_of(recipe, run, section.init))  # type: ignore[attr-defined]  # every stage has one
    return _engine(recipe, run, recipe.evaluate, "rollouts", student_spec(recipe, student))


def _engine(
    recipe: Recipe, run: Run, sampling: GenerateSection | EvaluateSection, name: str, spec: EngineSpec
) -> Engine:
    return Engine(
        spec,
        SamplingParams(sampling.temperature, sampling.top_p, sampling.max_tokens, recipe.template.stop),
        concurrency=recipe.generate.concurrency,
        timeout_seconds=recipe.generate.timeout_seconds,
        log_path=run.dataset.file(f"logs/vllm-{name}.log"),
        standby=run.standby,
    )


def teacher_spec(recipe: Recipe) -> EngineSpec:
    """What serves the teacher: a server of ours, or the recipe's endpoints."""
    teacher = recipe.teacher
    if isinstance(teacher, VLLMTeacher):
        return EngineSpec(teacher.model, teacher.revision, options=_options(recipe, teacher))
    return EngineSpec(teacher.model, teacher.revision, teacher.urls, teacher.api_key_env)


def distill_spec(recipe: Recipe) -> EngineSpec:
    """What serves the model to distil from: the recipe's teacher, or a server of ours for `distill.teacher`."""
    other = recipe.distill.teacher
    return student_spec(recipe, other) if other else teacher_spec(recipe)


def capture_questions(recipe: Recipe, engine: Engine, examples: Path) -> Questions:
    """What the engine is to be asked of these examples. JobError where teacher and student split texts differently."""
    spec, distill, tokenizer = engine.spec, recipe.distill, student_tokenizer(recipe)
    theirs = tokenizer_at(spec.model, spec.revision) if spec.managed else tokenizer_of(recipe)
    revision = revision_of(spec.model, spec.revision) if spec.managed else spec.revision
    questions = Questions(engine, spec.model, revision, distill.top_k, tokenizer)
    questions.read(examples, theirs, recipe.template.prefill, distill.max_length)
    return questions


def student_spec(recipe: Recipe, model: str) -> EngineSpec:
    """What serves a student's weights: a server of ours, set up like the teacher's where that one is ours."""
    student = recipe.student
    like = recipe.teacher if isinstance(recipe.teacher, VLLMTeacher) else VLLMTeacher(model=student.model)
    own = student.revision if model == student.model else "main"
    extra = like.extra_args if like.model == student.model else ()
    options = replace(_options(recipe, like), revision=own, max_model_len=recipe.student_room(), extra_args=extra)
    return EngineSpec(model, own, options=options)


def _options(recipe: Recipe, teacher: VLLMTeacher) -> EngineOptions:
    """The same for every stage, so that one engine can serve them all."""
    stores = recipe.distill.enabled and recipe.distill.teacher_logits == "stored"
    return EngineOptions(
        python=teacher.python,
        revision=teacher.revision,
        max_model_len=teacher.max_model_len,
        max_num_seqs=teacher.max_num_seqs,
        dtype=teacher.dtype,
        enforce_eager=teacher.enforce_eager,
        gpus=teacher.gpus,
        max_logprobs=max(EngineOptions().max_logprobs, recipe.distill.top_k if stores else 0),
        logprobs_mode="processed_logprobs" if _lent_tempered(recipe) else "raw_logprobs",
        extra_args=teacher.extra_args,
    )


def _lent_tempered(recipe: Recipe) -> bool:
    """Whether the engine that a run keeps must tell log-probabilities at a temperature, for rollouts to be weighed by.

    vLLM then makes them for every token of every step, asked for or not, so no recipe has it that can do without.
    """
    sampling = [stage for stage in (recipe.on_policy, recipe.grpo) if stage.enabled and stage.rollouts == "vllm"]
    return keeps_engine(recipe) and any(stage.temperature != 1.0 for stage in sampling)


def check_settings(recipe: Recipe) -> CheckSettings:
    """The settings of all checks."""
    verify = recipe.verify
    return CheckSettings(**{item.name: getattr(verify, item.name) for item in fields(CheckSettings)})


def verifier_pool(recipe: Recipe, only: Collection[str] = ()) -> VerifierPool:
    """The recipe's checks of single samples (or those with these names) in their worker processes, not started yet."""
    settings = check_settings(recipe)
    return VerifierPool(
        list(single_checks(recipe, only)),
        settings,
        workers=recipe.verify.workers,
        timeout_seconds=recipe.verify.timeout_seconds,
    )


def single_checks(recipe: Recipe, only: Collection[str] = ()) -> dict[str, str]:
    """The recipe's checks of single samples (or those with these names), as they are built, and what each is called."""
    names = [name for name in recipe.verify.checks if name not in SHARD_CHECK_NAMES]
    built = dict(zip(names, (check.name for check in build_checks(names, check_settings(recipe))), strict=True))
    return {name: called for name, called in built.items() if called in only} or built


@contextmanager
def verifier(recipe: Recipe, run: Run, engine: Engine) -> Iterator[Verifier]:
    """All checks of the recipe, ready to be handed to verify tasks; their processes end with the block."""
    with verifier_pool(recipe) as pool:
        rules = {check.name: check.version for check in pool.checks}
        with shard_checks(recipe, run, engine, rules) as late:
            yield Verifier(pool, late)


@contextmanager
def shard_checks(recipe: Recipe, run: Run, engine: Engine, rules: Mapping[str, str]) -> Iterator[list[ShardCheck]]:
    """The recipe's checks that see a whole shard, in its order; what they open is closed with the block.

    `rules`: the versions of the checks of single samples, which the judge stands beside.
    """
    verify = recipe.verify

    def judge() -> ShardCheck:
        check = judge_check(
            verify.judge,
            engine,
            rules,
            concurrency=recipe.generate.concurrency,
            timeout_seconds=recipe.generate.timeout_seconds,
            log_path=run.dataset.file("logs/judge.log"),
        )
        return opened_checks.enter_context(check)

    def reward_model() -> ShardCheck:
        check = reward_model_check(
            verify.reward_model,
            concurrency=recipe.generate.concurrency,
            timeout_seconds=recipe.generate.timeout_seconds,
            log_path=run.dataset.file("logs/reward-model.log"),
        )
        return opened_checks.enter_context(check)

    makers: dict[str, Callable[[], ShardCheck]] = {
        "duplicate": lambda: DuplicateCheck(verify.duplicate, verify.workers),
        "judge": judge,
        "reward_model": reward_model,
    }
    with ExitStack() as opened_checks:
        yield [makers[name]() for name in verify.checks if name in makers]


_NOT_OF_A_JOB = {"enabled", "attempts", "init", "teacher", "pass_rate", "teacher_logits", "top_k"}


def training_job(
    recipe: Recipe, run: Run, stage: str, data: Path, stored: Path | None = None, validation: Path | None = None
) -> dict[str, Any]:
    """The job of one stage as `model.training` reads it: its section, with every name resolved to a path.

    `stored`: the list of the teacher's rows, for KL distillation without a live teacher. `validation`: the problems
    that the student answers meanwhile, where the stage validates.
    """
    section: OptimiserSection = getattr(recipe, stage)
    job = section.model_dump(mode="json", exclude=_NOT_OF_A_JOB)
    job |= {
        "stage": stage,
        "seed": recipe.seed,
        "prefill": recipe.template.prefill,
        "init": str(weights_of(recipe, run, section.init)),  # type: ignore[attr-defined]  # every stage has one
        "out": str(run.dataset.file(f"{STUDENTS}/{stage}")),
    }
    if validation is not None:
        job |= _validation(recipe, validation)
    if isinstance(section, OnPolicySection):
        job["teacher"] = str(_live_teacher(recipe, section.teacher))
    if isinstance(section, RolloutSection):
        own = recipe.teacher.python if isinstance(recipe.teacher, VLLMTeacher) else ""
        python = {"rollout_python": section.rollout_python or own}
        return job | _rewards(recipe) | python | {"problems": str(data)}
    if stored is not None:
        job["stored"] = str(stored)
    elif stage == "distill":
        job["teacher"] = str(_live_teacher(recipe, recipe.distill.teacher))
    return job | {"examples": str(data)}


def _live_teacher(recipe: Recipe, other: str) -> Path:
    """The folder of a teacher that runs beside the student: `other`, or the recipe's own."""
    if other:
        return _local_folder(other, "main")
    if isinstance(recipe.teacher, VLLMTeacher):
        return _local_folder(recipe.teacher.model, recipe.teacher.revision)
    remedy = 'set distill.teacher, or distill.teacher_logits = "stored"'
    raise RecipeError(f"KL to a live teacher needs its weights, an endpoint has none to give: {remedy}")


def weights_of(recipe: Recipe, run: Run, name: str) -> Path:
    """The folder of the student as it was (`student`) or as a stage has made it (`sft`, `distill`, …)."""
    if name == "student":
        return _local_folder(recipe.student.model, recipe.student.revision)
    folder = run.dataset.file(f"{STUDENTS}/{name}/model")
    if not folder.is_dir():
        raise RecipeError(f"the student of stage {name} is not there yet; run that stage first (`--only {name}`)")
    return folder


def _rewards(recipe: Recipe) -> dict[str, Any]:
    checks = [check for check in recipe.verify.checks if check in ("format", *ACCURACY_CHECKS)]
    return {
        "stop": list(recipe.template.stop),
        "format_weight": recipe.verify.format_weight,
        "checks": checks,
        "check_settings": asdict(check_settings(recipe)),
        "check_timeout_seconds": recipe.verify.timeout_seconds,
    }


def _validation(recipe: Recipe, problems: Path) -> dict[str, Any]:
    """Sampled as an evaluation is, and right by the same rule."""
    sampling, checks = recipe.evaluate, single_checks(recipe, checks_of(recipe.accept.require))
    settings = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "stop": list(recipe.template.stop),
        "checks": list(checks),
        "require": list(limited_to(recipe.accept.require, list(checks.values()))),
        "check_settings": asdict(check_settings(recipe)),
        "check_timeout_seconds": recipe.verify.timeout_seconds,
    }
    return {"validation": str(problems)} | {f"validation_{name}": value for name, value in settings.items()}


def _local_folder(model: str, revision: str) -> Path:
    """Trainers read folders; a hub name is fetched by the hub's own client, which caches it."""
    found = resolve_model(model, revision, say=announce)
    if isinstance(found, Path):
        return found
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(found, revision=revision))
    # The hub's client raises errors of its own, of httpx and of the operating system; all mean the same here.
    except Exception as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelFolderError(f"cannot fetch {model} at {revision} from the hub: {cause}") from error
