"""Problems: from a source's raw rows to `Problem` records with their split, and the rows that did not fit.

Promises: one unusable row never stops the load; every rejected row leaves its line and reason; each
problem comes once; whether a prompt is held out depends on the prompt and the shares of the sources that
have it, on nothing else; no prompt is in two splits. Memory holds ids of what was seen (some 100 bytes a
problem, twice that where questions are kept for validation), not the rows.
Golds are not judged here: one that cannot be parsed is kept, and the `math` check will say `unscorable`.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from model.errors import ProblemsError
from model.records import Problem, problem_id
from tasks.sources import ProblemSource, RawRow, RejectReason, read_rows

TRAIN = "train"
VALIDATION = "validation"
HELD_OUT = "held_out"
_EXCERPT = 500


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that is not a problem: one line of `rejects/<source>.jsonl`."""

    source: str
    line: int
    reason: str
    detail: str
    excerpt: str


@dataclass(slots=True)
class SourceCounts:
    """What became of a source's rows: rows = train + validation + held_out + duplicates + the sum of rejected."""

    rows: int = 0
    train: int = 0
    validation: int = 0
    held_out: int = 0
    duplicates: int = 0
    empty_golds: int = 0  # problems kept without a gold (not a kind of loss)
    rejected: Counter[str] = field(default_factory=Counter)

    @property
    def loaded(self) -> int:
        return self.train + self.validation + self.held_out


@dataclass(frozen=True, slots=True)
class ProblemBatch:
    """Some problems and rejects of one source, in the order of its rows."""

    source: str
    problems: list[Problem]
    rejects: list[Reject]


@dataclass(frozen=True, slots=True)
class ProblemsLoaded:
    """Everything at once, for sets that fit in memory."""

    problems: list[Problem]
    rejects: list[Reject]
    counts: dict[str, SourceCounts]


class ProblemReader:
    """Iterates over batches of problems; `counts` (by source label) is complete after the last one.

    Sources are read in order of falling `held_out` share, and a prompt that one source has held out is held
    out wherever it turns up again: a benchmark with `held_out = 1.0` takes its questions out of training.
    Between training and validation, sources of one `held_out` share are read in order of falling `validation`
    share, and a prompt stays where it was put first.
    Raises ProblemsError when a source cannot be read or holds not one usable problem.
    """

    def __init__(self, sources: Sequence[ProblemSource | Mapping[str, Any]], batch_size: int = 4096) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        made = [s if isinstance(s, ProblemSource) else ProblemSource.of(s) for s in sources]
        if not made:
            raise ProblemsError("no problem source given; add [[problems]] to the recipe")
        if len({source.label for source in made}) < len(made):
            raise ValueError(f"sources need distinct labels, got {[source.label for source in made]}")
        self._sources = sorted(made, key=lambda source: (-source.held_out, -source.validation))
        self._batch_size = batch_size
        self._seen: set[int] = set()
        self._held_out: set[int] = set()
        self._learned: dict[int, str] | None = {} if any(source.validation for source in made) else None
        self.counts: dict[str, SourceCounts] = {source.label: SourceCounts() for source in made}

    def __iter__(self) -> Iterator[ProblemBatch]:
        self._seen.clear()
        self._held_out.clear()
        if self._learned is not None:
            self._learned.clear()
        for source in self._sources:
            self.counts[source.label] = SourceCounts()
            yield from self._read(source)

    def _read(self, source: ProblemSource) -> Iterator[ProblemBatch]:
        counts = self.counts[source.label]
        batch = ProblemBatch(source.label, [], [])
        first_reject: Reject | None = None
        for row in read_rows(source):
            counts.rows += 1
            outcome = problem_of(row, source)
            if isinstance(outcome, Reject):
                counts.rejected[outcome.reason] += 1
                first_reject = first_reject or outcome
                batch.rejects.append(outcome)
            else:
                batch.problems.extend(self._admit(outcome, counts))
            if len(batch.problems) + len(batch.rejects) >= self._batch_size:
                yield batch
                batch = ProblemBatch(source.label, [], [])
            if source.limit and counts.loaded >= source.limit:
                break
        if batch.problems or batch.rejects:
            yield batch
        _require_some(source, counts, first_reject)

    def _admit(self, problem: Problem, counts: SourceCounts) -> list[Problem]:
        """The problem with its final split; nothing when it was there before."""
        identity, prompt = int(problem.problem_id[:16], 16), prompt_hash(problem.prompt)
        if identity in self._seen:
            counts.duplicates += 1
            return []
        self._seen.add(identity)
        if problem.split == HELD_OUT:
            self._held_out.add(prompt)
        elif prompt in self._held_out:
            problem = replace(problem, split=HELD_OUT)
        elif self._learned is not None:
            problem = replace(problem, split=self._learned.setdefault(prompt, problem.split))
        counts.held_out += problem.split == HELD_OUT
        counts.validation += problem.split == VALIDATION
        counts.train += problem.split == TRAIN
        counts.empty_golds += problem.gold is None
        return [problem]


def load_problems(sources: Sequence[ProblemSource | Mapping[str, Any]]) -> ProblemsLoaded:
    """All problems of the sources in memory. For files of any size iterate over a `ProblemReader` instead."""
    reader = ProblemReader(sources)
    problems: list[Problem] = []
    rejects: list[Reject] = []
    for batch in reader:
        problems.extend(batch.problems)
        rejects.extend(batch.rejects)
    return ProblemsLoaded(problems, rejects, reader.counts)


