"""The settings of all checks, one class per check: what a recipe's `[verify.CHECK]` may say, and what it means.

A field has one sentence of meaning, its bounds are held by `__post_init__` (ValueError), and its default is ours
unless a source is named: R1 (arXiv 2501.12948) states its rules, and no threshold. The sentences travel into the
recipe's JSON schema. Settings that change what a verdict means are part of the check's version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform

C = TypeVar("C")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def _settings(cls: type[C]) -> type[C]:
    """A frozen dataclass which pydantic, where it is used, reads strictly and with its sentences."""
    cls.__pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # type: ignore[attr-defined]
    return dataclass(frozen=True, slots=True)(cls)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value:g}; it must be from {low:g} to {high:g}")


@_settings
class FormatSettings:
    """R1-Zero's format reward: basic structure first, then full, partial or none."""

    tags: tuple[str, ...] = ("think", "answer")
    """Sections that a completion must have, in order: think and answer, or think alone."""
    partial: float = 0.5
    """R_partial: the score of a completion that meets a part of the specification."""

    def __post_init__(self) -> None:
        _within("partial", self.partial, 0.0, 1.0)
        if tuple(self.tags) not in (("think", "answer"), ("think",)):
            raise ValueError(f"tags is {list(self.tags)}; use ['think', 'answer'] or ['think']")


@_settings
class LanguageSettings:
    """The share of a chain's words that is in the target language."""

    target: str = ""
    """Language that the reasoning should be in (ISO 639-1); empty: the question's own."""
    least_share: float = 0.9
    """Least share of words in that language that passes."""

    def __post_init__(self) -> None:
        _within("least_share", self.least_share, 0.0, 1.0)


@_settings
class MixedLanguageSettings:
    """Chains that change their language on the way."""

    most_paragraphs: float = 0.05
    """Greatest share of paragraphs with a sentence in another language than the chain's main one that passes."""
    most_words: int = 0
    """Words of a foreign script (characters, where no spaces are written) that may stand among the chain's own."""

    def __post_init__(self) -> None:
        _within("most_words", self.most_words, 0, 10_000_000)
        _within("most_paragraphs", self.most_paragraphs, 0.0, 1.0)


@_settings
class RepetitionSettings:
    """Chains that go round in circles."""

    ngram: int = 20
    """Words of the n-grams that are counted."""
    most_share: float = 0.2
    """Greatest share of n-grams seen before that passes."""
    most_loop: int = 60
    """Longest stretch, in words, that may say the same thing three or more times in a row."""

    def __post_init__(self) -> None:
        _within("ngram", self.ngram, 2, 200)
        _within("most_loop", self.most_loop, 1, 10_000_000)
        _within("most_share", self.most_share, 0.0, 1.0)


@_settings
class LongParagraphSettings:
    """Chains with walls of text, which R1 drops as unreadable."""

    most_characters: int = 4_000
    """Longest paragraph that passes, maths and code aside."""

    def __post_init__(self) -> None:
        _within("most_characters", self.most_characters, 1, 10_000_000)


@_settings
class CodeBlockSettings:
    """Code blocks in a chain that is not about code, which R1 drops."""

    domains: tuple[str, ...] = ("math",)
    """Domains whose chains should hold no code block."""


@_settings
class ContaminationSettings:
    """Word n-grams shared with benchmark questions or solutions."""

    files: tuple[str, ...] = ()
    """Benchmark files (JSON Lines, also .gz, or Parquet), relative to the working directory; `builtin:held_out`: the
    dataset's own held-out problems, for problems only."""
    ngram: int = 10
    """Words of the n-grams that are compared (R1: 10); twice as many characters where no spaces are written."""
    boilerplate: float = 0.01
    """An n-gram found, whatever its numbers, in a greater share of all benchmark items (and in three) says nothing."""

    def __post_init__(self) -> None:
        _within("ngram", self.ngram, 2, 100)
        _within("boilerplate", self.boilerplate, 0.0, 1.0)


@_settings
class DuplicateSettings:
    """Exact and near duplicates, among problems and among the samples of one problem."""

    threshold: float = 0.8
    """Least Jaccard similarity of two texts' shingles that makes them twins; for problems, numbers must agree too."""
    shingle: int = 3
    """Words of a shingle: more make one changed word weigh more."""
    permutations: int = 128
    """Slots of a MinHash signature, which proposes what is then compared exactly: more miss fewer twins."""

    def __post_init__(self) -> None:
        _within("threshold", self.threshold, 0.3, 1.0)
        _within("shingle", self.shingle, 1, 50)
        _within("permutations", self.permutations, 16, 1024)


