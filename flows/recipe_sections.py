"""The sections of a recipe, each a pydantic model: a field has one sentence of meaning, a bound, a source.

The sentences travel into the JSON schema and from there into Prefect's form. Nothing here reads a file or
decides anything; what spans two sections is checked in `flows/recipe.py`. Loads neither torch nor Prefect
nor vLLM. Sources: R1 = arXiv 2501.12948; GRPO = arXiv 2402.03300; Dr. GRPO = arXiv 2503.20783; DAPO =
arXiv 2503.14476; GSPO = arXiv 2507.18071; CISPO = arXiv 2506.13585.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from model.rewards.settings import (
    CodeBlockSettings,
    CodeSettings,
    ContaminationSettings,
    DuplicateSettings,
    FormatSettings,
    JudgeSettings,
    LanguageSettings,
    LongParagraphSettings,
    MixedLanguageSettings,
    RepetitionSettings,
    RewardModelSettings,
)
from tasks.builtin_problems import BUILTIN_SETS
from tasks.sources import ProblemSource

# The checks that come with Stillhouse (model/rewards/registry.py; a test holds the two lists together).
CHECK_NAMES = (
    "finish",
    "format",
    "math",
    "language",
    "length",
    "code",
    "mixed_language",
    "repetition",
    "long_paragraph",
    "code_block",
    "contamination",
)
# Those that a recipe gets without asking: cheap, and of use to every maths recipe.
DEFAULT_CHECKS = ("finish", "format", "math", "language", "length")
# Those that need a model or many samples at once (tasks/shard_checks.py).
SHARD_CHECK_NAMES = ("duplicate", "judge", "reward_model")

# R1, Table 1: the template that R1-Zero was trained with.
R1_SYSTEM = (
    "A conversation between User and Assistant. The User asks a question, and the Assistant solves it. "
    "The Assistant first thinks about the reasoning process in the mind and then provides the User with the "
    "answer. The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> "
    "tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>."
)

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Temperature = Annotated[float, Field(ge=0.0, le=2.0)]
TopP = Annotated[float, Field(gt=0.0, le=1.0)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]
Seconds = Annotated[float, Field(gt=0.0, le=7 * 24 * 3600.0)]
Attempts = Annotated[int, Field(ge=1, le=20)]
LearningRate = Annotated[float, Field(gt=0.0, le=1.0)]
Normalise = Literal["token", "sequence", "constant"]
Dtype = Literal["float32", "bfloat16"]


class Section(BaseModel):
    """What all sections share: unknown keys fail, values are final, docstrings become descriptions."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,
    )


# --- models ----------------------------------------------------------------------------------------


class VLLMTeacher(Section):
    """A vLLM server that the run starts, watches and stops."""

    type: Literal["vllm"] = "vllm"
    """A server managed by the run."""
    model: str = Field(min_length=1)
    """Hub name, folder, or `builtin:` name of the model that answers the problems."""
    revision: str = Field(default="main", min_length=1)
    """Branch, tag or commit on the hub; part of every sample's id: name a commit for a dataset that lasts."""
    python: str = ""
    """Interpreter of the environment that has vLLM; empty: this one."""
    max_model_len: Tokens = 4096
    """Longest prompt plus completion, in tokens, that the engine makes room for."""
    max_num_seqs: int = Field(default=256, ge=1, le=16_384)
    """Sequences that the engine decodes at once."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "bfloat16"
    """Number format of weights and activations in the engine."""
    enforce_eager: bool = False
    """Skips compilation and CUDA graphs: starts sooner, decodes slower on a GPU."""
    gpus: int = Field(default=1, ge=0, le=64)
    """GPUs per engine (tensor parallel); 0 runs the engine on the CPU."""
    extra_args: tuple[str, ...] = ()
    """Further words for vLLM's command line, as they are."""
    keep_running: bool = False
    """Keeps our engine, idle, between the stages of a run, which swap their weights into it (rollouts too): saves its
    starts, costs its memory while a student trains. It lends itself for rollouts on the CPU only."""


