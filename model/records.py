"""The rows that everything here passes on: problem, sample, verdict, evaluation, and their Arrow schemas.

Each record stands beside the schema of its Parquet file, and a test holds the two together. Ids are content
hashes: the same id means the same work on any machine, in any shard layout. This file knows no path and no
database; `tasks/store.py` writes these rows, `tasks/catalog.py` reads them with SQL.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# Non-null strings unless a field below says otherwise: a missing value is a decision, not an accident.
_TEXT = pa.string()


class Status(StrEnum):
    """What one check can say of one sample. An error is never a fail."""

    PASS = "pass"
    FAIL = "fail"
    ERROR = "error"
    UNSCORABLE = "unscorable"


class FinishReason(StrEnum):
    """Why a completion ended: `stop` by itself, `length` cut by max_tokens, `refused` by the endpoint (HTTP 4xx)."""

    STOP = "stop"
    LENGTH = "length"
    REFUSED = "refused"


def content_hash(*parts: Any, digits: int = 24) -> str:
    """Hex digest of the parts' canonical JSON (sorted keys, no spaces, UTF-8): 24 digits are 96 bits."""
    return hashlib.blake2b(_canonical(parts), digest_size=digits // 2).hexdigest()


def rows_hash(label: str, rows: Iterable[Any], *, digits: int = 24) -> str:
    """`content_hash(label, [*rows])` of rows that are never held together."""
    digest, before = hashlib.blake2b(b"[" + _canonical(label) + b",[", digest_size=digits // 2), b""
    for row in rows:
        digest.update(before + _canonical(row))
        before = b","
    digest.update(b"]]")
    return digest.hexdigest()


def _canonical(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", errors="surrogatepass")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. `split` is `train`, `held_out` for questions that no training stage may see, or
    `validation` for those that only choose a checkpoint."""

    problem_id: str
    domain: str
    source: str
    prompt: str
    gold: str | None = None
    tests: str | None = None
    metadata: str = "{}"
    split: str = "train"


PROBLEM_SCHEMA = pa.schema(
    [
        pa.field("problem_id", _TEXT, nullable=False),
        pa.field("domain", _TEXT, nullable=False),
        pa.field("source", _TEXT, nullable=False),
        pa.field("prompt", _TEXT, nullable=False),
        pa.field("gold", _TEXT),
        pa.field("tests", _TEXT),
        pa.field("metadata", _TEXT, nullable=False),
        pa.field("split", _TEXT, nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class TaughtProblem(Problem):
    """A problem as a student reads it (`prompt`) and as its teacher does, worked turns included; None: alike."""

    teacher_prompt: str | None = None


TAUGHT_PROBLEM_SCHEMA = PROBLEM_SCHEMA.append(pa.field("teacher_prompt", _TEXT))


def problem_id(domain: str, prompt: str, gold: str | None, tests: str | None = None) -> str:
    """Id of a problem's content; where it came from (`source`, `metadata`) is not part of it."""
    return content_hash("problem", domain, prompt, gold, tests)


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion of one problem by one teacher, with its provenance.

    `text` is the whole assistant message (the template's opening `<think>` included), `reasoning` and `answer`
    its parts where the template's tags allow them to be told apart. Tokens are counted by the engine.
    """

    sample_id: str
    problem_id: str
    shard: int
    teacher: str
    teacher_revision: str
    template: str
    temperature: float
    top_p: float
    max_tokens: int
    replica: int
    seed: int | None  # None where the endpoint was not given one
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    text: str
    reasoning: str | None
    answer: str | None
    error: str | None
    seconds: float
    created_at: str  # ISO 8601, UTC


SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("sample_id", _TEXT, nullable=False),
        pa.field("problem_id", _TEXT, nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("teacher", _TEXT, nullable=False),
        pa.field("teacher_revision", _TEXT, nullable=False),
        pa.field("template", _TEXT, nullable=False),
        pa.field("temperature", pa.float64(), nullable=False),
        pa.field("top_p", pa.float64(), nullable=False),
        pa.field("max_tokens", pa.int32(), nullable=False),
        pa.field("replica", pa.int32(), nullable=False),
        pa.field("seed", pa.int64()),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("completion_tokens", pa.int32(), nullable=False),
        pa.field("finish_reason", _TEXT, nullable=False),
        pa.field("text", _TEXT, nullable=False),
        pa.field("reasoning", _TEXT),
        pa.field("answer", _TEXT),
        pa.field("error", _TEXT),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("created_at", _TEXT, nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """One line of a shard's plan: which completion is to be made, before it exists."""

    sample_id: str
    problem_id: str
    replica: int
    seed: int
    max_tokens: int


PLAN_SCHEMA = pa.schema(
    [
        pa.field("sample_id", _TEXT, nullable=False),
        pa.field("problem_id", _TEXT, nullable=False),
        pa.field("replica", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("max_tokens", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Provenance:
    """What shapes the distribution a sample is drawn from. `max_tokens` is not part of it: see `sample_id`."""

    teacher: str
    teacher_revision: str
    template: str
    temperature: float
    top_p: float


def sample_id(problem: str, provenance: Provenance, replica: int) -> str:
    """Id of (problem, teacher, revision, template, sampling parameters, replica).

    An answer that ended by itself is valid under any larger `max_tokens`, so that limit is left out.
    """
    return content_hash("sample", problem, asdict(provenance), replica)


def sample_ids(problems: Iterable[str], provenance: Provenance, replicas: int) -> Iterator[list[str]]:
    """For each problem the `sample_id` of replicas 0 to `replicas` - 1, in a tenth of the time.

    What the replicas of a problem share is hashed once: the same bytes, so the same ids.
    """
    shared = b"," + _canonical(asdict(provenance)) + b","
    ends = [_canonical(replica) + b"]" for replica in range(replicas)]
    for problem in problems:
        begun = hashlib.blake2b(b'["sample",' + _canonical(problem) + shared, digest_size=12)
        found = []
        for end in ends:
            whole = begun.copy()
            whole.update(end)
            found.append(whole.hexdigest())
        yield found


def sample_seed(sample: str) -> int:
    """The request's seed in [0, 2^31), from its id: a re-run asks the engine for the same random numbers."""
    return int(sample[:8], 16) & 0x7FFFFFFF


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check's result on one sample. `score` is in [0, 1] unless the check's file says otherwise."""

    sample_id: str
    check: str
    version: str
    verdict: Status
    score: float | None
    reason: str
    detail: str | None = None
    milliseconds: float = 0.0


VERDICT_SCHEMA = pa.schema(
    [
        pa.field("sample_id", _TEXT, nullable=False),
        pa.field("check", _TEXT, nullable=False),
        pa.field("version", _TEXT, nullable=False),
        pa.field("verdict", _TEXT, nullable=False),
        pa.field("score", pa.float64()),
        pa.field("reason", _TEXT, nullable=False),
        pa.field("detail", _TEXT),
        pa.field("milliseconds", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class ProblemVerdict:
    """One check's result on one problem, whatever is answered to it: its own gold, a twin, a benchmark's n-gram."""

    problem_id: str
    check: str
    version: str
    verdict: Status
    score: float | None
    reason: str
    detail: str | None = None
    milliseconds: float = 0.0


PROBLEM_VERDICT_SCHEMA = pa.schema(
    [
        pa.field("problem_id", _TEXT, nullable=False),
        *(field for field in VERDICT_SCHEMA if field.name != "sample_id"),
    ]
)


@dataclass(frozen=True, slots=True)
class Audit:
    """One check tried on one made-up answer to one problem: its gold, or the gold spoilt in a known way.

    `case` is `gold` or the name of a corruption, `expected` what the check should say of it (`pass` or `fail`).
    """

    problem_id: str
    source: str
    check: str
    version: str
    case: str
    expected: Status
    verdict: Status
    reason: str
    answer: str
    detail: str | None = None
    milliseconds: float = 0.0


AUDIT_SCHEMA = pa.schema(
    [
        pa.field("problem_id", _TEXT, nullable=False),
        pa.field("source", _TEXT, nullable=False),
        pa.field("check", _TEXT, nullable=False),
        pa.field("version", _TEXT, nullable=False),
        pa.field("case", _TEXT, nullable=False),
        pa.field("expected", _TEXT, nullable=False),
        pa.field("verdict", _TEXT, nullable=False),
        pa.field("reason", _TEXT, nullable=False),
        pa.field("answer", _TEXT, nullable=False),
        pa.field("detail", _TEXT),
        pa.field("milliseconds", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One metric of one model on one suite, with its 95 % bootstrap interval over problems.

    `key` names the evaluation (one model's metrics and suites, measured together), `samples` counts judged answers.
    """

    key: str
    model: str
    step: int
    suite: str
    metric: str
    value: float
    low: float
    high: float
    problems: int
    samples: int
    template: str
    model_path: str
    created_at: str


EVALUATION_SCHEMA = pa.schema(
    [
        pa.field("key", _TEXT, nullable=False),
        pa.field("model", _TEXT, nullable=False),
        pa.field("step", pa.int32(), nullable=False),
        pa.field("suite", _TEXT, nullable=False),
        pa.field("metric", _TEXT, nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("low", pa.float64(), nullable=False),
        pa.field("high", pa.float64(), nullable=False),
        pa.field("problems", pa.int32(), nullable=False),
        pa.field("samples", pa.int32(), nullable=False),
        pa.field("template", _TEXT, nullable=False),
        pa.field("model_path", _TEXT, nullable=False),
        pa.field("created_at", _TEXT, nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """What a trainer reads: the prompt as the student sees it, as the teacher saw it, and the completion."""

    sample_id: str
    problem_id: str
    prompt: str  # rendered with the student's template, ends where the assistant message begins
    teacher_prompt: str  # rendered with the teacher's template
    completion: str  # the assistant message without its end-of-turn token
    gold: str | None


EXAMPLE_SCHEMA = pa.schema(
    [
        pa.field("sample_id", _TEXT, nullable=False),
        pa.field("problem_id", _TEXT, nullable=False),
        pa.field("prompt", _TEXT, nullable=False),
        pa.field("teacher_prompt", _TEXT, nullable=False),
        pa.field("completion", _TEXT, nullable=False),
        pa.field("gold", _TEXT),
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class TeacherRow:
    """What a teacher thought of one completion: its k likeliest tokens (and their log-probabilities, nats) at each of
    the completion's T tokens, likeliest first, one position after another.

    `log_probs` is −inf where there was no further token. Half precision is of 2⁻¹¹ of a log-probability's own size,
    so it is finest where the teacher is sure: docs/training.md has its measured cost.
    """

    sample_id: str
    context: str  # `context_digest` of the tokens before the completion
    tokens: list[int]  # T: the completion's own, end-of-turn token included
    ids: NDArray[np.int32]  # T·k
    log_probs: NDArray[np.float16]  # T·k
    k: int
    mass: float  # mean over T of the probability that the k have together


TEACHER_ROW_SCHEMA = pa.schema(
    [
        pa.field("sample_id", _TEXT, nullable=False),
        pa.field("context", _TEXT, nullable=False),
        pa.field("tokens", pa.list_(pa.int32()), nullable=False),
        pa.field("ids", pa.list_(pa.int32()), nullable=False),
        pa.field("log_probs", pa.list_(pa.float16()), nullable=False),
        pa.field("k", pa.int32(), nullable=False),
        pa.field("mass", pa.float64(), nullable=False),
    ]
)


def context_digest(tokens: Sequence[int]) -> str:
    """Tells one context's token ids from another's."""
    return content_hash("context", list(tokens), digits=16)


@dataclass(frozen=True, slots=True)
class TeacherPlace:
    """Where a sample's TeacherRow lies: `file` relative to the folder of the list that this is a line of."""

    sample_id: str
    file: str
    row: int
    sha256: str  # of the file


TEACHER_PLACE_SCHEMA = pa.schema(
    [
        pa.field("sample_id", _TEXT, nullable=False),
        pa.field("file", _TEXT, nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("sha256", _TEXT, nullable=False),
    ]
)

SCHEMAS: dict[type, pa.Schema] = {
    Problem: PROBLEM_SCHEMA,
    TaughtProblem: TAUGHT_PROBLEM_SCHEMA,
    Sample: SAMPLE_SCHEMA,
    PlannedSample: PLAN_SCHEMA,
    Verdict: VERDICT_SCHEMA,
    Evaluation: EVALUATION_SCHEMA,
    TrainingExample: EXAMPLE_SCHEMA,
    TeacherRow: TEACHER_ROW_SCHEMA,
    TeacherPlace: TEACHER_PLACE_SCHEMA,
}


def to_table(rows: list[Any], schema: pa.Schema) -> pa.Table:
    """Arrow table of dataclass rows. Lone surrogates, which UTF-8 cannot hold, become U+FFFD."""
    columns = {name: [encodable(getattr(row, name)) for row in rows] for name in schema.names}
    return pa.table(columns, schema=schema)


def from_table(table: pa.Table, record: type) -> list[Any]:
    """The rows of a table as `record` objects; columns that the record does not know are left out."""
    names = [f.name for f in fields(record)]
    return [record(**row) for row in table.select(names).to_pylist()]


def encodable(value: Any) -> Any:
    """The value; a string with three U+FFFD for each half of a character, which UTF-8 and so Parquet cannot hold."""
    if isinstance(value, str):
        return value.encode("utf-8", errors="surrogatepass").decode("utf-8", errors="replace")
    return value