@_settings
class CodeSettings:
    """Programs against their tests, in the sandbox."""

    cpu_seconds: float = 4.0
    """CPU time of one test where the problem sets none."""
    wall_seconds: float = 10.0
    """Wall time of one test where the problem sets none."""
    memory_mb: int = 512
    """Address space of a program where the problem sets none."""
    total_seconds: float = 60.0
    """Longest time that all tests of one sample may take together; what is left untested then is a fail."""
    most_timeouts: int = 3
    """Tests that may run into a time limit before the others are left untested (the score only changes); 0: all."""
    rerun_passes: bool = True
    """Whether a program that passed is run again with another hash seed; another result is a fail, `flaky`."""
    isolation: str = "auto"
    """Sandbox tier: auto (the best that holds here), A, B, C, or none (unsafe; stamped on every verdict)."""

    def __post_init__(self) -> None:
        _within("cpu_seconds", self.cpu_seconds, 0.01, 3600)
        _within("wall_seconds", self.wall_seconds, 0.01, 3600)
        _within("memory_mb", self.memory_mb, 64, 1 << 20)
        _within("total_seconds", self.total_seconds, 0.1, 24 * 3600)
        _within("most_timeouts", self.most_timeouts, 0, 1_000_000)
        if self.isolation not in ("auto", "A", "B", "C", "none"):
            raise ValueError(f"isolation is {self.isolation!r}; use auto, A, B, C or none")


@_settings
class JudgeSettings:
    """A model that compares with the reference what rules rejected, and grades by a rubric where there is none."""

    model: str = ""
    """Name of the judge at `urls`; empty: the recipe's teacher."""
    urls: tuple[str, ...] = ()
    """OpenAI-compatible endpoints of the judge; empty: the teacher's own engine."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key for `urls`."""
    least_rating: int = 7
    """Least rating, of 1 to 10, that passes where there is no reference."""
    audit_share: float = 0.02
    """Share of the samples that rules accepted which the judge sees as well, so that the two can be compared."""
    temperature: float = 0.0
    """Sampling temperature of the judge."""
    max_tokens: int = 1024
    """Longest judgement."""
    tries: int = 3
    """Times that a judgement is asked for until it is the JSON wanted; then the sample is an `error`."""
    guided: bool = True
    """Whether the endpoint, where it can, lets the judge write that JSON alone; off for one that thinks aloud."""
    most_characters: int = 12_000
    """Longest question, reference and final answer that the judge is shown; of a longer one the middle is left out."""

    def __post_init__(self) -> None:
        if bool(self.model) != bool(self.urls):
            raise ValueError("model and urls name the judge together; leave both out and the teacher judges")
        _within("least_rating", self.least_rating, 1, 10)
        _within("audit_share", self.audit_share, 0.0, 1.0)
        _within("temperature", self.temperature, 0.0, 2.0)
        _within("max_tokens", self.max_tokens, 1, 1_000_000)
        _within("tries", self.tries, 1, 20)
        _within("most_characters", self.most_characters, 100, 10_000_000)


@_settings
class RewardModelSettings:
    """A sequence-classification model whose score has to reach a threshold."""

    model: str = ""
    """Folder, hub name or `builtin:` name of the reward model."""
    revision: str = "main"
    """Its revision."""
    urls: tuple[str, ...] = ()
    """vLLM servers of it (`vllm serve MODEL --runner pooling`), up to and including `/v1`; empty: it runs here."""
    served_name: str = ""
    """The model's name at `urls`; empty: `model`."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key for `urls`."""
    threshold: float = 0.0
    """Least score (the model's own scale) that passes."""
    max_length: int = 8192
    """Longest conversation in tokens; a longer one cannot be scored."""
    tokens_per_batch: int = 16_384
    """Padded tokens that are scored at once, where it runs here."""
    dtype: str = "bfloat16"
    """Number format where it runs here: bfloat16 or float32."""
    device: str = "auto"
    """Where it runs here: auto (a GPU if there is one), cpu, or cuda:N."""

    def __post_init__(self) -> None:
        if self.served_name and not self.urls:
            raise ValueError("served_name is the model's name at urls; set urls, or leave it out")
        _within("max_length", self.max_length, 1, 1_000_000)
        _within("tokens_per_batch", self.tokens_per_batch, 1, 100_000_000)
        if self.dtype not in ("bfloat16", "float32"):
            raise ValueError(f"dtype is {self.dtype!r}; use bfloat16 or float32")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device is {self.device!r}; use auto, cpu or cuda:N")


@_settings
class CheckSettings:
    """The settings of all checks that look at one sample, by check."""

    format: FormatSettings = FormatSettings()
    """The tags of a completion."""
    language: LanguageSettings = LanguageSettings()
    """The language of the reasoning."""
    mixed_language: MixedLanguageSettings = MixedLanguageSettings()
    """Changes of language."""
    repetition: RepetitionSettings = RepetitionSettings()
    """Chains that repeat themselves."""
    long_paragraph: LongParagraphSettings = LongParagraphSettings()
    """Walls of text."""
    code_block: CodeBlockSettings = CodeBlockSettings()
    """Code where none belongs."""
    contamination: ContaminationSettings = ContaminationSettings()
    """Overlap with benchmarks."""
    code: CodeSettings = CodeSettings()
    """Programs and their tests."""

    @classmethod
    def of(cls, values: Mapping[str, Mapping[str, Any]]) -> CheckSettings:
        """From `dataclasses.asdict` of such settings, as a job's JSON holds them; lists become tuples again."""
        sections = {item.name: type(getattr(cls(), item.name)) for item in fields(cls)}
        return cls(**{name: sections[name](**_tuples(section)) for name, section in values.items()})


def _tuples(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in section.items()}