class OpenAITeacher(Section):
    """Endpoints that already run and speak OpenAI's completions protocol."""

    type: Literal["openai"] = "openai"
    """Servers that somebody else runs."""
    urls: tuple[str, ...] = Field(min_length=1)
    """Base URLs up to and including `/v1`; requests go round over those that answer."""
    model: str = Field(min_length=1)
    """The model's name as the endpoints know it."""
    revision: str = ""
    """What tells this model from another of the same name; part of every sample's id."""
    tokenizer: str = ""
    """Model whose chat template renders the prompts (hub name or folder); empty: the student's."""
    api_key_env: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the key (the key itself never stands in a recipe)."""

    @field_validator("urls")
    @classmethod
    def _http(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not re.match(r"https?://[^/\s]+", url):
                raise ValueError(f"{url!r} is not an http(s) URL such as http://127.0.0.1:8000/v1")
        return urls


Teacher = Annotated[VLLMTeacher | OpenAITeacher, Field(discriminator="type")]


class StudentSection(Section):
    """The model that is distilled into."""

    max_model_len: int = Field(default=0, ge=0, le=1_000_000)
    """Longest prompt plus completion, in tokens, when the student is evaluated; 0: the teacher's, else 4096."""
    model: str = Field(min_length=1)
    """Hub name, folder, or `builtin:` name of the model that training starts from."""
    revision: str = Field(default="main", min_length=1)
    """Branch, tag or commit on the hub."""


# --- problems --------------------------------------------------------------------------------------


class ColumnsSection(Section):
    """Which column holds what; a dotted name reaches into nested values (`messages.0.content`)."""

    prompt: str = Field(default="prompt", min_length=1)
    """Column with the question."""
    gold: str = Field(default="gold", min_length=1)
    """Column with the right answer; may be missing unless it is named here."""
    tests: str = Field(default="tests", min_length=1)
    """Column with unit tests, for code; may be missing unless it is named here."""
    metadata: tuple[str, ...] = ()
    """Further columns that are kept as JSON with the problem."""


class ProblemsSection(Section):
    """What every source of problems has."""

    limit: int = Field(default=0, ge=0)
    """Problems taken from the source, in its order; 0 takes all."""
    held_out: Share = 0.0
    """Share of distinct prompts kept for evaluation only, chosen by the prompt's hash; 1 for a benchmark."""
    validation: Share = 0.0
    """Share kept for validation during training (`validate_every`), chosen likewise among the others: never learned,
    and never part of an evaluation."""
    domain: str = Field(default="math", pattern=r"^[a-z][a-z0-9_]*$")
    """What kind of problem it is: `math`, `code`, `general`, …"""
    source: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$", max_length=100)
    """Label in the `source` column; empty: the set's name or the file's stem."""
    max_prompt_chars: int = Field(default=32_000, ge=1, le=10_000_000)
    """Longer prompts are rejected."""

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.held_out + self.validation > 1:
            raise ValueError(f"held_out = {self.held_out:g} and validation = {self.validation:g} are more than all: 1")
        return self

    def to_source(self) -> ProblemSource:
        """The same settings for `tasks/problems.py`."""
        return ProblemSource.of(self.model_dump())


class MappedSection(ProblemsSection):
    """A source whose columns are not ours."""

    columns: ColumnsSection = ColumnsSection()
    """Which column holds what."""
    gold_pattern: str = ""
    """Regular expression with one group; its last match in the gold column is the answer (`####\\s*(.+)`)."""

    @field_validator("gold_pattern")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        if pattern and groups != 1:
            raise ValueError(f"needs exactly one group (…) around the answer, this has {groups}")
        return pattern


class JsonlProblems(MappedSection):
    """One JSON object per line."""

    type: Literal["jsonl"] = "jsonl"
    """A JSON Lines file, or the same compressed as .gz."""
    path: str = Field(min_length=1)
    """The file, relative to the working directory."""


class CsvProblems(MappedSection):
    """A table with a line of column names."""

    type: Literal["csv"] = "csv"
    """A CSV file, or the same compressed as .gz."""
    path: str = Field(min_length=1)
    """The file, relative to the working directory."""


class ParquetProblems(MappedSection):
    """A Parquet file."""

    type: Literal["parquet"] = "parquet"
    """A Parquet file."""
    path: str = Field(min_length=1)
    """The file, relative to the working directory."""


class HFProblems(MappedSection):
    """A dataset of the Hugging Face hub, or a folder in its layout."""

    type: Literal["hf"] = "hf"
    """A dataset that the `datasets` package reads."""
    name: str = Field(min_length=1)
    """Hub name (`org/set`) or a local folder."""
    config: str = ""
    """Configuration (subset) of the dataset; empty: its default."""
    split: str = Field(default="train", min_length=1)
    """Split of the dataset."""
    revision: str = Field(default="main", min_length=1)
    """Branch, tag or commit on the hub."""
    expected_rows: int = Field(default=0, ge=0)
    """Rows that the dataset's card states, for `stillhouse plan` only; 0: not stated."""


