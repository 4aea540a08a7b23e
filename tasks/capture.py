"""What the teacher thinks of the accepted samples, asked once and stored: its k likeliest tokens at every learned one.

The teacher's engine reads prompt and completion (prefill; nothing is written), both tokenised apart exactly as
training does. Rows lie in shards of their own, keyed by sample; a row counts as long as context and completion are
the same tokens, so a sample that was made again is asked again, and nothing else is. Shards that are whole are work
done: a run that is killed loses the one in flight. What a job is then given is a small list of places
(`model.records.TeacherPlace`), named by its content.

Not promised: that an endpoint has the tokenizer which the recipe names for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from model.errors import SamplerError
from model.records import (
    TEACHER_PLACE_SCHEMA,
    TEACHER_ROW_SCHEMA,
    TeacherPlace,
    TeacherRow,
    TrainingExample,
    content_hash,
    context_digest,
    to_table,
)
from model.sampling.request import Completion, ScoreRequest
from model.sampling.stored_size import stored_bytes
from model.sampling.top_k import within_vocabulary
from tasks import durable
from tasks.attempts import attempt
from tasks.choice import SELECTIONS
from tasks.engine import Engine
from tasks.progress import Ticker, announce
from tasks.run import Run
from tasks.store import TEACHER_ROWS, Dataset, Manifest, shard_name
from tasks.work import CAPTURE

if TYPE_CHECKING:
    from model.training.data import Row, Tokenizer

SHARD_EXAMPLES = 256

_MEGABYTE = 1e6


@dataclass(frozen=True, slots=True)
class Question:
    """One example that the teacher is asked about; its tokens are read again when their turn comes."""

    place: int  # in the file of examples
    digest: str  # `_digest` of the teacher's context and the completion
    tokens: int  # of the completion


class Questions:
    """What is to be asked, of whom. No dataclass, so that Prefect does not look through all of it."""

    def __init__(self, engine: Engine, teacher: str, revision: str, k: int, tokenizer: Tokenizer) -> None:
        # Imports torch, so not before a training stage needs it.
        from model.training.distill import vocabulary_of

        self.engine, self.k, self.tokenizer = engine, k, tokenizer
        self.vocabulary = vocabulary_of(tokenizer)
        self.folder = f"{TEACHER_ROWS}/{content_hash('teacher rows', teacher, revision, k, digits=12)}"
        self.asked: dict[str, Question] = {}
        self.shards: dict[int, list[str]] = {}

    def read(self, examples: Path, theirs: Tokenizer, prefill: str, max_length: int) -> None:
        """Takes the examples that training will take: those of at most `max_length` tokens for the student.

        JobError where the teacher's tokenizer is another one.
        """
        from model.training.data import tokenize_all
        from model.training.distill import require_same_tokens
        from model.training.examples import first_completions, read_examples

        require_same_tokens(self.tokenizer, theirs, first_completions(examples))
        self.examples, self.prefill = examples, prefill
        place = 0
        for some in read_examples(examples):
            contexts = tokenize_all(self.tokenizer, [example.prompt + prefill for example in some])
            for example, context, row in zip(some, contexts, self._rows(some), strict=True):
                if len(context) + len(row.completion) <= max_length:
                    digest = _digest(context_digest(row.context), row.completion)
                    self.asked[example.sample_id] = Question(place, digest, len(row.completion))
                place += 1

    def _rows(self, some: Sequence[TrainingExample]) -> list[Row]:
        """Examples as the teacher reads them."""
        from model.training.data import Row, completion_tokens, tokenize_all

        contexts = tokenize_all(self.tokenizer, [example.teacher_prompt + self.prefill for example in some])
        completions = completion_tokens(self.tokenizer, some, self.prefill)
        return [Row(*both) for both in zip(contexts, completions, strict=True)]

    def plan(self, dataset: Dataset) -> None:
        """Cuts what is not stored yet into shards. StoreError where the disk has not that much room."""
        known = stored_places(dataset, self)
        missing = [sample for sample in self.asked if sample not in known]
        if not missing:
            return
        first = 1 + max((manifest.shard for manifest in dataset.manifests(self.folder)), default=-1)
        starts = range(0, len(missing), SHARD_EXAMPLES)
        self.shards = {first + n: missing[at : at + SHARD_EXAMPLES] for n, at in enumerate(starts)}
        _require_room(dataset, sum(self.asked[sample].tokens for sample in missing), self.k)

    def rows(self, samples: Sequence[str]) -> dict[str, Row]:
        """Some of the examples as the teacher reads them."""
        from model.training.examples import examples_at

        some = examples_at(self.examples, [self.asked[sample].place for sample in samples])
        return {example.sample_id: row for example, row in zip(some, self._rows(some), strict=True)}

    def request(self, sample: str, row: Row) -> ScoreRequest:
        """A sample's whole text in tokens, of which the completion's are scored."""
        return ScoreRequest(sample, (*row.context, *row.completion), len(row.context), self.k)


def _digest(context: str, completion: list[int]) -> str:
    """Tells the tokens of one context (its digest) and completion from those of another."""
    return content_hash(context, completion, digits=16)


def _require_room(dataset: Dataset, tokens: int, k: int) -> None:
    """Says how large the rows will be, before compression, and refuses what the disk has no room for."""
    size, free = stored_bytes(tokens, k), dataset.free_bytes()
    what = f"stored log-probabilities: {tokens:,} tokens, {k} each, {size / _MEGABYTE:,.1f} MB"
    if size > free:
        where = f"{dataset.path} has {free / _MEGABYTE:,.1f} MB free"
        raise durable.refused(f'{what}, but {where}: lower distill.top_k, or set distill.teacher_logits = "live"')
    announce(what)


@task(name="capture", task_run_name="capture {shard:06d}", cache_policy=NO_CACHE)
def capture_shard(run: Run, questions: Questions, shard: int, ticker: Ticker) -> int:
    """Asks one shard's questions and returns its number. Raises SamplerError or StoreError."""
    started = time.monotonic()
    with attempt(run.dataset, CAPTURE, shard, run.run_id) as record:
        known = questions.rows(questions.shards[shard])
        requests = [questions.request(*each) for each in known.items()]
        answers = questions.engine.complete(requests, on_done=lambda done: ticker.count(done.prompt_tokens))
        rows = [_row(questions, known[answer.key], answer) for answer in answers]
        run.dataset.write_shard(
            f"{questions.folder}/{shard_name(shard)}",
            to_table(rows, TEACHER_ROW_SCHEMA),
            schema=TEACHER_ROW_SCHEMA,
            fingerprint=questions.folder,
            seconds=time.monotonic() - started,
        )
        record.rows = len(rows)
    return shard