def _require_some(source: ProblemSource, counts: SourceCounts, first: Reject | None) -> None:
    if counts.loaded or counts.duplicates:
        return
    where = source.path or source.name
    if first is None:
        raise ProblemsError(f"{where} holds no problems: it has no rows")
    why = f"first: line {first.line}, {first.reason}: {first.detail}"
    raise ProblemsError(f"{where} holds not one usable problem in {counts.rows} rows; {why}")


# --- one row --------------------------------------------------------------------------------------


class _UnfitError(Exception):
    """Carries a row's reason from where it is noticed to where the Reject is made."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def problem_of(row: RawRow, source: ProblemSource) -> Problem | Reject:
    """The row as a problem (with the split that its prompt has in this source), or why it is none."""
    if row.values is None:
        assert row.reason is not None
        return Reject(source.label, row.line, row.reason, row.detail, row.excerpt)
    try:
        return _problem(row.values, source)
    except _UnfitError as unfit:
        excerpt = repr(dict(row.values))[:_EXCERPT].encode("utf-8", "replace").decode("utf-8")
        return Reject(source.label, row.line, unfit.reason, str(unfit), excerpt)


def _problem(values: Mapping[str, Any], source: ProblemSource) -> Problem:
    columns = source.columns
    prompt = _prompt(values, source)
    gold = _gold(_text(_look_up(values, columns.gold), columns.gold), source.gold_pattern)
    tests = _text(_look_up(values, columns.tests), columns.tests) or None
    return Problem(
        problem_id=problem_id(source.domain, prompt, gold, tests),
        domain=source.domain,
        source=source.label,
        prompt=prompt,
        gold=gold,
        tests=tests,
        metadata=_metadata(values, columns.metadata),
        split=split_of(prompt, source.held_out, source.validation),
    )


def _prompt(values: Mapping[str, Any], source: ProblemSource) -> str:
    name = source.columns.prompt
    value = _look_up(values, name)
    if value is None:
        raise _UnfitError(RejectReason.MISSING_PROMPT, f"no `{name}` in the row")
    if not isinstance(value, str):
        raise _UnfitError(RejectReason.WRONG_TYPE, f"`{name}` is a {type(value).__name__}, not a text")
    prompt = _checked(value, name).strip()
    if not prompt:
        raise _UnfitError(RejectReason.EMPTY_PROMPT, f"`{name}` is empty")
    if len(prompt) > source.max_prompt_chars:
        detail = f"{len(prompt)} characters, max_prompt_chars is {source.max_prompt_chars}"
        raise _UnfitError(RejectReason.PROMPT_TOO_LONG, detail)
    return prompt


def _look_up(values: Mapping[str, Any], name: str) -> Any:
    """The column `name`; failing that, the nested value that the dotted name leads to; failing that, None."""
    if name in values:
        return values[name]
    here: Any = values
    for part in name.split("."):
        if isinstance(here, Mapping):
            here = here.get(part)
        elif isinstance(here, list) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
        else:
            return None
    return here


def _text(value: Any, name: str) -> str | None:
    """A gold or test as text: texts as they are, numbers in Python's writing, lists and objects as JSON."""
    if value is None or isinstance(value, str):
        return None if value is None else _checked(value, name).strip()
    try:
        return _checked(json.dumps(value, ensure_ascii=False), name)
    except (TypeError, ValueError) as error:
        raise _UnfitError(RejectReason.WRONG_TYPE, f"`{name}`: {error}") from error


def _checked(text: str, name: str) -> str:
    if "\0" in text:
        raise _UnfitError(RejectReason.CONTAINS_NUL, f"`{name}` contains a NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _UnfitError(RejectReason.NOT_UTF8, f"`{name}` is not UTF-8 at character {error.start}") from error
    return text


def _gold(text: str | None, pattern: str) -> str | None:
    """The gold, or the pattern's group of its last match in it; None when there is nothing."""
    if text and pattern:
        matches = list(re.finditer(pattern, text))
        text = (matches[-1].group(1) or "").strip() if matches else None
    return text or None


def _metadata(values: Mapping[str, Any], names: Iterable[str]) -> str:
    """JSON of the named columns, beside a `metadata` object that the row brings along."""
    own = values.get("metadata")
    kept = dict(own) if isinstance(own, Mapping) else {}
    kept.update({name: _look_up(values, name) for name in names})
    # Dates and the like are written as their text: metadata is for people and SQL, not for training.
    return json.dumps(kept, sort_keys=True, default=str)


# --- the split ------------------------------------------------------------------------------------


def normalise_prompt(prompt: str) -> str:
    """NFKC, casefolded, runs of white space as one: two spellings of one question share a split."""
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())


def prompt_hash(prompt: str) -> int:
    """64-bit hash of the normalised prompt. No seed, no source: its place in [0, 2^64) is for good."""
    digest = hashlib.blake2b(normalise_prompt(prompt).encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def split_of(prompt: str, held_out: float, validation: float = 0.0) -> str:
    """`held_out` for the share `held_out` in [0, 1] of all prompts with the lowest hashes, `validation` for such a
    share with the highest, else `train`.

    A larger share keeps what a smaller one took, and neither moves the other's, as long as both fit into 1 (what both
    claim is held out); other sources, their order and `limit` have no say.
    """
    place = prompt_hash(prompt)
    if place < held_out * 2**64:
        return HELD_OUT
    return VALIDATION if place >= 2**64 - int(validation * 2**64) else TRAIN