class BuiltinProblems(ProblemsSection):
    """A set that comes with Stillhouse."""

    type: Literal["builtin"] = "builtin"
    """A seeded family of reasoning-gym, or HumanEval: no file, no network."""
    name: Literal["sums-2x1", "sums-3x1", "sums-2x2", "products-1x1", "humaneval", "humaneval-strict"]
    """Name of the set: `sums-3x1` are three terms of one digit."""

    @model_validator(mode="before")
    @classmethod
    def _own_domain(cls, values: Any) -> Any:
        """A built-in set knows its domain."""
        known = BUILTIN_SETS.get(str(values.get("name"))) if isinstance(values, dict) else None
        return {"domain": known.domain, **values} if known else values


Problems = Annotated[
    JsonlProblems | CsvProblems | ParquetProblems | HFProblems | BuiltinProblems, Field(discriminator="type")
]


# --- template, generation --------------------------------------------------------------------------


class Shot(Section):
    """A worked turn that only the teacher sees."""

    user: str = Field(min_length=1)
    """The example's question."""
    assistant: str = Field(min_length=1)
    """The example's whole answer, the prefill included."""


class TemplateSection(Section):
    """What teacher and student see around a problem."""

    name: str = Field(default="think-answer", pattern=r"^[A-Za-z0-9._-]+$")
    """Name in the `template` column, where a hash of all fields follows it."""
    system: str = R1_SYSTEM
    """System message (default: R1, Table 1); empty leaves the turn out."""
    prefill: str = "<think>\n"
    """Text that every completion starts with, given for free."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=("</answer>",), max_length=4)
    """Texts that end a completion and stay in it."""
    shots: tuple[Shot, ...] = ()
    """Worked turns shown to the teacher only."""

    def to_kwargs(self) -> dict[str, Any]:
        """Arguments of `model.templates.PromptTemplate`."""
        shots = tuple((shot.user, shot.assistant) for shot in self.shots)
        system = self.system or None
        return {
            "name": self.name,
            "system": system,
            "prefill": self.prefill,
            "stop": self.stop,
            "shots": shots,
        }


class GenerateSection(Section):
    """How the teacher is sampled."""

    replicas: int = Field(default=4, ge=1, le=4096)
    """Samples per problem."""
    temperature: Temperature = 0.6
    """Sampling temperature (R1: 0.6 for evaluation and data, 1.0 for the cold start)."""
    top_p: TopP = 0.95
    """Nucleus of the distribution that is sampled from (R1: 0.95)."""
    max_tokens: Tokens = 2048
    """Longest completion; raising it later makes new work only for samples that it had cut."""
    shard_size: int = Field(default=2048, ge=1, le=100_000)
    """Samples per shard, the unit of work and retry."""
    shards_in_flight: int = Field(default=4, ge=1, le=256)
    """Shards that stream into the engine together, so that none's last long answer leaves it idle."""
    concurrency: int = Field(default=256, ge=1, le=65_536)
    """Requests in flight over all shards."""
    attempts: Attempts = 3
    """Tries at a shard before it counts as failed."""
    retry_delay_seconds: float = Field(default=2.0, ge=0.0, le=3600.0)
    """Wait before the second try; it doubles with every further one."""
    timeout_seconds: Seconds = 3600.0
    """Longest wait for one request (32k tokens take the better part of an hour on a full engine)."""


# --- verification, selection -----------------------------------------------------------------------