def _row(questions: Questions, row: Row, answer: Completion) -> TeacherRow:
    if answer.top_k is None:
        remedy = "--max-logprobs must be at least distill.top_k, and the text and one token fit into the engine"
        raise SamplerError(f"sample {answer.key} was refused ({answer.error}): {remedy}", retryable=False)
    top_k = within_vocabulary(answer.top_k, questions.vocabulary)
    return TeacherRow(
        sample_id=answer.key,
        context=context_digest(row.context),
        tokens=row.completion,
        ids=top_k.ids_TK.reshape(-1),
        log_probs=top_k.log_probs_TK.astype(np.float16).reshape(-1),
        k=questions.k,
        mass=top_k.mass,
    )


def write_places(dataset: Dataset, questions: Questions, student: str) -> Path:
    """Lists where the examples' rows lie, beside the examples, and returns the list's path."""
    known = stored_places(dataset, questions)
    places = [known[sample] for sample in questions.asked]
    digest = content_hash("places", [[p.sample_id, p.file, p.row, p.sha256] for p in places], digits=12)
    relative = f"{SELECTIONS}/{student}-teacher-{digest}.parquet"
    if dataset.read_manifest(relative) is None:
        table = to_table(places, TEACHER_PLACE_SCHEMA)
        dataset.write_shard(relative, table, schema=TEACHER_PLACE_SCHEMA, fingerprint=digest)
    return dataset.file(relative)


def stored_places(dataset: Dataset, questions: Questions) -> dict[str, TeacherPlace]:
    """Where the questions' answers lie, of those that have one; of two the later."""
    manifests = dataset.manifests(questions.folder)
    return {place.sample_id: place for found in manifests for place in _fitting(dataset, questions, found)}


def _fitting(dataset: Dataset, questions: Questions, manifest: Manifest) -> Iterator[TeacherPlace]:
    """The rows of a shard that were made for the very tokens that would be asked now."""
    table = dataset.read_table(manifest.relative, ["sample_id", "context", "tokens"])
    for at, stored in enumerate(table.to_pylist()):
        question = questions.asked.get(stored["sample_id"])
        if question and question.digest == _digest(stored["context"], stored["tokens"]):
            yield TeacherPlace(stored["sample_id"], f"../{manifest.relative}", at, manifest.sha256)