class VerifySection(Section):
    """Which checks every sample goes through."""

    checks: tuple[str, ...] = Field(default=DEFAULT_CHECKS, min_length=1)
    """Checks to run, by name, or as `package.module:factory` for one of your own."""
    workers: int = Field(default=2, ge=1, le=1024)
    """Processes that check."""
    timeout_seconds: float = Field(default=5.0, gt=0.0, le=3600.0)
    """Hard limit per check and sample; what exceeds it is an `error`, never a `fail`."""
    format_weight: float = Field(default=0.2, ge=0.0, le=10.0)
    """λ of R1's reward r = accuracy + λ · format, as GRPO pays it."""
    format: FormatSettings = FormatSettings()
    """Settings of the check `format`."""
    language: LanguageSettings = LanguageSettings()
    """Settings of the check `language`."""
    mixed_language: MixedLanguageSettings = MixedLanguageSettings()
    """Settings of the check `mixed_language`."""
    repetition: RepetitionSettings = RepetitionSettings()
    """Settings of the check `repetition`."""
    long_paragraph: LongParagraphSettings = LongParagraphSettings()
    """Settings of the check `long_paragraph`."""
    code_block: CodeBlockSettings = CodeBlockSettings()
    """Settings of the check `code_block`."""
    contamination: ContaminationSettings = ContaminationSettings()
    """Settings of the check `contamination`."""
    code: CodeSettings = CodeSettings()
    """Settings of the check `code`."""
    duplicate: DuplicateSettings = DuplicateSettings()
    """Settings of the check `duplicate`, on problems and on samples."""
    judge: JudgeSettings = JudgeSettings()
    """Settings of the check `judge`."""
    reward_model: RewardModelSettings = RewardModelSettings()
    """Settings of the check `reward_model`."""

    @field_validator("checks")
    @classmethod
    def _known(cls, checks: tuple[str, ...]) -> tuple[str, ...]:
        for check in checks:
            if check not in (known := CHECK_NAMES + SHARD_CHECK_NAMES) and ":" not in check:
                raise ValueError(f"there is no check {check!r} (there are: {', '.join(known)})")
        if len(set(checks)) < len(checks):
            raise ValueError(f"names a check twice: {', '.join(checks)}")
        return checks


class AuditSection(Section):
    """Every verifier on its own gold answers, and on corrupted ones, before a GPU is used."""

    enabled: bool = True
    """Whether the stage runs; problems whose own gold fails are then left out (see accept.problems)."""
    checks: tuple[str, ...] = ()
    """Checks to try beside `math` and `code`, by name or as `package.module:factory`; a gold answer must pass them."""
    corruptions: bool = True
    """Whether wrong answers are tried too: sign flipped, a digit changed, another problem's answer, mutants, …"""
    mutants: int = Field(default=8, ge=0, le=1000)
    """Most mutants of one reference solution."""
    limit: int = Field(default=0, ge=0)
    """Problems that are tried, always the same ones; 0: all."""

    @field_validator("checks")
    @classmethod
    def _known(cls, checks: tuple[str, ...]) -> tuple[str, ...]:
        for check in checks:
            if check not in CHECK_NAMES and ":" not in check:
                raise ValueError(f"there is no check {check!r} (there are: {', '.join(CHECK_NAMES)})")
        return checks


class AcceptSection(Section):
    """Which samples are accepted; changing it costs a query, not a generation."""

    require: tuple[str, ...] = ("finish", "format", "math")
    """Checks whose verdict must be `pass`, in the order in which losses are counted; `math|judge` takes either. One of
    your own goes by its `name`, not by its `module:factory`, and is looked up when the run starts."""
    problems: tuple[Literal["audit", "duplicate", "contamination"], ...] = ("audit", "duplicate", "contamination")
    """Checks on problems: a training problem that fails one is not generated for, trained on, or accepted from."""
    pass_rate: Annotated[tuple[Share, ...], Field(min_length=2, max_length=2)] = (0.0, 1.0)
    """Lowest and highest share of right samples of a problem, inclusive (RL prompts: often 0.1 to 0.9)."""
    max_per_problem: int = Field(default=0, ge=0)
    """Accepted samples kept per problem; 0: no limit."""
    keep: Literal["first", "shortest", "diverse"] = "first"
    """Which those are: the first made, the shortest in tokens, or the most unlike all made before (`duplicate`)."""
    distinct: bool = True
    """Whether equal texts of one problem count once."""
    where: str = ""
    """A further SQL condition over the columns of `samples`, as `length(text) < 20000`."""


# --- training --------------------------------------------------------------------------------------


class OptimiserSection(Section):
    """What every training stage has."""

    enabled: bool = False
    """Whether the stage runs."""
    learning_rate: LearningRate = 1e-4
    """Highest learning rate (AdamW)."""
    warmup_share: Share = 0.03
    """Share of the steps in which the rate rises to its highest (R1 states none; 0.03 is open-r1's)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up (R1's distillation: cosine)."""
    min_lr_share: Share = 0.1
    """Last learning rate as a share of the highest (R1's distillation: a tenth)."""
    weight_decay: float = Field(default=0.0, ge=0.0, le=1.0)
    """AdamW's weight decay."""
    grad_clip: float = Field(default=1.0, gt=0.0, le=1000.0)
    """Largest norm of the gradient."""
    spike_ratio: float = Field(default=0.0, ge=0.0, le=1_000_000.0)
    """A gradient (in sft and distill a loss too) of so many times what the last 50 steps had makes no update, and its
    batch is skipped; two in a row: back to the last checkpoint (more than 1, as 10); 0: never (docs/training.md)."""
    tokens_per_micro_batch: Tokens = 16_384
    """Tokens that run through the model at once, packed: bounds memory, leaves the loss as it is."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Optimizer steps between checkpoints; a retry resumes from the last one."""
    keep_checkpoints: int = Field(default=2, ge=1, le=1_000_000)
    """Newest checkpoints that stay, each with its optimizer's state; beside them the best validated weights."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of the training process; 0 leaves it to torch."""
    dtype: Dtype = "bfloat16"
    """Number format of the forward pass; the weights that are trained are kept in float32 beside it."""
    optimizer_state: Dtype = "float32"
    """Number format of AdamW's two moments; `bfloat16` takes 4 bytes a weight less (as DeepSeek-V3's training,
    arXiv 2412.19437, section 3.3.3)."""
    activation_checkpointing: bool = False
    """Runs each layer again in the backward pass instead of keeping what it found: less memory, a third more work."""
    processes: int = Field(default=1, ge=1, le=1024)
    """Processes of this machine that train one model together, one to a GPU (FSDP2); the loss stays as it is."""
    compile: bool = False
    """On a GPU, compiles the model's layers (torch.compile): a minute or so at the start, and less for every step."""
    lora_rank: int = Field(default=0, ge=0, le=4096)
    """Rank r of the adapters that are trained beside frozen weights (LoRA, arXiv 2106.09685); 0: all weights are.
    Adapters want a learning rate about ten times that of whole weights (docs/training.md)."""
    lora_alpha: float = Field(default=32.0, gt=0.0, le=100_000.0)
    """α: what an adapter adds is multiplied by α / r (arXiv 2106.09685, section 4.1)."""
    lora_targets: tuple[str, ...] = ()
    """Linear layers with an adapter, by their last name (`q_proj`); none: all between embeddings and head."""
    attempts: Attempts = 3
    """Tries at the stage, each resuming where the last one got to."""
    validate_every: int = Field(default=0, ge=0)
    """Steps between two validations: the student answers the problems kept by `problems.*.validation`, sampled as
    `[evaluate]` says, also before the first and after the last step; 0: never."""
    validation_limit: int = Field(default=0, ge=0)
    """Problems asked each time, always the same ones (those with the lowest ids, which are hashes); 0: all."""
    validation_samples: int = Field(default=4, ge=1, le=1024)
    """Answers to each of those problems: k of pass@k, N of cons@N (`[evaluate]`'s `replicas` has the same meaning)."""
    validation_batch: int = Field(default=64, ge=1, le=65_536)
    """Answers that the student writes at once where it samples itself: bounds memory."""
    keep: Literal["last", "best"] = "last"
    """Which weights become the student: the last step's, or those of the best validated step by pass@1."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] | None = None
    """Where metrics are shown as well (`students/STAGE/tensorboard`); none given: TensorBoard, if it is installed."""
    peak_tflops: float = Field(default=0.0, ge=0.0)
    """Peak of one training device for the metric `mfu`, 10^12 operations a second; 0: known from the GPU's name."""

    @field_validator("spike_ratio")
    @classmethod
    def _above_what_is_usual(cls, ratio: float) -> float:
        if 0 < ratio <= 1:
            raise ValueError(f"{ratio:g} would skip usual steps: more than 1, or 0 for none")
        return ratio


class SFTSection(OptimiserSection):
    """Supervised fine-tuning on accepted samples; the loss is on the completion only."""

    enabled: bool = True
    """Whether the stage runs."""
    init: Literal["student"] = "student"
    """Weights to start from."""
    max_length: Tokens = 4096
    """Longest prompt plus completion, in tokens; longer examples are left out and counted."""
    epochs: int = Field(default=2, ge=1, le=1000)
    """Passes over the accepted samples (R1's distillation: 2 to 3)."""
    tokens_per_batch: int = Field(default=65_536, ge=1, le=100_000_000)
    """Tokens per optimizer step, prompts included."""
    normalise: Normalise = "token"
    """What the loss is divided by: the batch's tokens, each sequence's own |o| (GRPO's paper), or a constant."""
    max_steps: int = Field(default=0, ge=0)
    """Ends the stage after so many optimizer steps; 0: after its epochs."""


class DistillSection(SFTSection):
    """Distance to the teacher's token distributions on the accepted samples; one tokenizer, unless it is `uld`."""

    enabled: bool = False
    """Whether the stage runs."""
    init: Literal["student", "sft"] = "student"  # type: ignore[assignment]
    """Weights to start from."""
    divergence: Literal["forward", "reverse", "jsd", "uld"] = "forward"
    """KL(teacher ‖ student), KL(student ‖ teacher), generalised Jensen-Shannon (arXiv 2306.13649), or a distance of
    sorted probabilities beside cross-entropy, for a teacher with another tokenizer (arXiv 2402.12030)."""
    beta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """The teacher's weight in the mixture of `jsd`."""
    temperature: float = Field(default=1.0, gt=0.0, le=100.0)
    """Softens both distributions; 1 for `uld`."""
    uld_weight: float = Field(default=1.5, ge=0.0, le=100.0)
    """Weight of the distance of `uld` beside cross-entropy; 1.5 in arXiv 2402.12030."""
    teacher: str = ""
    """Model to learn from; empty: the recipe's teacher."""
    teacher_logits: Literal["live", "stored"] = "live"
    """Whether the teacher runs beside the student, or its engine is asked once and its likeliest tokens are stored."""
    top_k: int = Field(default=64, ge=1, le=1024)
    """Likeliest tokens stored at each position; the rest is one class (docs/training.md: size, and mass captured)."""


class RolloutSection(OptimiserSection):
    """What stages have whose student samples what it learns from."""

    pass_rate: Annotated[tuple[Share, ...], Field(min_length=2, max_length=2)] = (0.0, 1.0)
    """Problems to train on: lowest and highest share of the teacher's samples that were right, both included.
    A problem that is always or never solved gives its group no advantage (DAPO: neither 0 nor 1)."""
    steps: int = Field(default=100, ge=1)
    """Rounds of sampling and updating."""
    problems_per_step: int = Field(default=8, ge=1, le=65_536)
    """Problems per round."""
    temperature: float = Field(default=1.0, gt=0.0, le=2.0)
    """Sampling temperature of the rollouts (R1: 1.0)."""
    max_tokens: Tokens = 1024
    """Longest rollout."""
    learning_rate: LearningRate = 1e-6
    """Highest learning rate (GRPO: 1e-6, R1: 3e-6)."""
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    """How the learning rate falls after the warm-up."""
    rollouts: Literal["transformers", "vllm"] = "transformers"
    """What samples: the student in its own process, or a vLLM beside it that is given its weights every round."""
    rollout_python: str = ""
    """`vllm`: interpreter that has vLLM; empty: the teacher's."""
    rollout_urls: tuple[str, ...] = ()
    """`vllm`: engines of yours that serve the student and read this machine's folders; none: our own."""
    rollout_gpu_memory: float = Field(default=0.4, gt=0.0, lt=1.0)
    """`vllm`: share of the training GPU that our engine may fill; it sleeps while the student is trained."""
    rollout_args: tuple[str, ...] = ()
    """`vllm`: further arguments of our engine's command line."""
    rollouts_ahead: int = Field(default=0, ge=0, le=1)
    """`vllm`: 1 samples a round during the update before, by weights one round old (AReaL, arXiv 2505.24298); engines
    must not share the trainer's GPU."""
    degenerate_window: int = Field(default=20, ge=0, le=100_000)
    """Rounds that must all have gone wrong, by a limit below, before the stage is stopped with the reason; 0: never."""
    degenerate_truncated_share: Share = 0.95
    """Share of completions cut at `max_tokens` (trl #5697: 0.97 to 0.99 under a default limit)."""
    degenerate_entropy: float = Field(default=0.001, ge=0.0, le=100.0)
    """Entropy in nats per token at which the policy has collapsed (the demo's small sums: 0.04 to 0.12)."""
    normalise: Normalise = "sequence"
    """What a loss is divided by (GRPO: each sequence's 1/|o|; Dr. GRPO: a constant; DAPO: all tokens)."""
    checkpoint_every: int = Field(default=5, ge=1)
    """Rounds between checkpoints."""

    @model_validator(mode="after")
    def _what_only_an_engine_has(self) -> Self:
        if self.rollouts != "vllm" and (self.rollout_urls or self.rollouts_ahead):
            name = "rollout_urls" if self.rollout_urls else "rollouts_ahead"
            raise ValueError(f'{name} is for rollouts = "vllm": the student cannot sample beside its own training')
        return self


class OnPolicySection(RolloutSection):
    """Distance to a live teacher's token distributions on what the student writes (GKD, arXiv 2306.13649, λ = 1)."""

    init: Literal["student", "sft", "distill"] = "sft"
    """Weights to start from."""
    teacher: str = ""
    """Model to learn from, with the student's tokenizer; empty: the recipe's teacher, with its worked turns."""
    group_size: int = Field(default=1, ge=1, le=1024)
    """Samples per problem."""
    learning_rate: LearningRate = 1e-5
    """Highest learning rate."""
    divergence: Literal["reverse", "forward", "jsd"] = "reverse"
    """KL(student ‖ teacher) (MiniLLM, arXiv 2306.08543), KL(teacher ‖ student), or generalised Jensen-Shannon."""
    beta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """The teacher's weight in the mixture of `jsd`."""
    divergence_temperature: float = Field(default=1.0, gt=0.0, le=100.0)
    """Softens both distributions; `temperature` is the sampler's."""


class GRPOSection(RolloutSection):
    """Group relative policy optimisation with the same verifiers as rewards."""

    init: Literal["student", "sft", "distill", "on_policy"] = "sft"
    """Weights that the policy and its frozen reference start from."""
    group_size: int = Field(default=8, ge=2, le=1024)
    """Samples per problem, G (GRPO: 64; R1: 16)."""
    objective: Literal["grpo", "gspo", "cispo"] = "grpo"
    """What is clipped: each token's ratio, its sequence's mean ratio (GSPO), or the weight of log π alone (CISPO)."""
    clip_low: float = Field(default=0.2, gt=0.0, le=1.0)
    """ε below 1 within which a ratio may move the policy (GSPO: 0.0003; CISPO: 1, which is no lower bound)."""
    clip_high: float = Field(default=0.2, gt=0.0, le=100.0)
    """ε above 1 (GRPO: as below; DAPO: 0.28; GSPO: 0.0004; CISPO: the one to tune)."""
    kl_weight: float = Field(default=0.02, ge=0.0, le=10.0)
    """β of the penalty towards the frozen reference (GRPO: 0.04, R1: 0.001, DAPO: 0)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimate of KL(policy ‖ reference) from one token (GRPO: k3); docs/math.md says what its gradient is."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the penalty stands (GRPO: loss; PPO: k1 in the reward; k1 in the loss is noise without a penalty)."""
    overlong_tokens: int = Field(default=0, ge=0, le=1_000_000)
    """Last tokens of `max_tokens` over which the reward falls by 1 (DAPO: 4,096 of 20,480, rewards ±1); 0: none."""
    advantage: Literal["grpo", "dr_grpo", "rloo", "rft"] = "grpo"
    """(r - mean)/std of the group, r - mean alone (Dr. GRPO), r - mean of the others (RLOO, arXiv 2402.14740), or 1 for
    what is right and 0 for the rest (online RFT, arXiv 2402.03300, eq. 11: without a KL, so set `kl_weight = 0`)."""
    updates_per_step: int = Field(default=1, ge=1, le=64)
    """Optimizer steps per round of sampling."""
    mismatch: Literal["none", "tis", "icepop"] = "none"
    """`vllm`: each token's ρ = π_trainer/π_engine as a weight: min(ρ, high) (TIS), or ρ within [low, high] and else 0
    (IcePop); docs/math.md."""
    mismatch_low: float = Field(default=0.5, ge=0.0, lt=1.0)
    """IcePop's lower bound (Ring-1T: 0.5)."""
    mismatch_high: float = Field(default=2.0, gt=1.0, le=1000.0)
    """Upper bound of both (TIS as verl has it: 2; Ring-1T's IcePop: 5)."""
    max_refills: int = Field(default=0, ge=0, le=1000)
    """DAPO's dynamic sampling: rounds in which groups without advantage give way to others; 0: they stay."""
    degenerate_silent_share: Share = 0.99
    """Share of groups without advantage (one reward in all; `rft`: none right) from which a round teaches nothing."""
    degenerate_clip_share: Share = 0.9
    """Share of tokens that are clipped, or at a bound of `mismatch` (a verl run: clamped in 415 of 467 steps)."""

    @model_validator(mode="after")
    def _room_before_the_penalty(self) -> Self:
        if self.overlong_tokens > self.max_tokens:
            raise ValueError(f"overlong_tokens = {self.overlong_tokens} is more than max_tokens = {self.max_tokens}")
        return self

    @model_validator(mode="after")
    def _engine_of_the_rollouts(self) -> Self:
        if self.rollouts != "vllm" and self.mismatch != "none":
            raise ValueError('mismatch is for rollouts = "vllm": the student itself does not differ from the student')
        if not self.mismatch_low < 1 < self.mismatch_high:
            raise ValueError(f"1 must lie between mismatch_low = {self.mismatch_low} and mismatch_high")
        return self

    @model_validator(mode="after")
    def _rollouts_of_older_weights(self) -> Self:
        if self.rollouts_ahead and self.mismatch == "none":
            raise ValueError('rollouts_ahead = 1 samples with older weights: set mismatch = "tis" or "icepop"')
        if self.rollouts_ahead and self.max_refills:
            raise ValueError("rollouts_ahead = 1 and max_refills exclude each other: set one of them to 0")
        return self


# --- evaluation, prices, planning ------------------------------------------------------------------


class EvaluateSection(Section):
    """Unbiased pass@k and cons@N on problems that training never saw."""

    replicas: int = Field(default=4, ge=1, le=4096)
    """Samples per held-out problem."""
    temperature: Temperature = 0.6
    """Sampling temperature (R1: 0.6)."""
    top_p: TopP = 0.95
    """Nucleus (R1: 0.95)."""
    max_tokens: Tokens = 2048
    """Longest completion."""
    k: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 4), min_length=1)
    """The k of pass@k; none above `replicas`."""
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    """Coverage of the bootstrap intervals over problems."""
    bootstrap: int = Field(default=2000, ge=100, le=1_000_000)
    """Resamples for an interval."""
    limit: int = Field(default=0, ge=0)
    """Held-out problems used; 0: all."""
    models: tuple[Literal["teacher", "student", "sft", "distill", "on_policy", "grpo"], ...] = (
        "teacher",
        "student",
        "sft",
        "distill",
        "on_policy",
        "grpo",
    )
    """Models to evaluate; those of stages that do not run are left out."""


class PricesSection(Section):
    """What `stillhouse plan` multiplies hours with."""

    gpu_hour: float = Field(default=2.5, ge=0.0)
    """Price of one GPU (or CPU machine) for an hour."""
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")
    """Currency of the price (ISO 4217)."""


class PlanSection(Section):
    """Assumptions of `stillhouse plan`; each gives way to what a pilot of the same dataset has measured."""

    tokens_per_second: float = Field(default=0.0, ge=0.0)
    """Completion tokens per second and GPU (or CPU machine) of the teacher; 0: not known."""
    mean_prompt_tokens: float = Field(default=150.0, ge=0.0)
    """Mean length of a prompt as the teacher gets it, worked turns included."""
    mean_completion_tokens: float = Field(default=0.0, ge=0.0)
    """Mean length of a completion; 0: half of generate.max_tokens."""
    accepted_share: Share = 0.5
    """Share of samples that the accept rule keeps."""
    bytes_per_token: float = Field(default=2.0, gt=0.0, le=64.0)
    """Bytes on disk per completion token: 3 of text, kept whole and in parts, over zstd's ratio of 3."""
    peak_tflops: float = Field(default=989.0, gt=0.0)
    """Peak of one training device, 10^12 operations a second (H100 SXM, dense bfloat16: 989)."""
    mfu: float = Field(default=0.4, gt=0.0, le=1.0)
    """Share of that peak which training reaches (model FLOPs utilisation)."""
    student_parameters: float = Field(default=0.0, ge=0.0)
    """Parameters of the student; 0: read from its name (`1.5B`, `135m`)."""
    teacher_parameters: float = Field(default=0.0, ge=0.0)
    """Parameters of the teacher; 0: read from its name."""
    source: str = ""
    """Where the rates above come from."""
