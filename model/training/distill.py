"""KL distillation: on the same completion tokens, the student's distributions are drawn to a teacher's.

The teacher may see another prompt (`teacher_prompt`, with worked turns) than the student: context distillation. Both
need the same tokenizer (`cross_tokenizer.py` does not). A live teacher runs beside the student; the turns that all its
prompts open with are run once and kept as keys and values. Of a stored one the k likeliest tokens are read, and no
model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.losses.head import Kernel, Part, project
from model.losses.kl import Divergence, divergence_part
from model.losses.log_probs import token_log_probs
from model.losses.top_k import top_k_part
from model.same_tokens import token_difference
from model.training.data import Row, TokenBatch, Tokenizer, collate, tokenize_all
from model.training.documents import Documents, has_compiled_layers
from model.training.examples import Columns, first_completions
from model.training.forward import Model, completion_hidden, whole_head
from model.training.job import DistillJob, JobError
from model.training.load import load_frozen
from model.training.parallel import World, cut_again
from model.training.process import StopSignal
from model.training.sft import ExampleStage
from model.training.step import MicroBatch, StepWork
from model.training.teacher_rows import TeacherRows


class TaughtStage(ExampleStage):
    """Examples that a teacher reads too, after a context of its own."""

    def teacher_row(self, index: int) -> Row:
        """One of the examples that are trained on, as the teacher reads it."""
        return Row(self.numbers("teacher_context", index), self.numbers("completion", index))


class LiveTeacherStage(TaughtStage):
    """What stages with a teacher beside the student share: its last hidden states for a step's examples."""

    teacher: PrefixedModel
    teacher_completion = "completion"  # the column that the teacher reads after its context

    def take_teacher(self, model: Model) -> None:
        """Has a model be the teacher; what it reads of a row beyond what all its rows open with counts as the row's.

        That opening is run once for all, or, by compiled layers, once for each pack, beyond its budget.
        """
        lengths = self.examples.lengths
        shared = shared_prefix(self.examples.array("teacher_context", int(place)) for place in self.kept)
        self.teacher = PrefixedModel(model, shared, self.device)
        read = (lengths["teacher_context"] + lengths[self.teacher_completion])[self.kept] - len(shared)
        self.run_lengths = np.maximum(self.lengths, read)

    def prepare(self, step: int) -> StepWork:
        """The step's examples, with the teacher's last hidden states for its tokens of them."""
        micros = []
        for indices, weights in self.step_rows(step):
            batch = self.collate(indices, weights)
            hidden_NH = self.teacher.completion_hidden([self.teacher_row(i) for i in indices])
            micros.append(MicroBatch(batch, self.kernel_of(indices, batch, hidden_NH)))
        return StepWork(micros)

    def kernel_of(self, indices: Sequence[int], batch: TokenBatch, teacher_hidden_NH: Tensor) -> Kernel:
        """The loss on some examples' tokens."""
        raise NotImplementedError


class DistillStage(LiveTeacherStage):
    """Forward, reverse or Jensen-Shannon distance to a live teacher, token by token."""

    def __init__(self, job: DistillJob, tokenizer: Tokenizer, world: World, stop: StopSignal) -> None:
        assert job.teacher is not None, "a job without a teacher is StoredDistillStage's"
        self.job: DistillJob = job
        model, teacher_tokenizer = load_frozen(job.teacher, job, world)
        require_same_tokens(tokenizer, teacher_tokenizer, first_completions(job.examples))
        super().__init__(job, tokenizer, world, stop, teacher_contexts(tokenizer, job))
        self.vocabulary = vocabulary_of(tokenizer)
        self.take_teacher(model)

    def kernel_of(self, _indices: Sequence[int], batch: TokenBatch, teacher_hidden_NH: Tensor) -> Kernel:
        """See `LiveTeacherStage`."""
        return self.kernel(batch, teacher_hidden_NH)

    def kernel(self, batch: TokenBatch, teacher_hidden_NH: Tensor) -> Kernel:
        """Distance at some of a batch's completion tokens, over the token ids that both models have."""
        job = self.job
        return divergence_kernel(
            batch,
            teacher_hidden_NH,
            self.teacher.head_VH,
            self.vocabulary,
            job.divergence,
            beta=job.beta,
            temperature=job.temperature,
        )


def divergence_kernel(
    batch: TokenBatch,
    teacher_hidden_NH: Tensor,
    teacher_VH: Tensor,
    vocabulary: int,
    kind: Divergence,
    *,
    beta: float,
    temperature: float,
    own_text: bool = False,
) -> Kernel:
    """Distance to a live teacher at a batch's completion tokens, over the token ids that both models have.

    Metrics are those of `divergence_part`. `own_text`: the student has written it; then they are `divergence`, and at
    τ = 1 the means of −log q(o), `entropy`, and of log q(o) − log p(o), `reverse_kl`: one token's estimates, nats.
    """

    def part(logits_CV: Tensor, rows: slice) -> Part:
        teacher_CV = project(teacher_hidden_NH[rows], teacher_VH, vocabulary, precise=True)
        targets_C = batch.targets_N[rows]
        surprise = _surprise(teacher_CV, targets_C) if own_text else None
        found = divergence_part(
            logits_CV,
            teacher_CV,
            batch.weights_N[rows],
            kind,
            targets_C,
            beta=beta,
            temperature=temperature,
        )
        if surprise is not None:
            entropy = found.sums["cross_entropy"]
            told = {"divergence": found.sums["divergence"], "entropy": entropy, "reverse_kl": surprise - entropy}
            found = replace(found, sums=told)
        return found

    return Kernel(part, precise=True, vocabulary=vocabulary)


def _surprise(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    """Σ_c −log softmax(logits)[target]."""
    return -token_log_probs(logits_CV, targets_C).sum()


class StoredDistillStage(TaughtStage):
    """Forward distance to what a teacher's k likeliest tokens say, all others being one class."""

    def __init__(self, job: DistillJob, tokenizer: Tokenizer, world: World, stop: StopSignal) -> None:
        assert job.stored is not None, "a job with a live teacher is DistillStage's"
        super().__init__(job, tokenizer, world, stop, teacher_contexts(tokenizer, job))
        self.vocabulary = vocabulary_of(tokenizer)
        self.stored = TeacherRows(job.stored, self.examples.sample_ids.take(pa.array(self.kept)).combine_chunks())
        self.stored.require(self.teacher_row, world)

    def prepare(self, step: int) -> StepWork:
        """The step's examples, with what the teacher thought of them."""
        micros = []
        for indices, weights in self.step_rows(step):
            batch = self.collate(indices, weights)
            ids_NK, log_probs_NK = self.stored.read(indices)
            micros.append(MicroBatch(batch, self.kernel(batch, ids_NK.to(self.device), log_probs_NK.to(self.device))))
        return StepWork(micros)

    def kernel(self, batch: TokenBatch, ids_NK: Tensor, log_probs_NK: Tensor) -> Kernel:
        """Distance at some of a batch's completion tokens; metrics `divergence`, `teacher_mass`, `student_mass`."""

        def part(logits_CV: Tensor, rows: slice) -> Part:
            return top_k_part(logits_CV, ids_NK[rows], log_probs_NK[rows], batch.weights_N[rows])

        return Kernel(part, precise=True, vocabulary=self.vocabulary)


def teacher_contexts(tokenizer: Tokenizer, job: DistillJob) -> Columns:
    """What a teacher with the student's tokenizer reads before the completion."""
    return {"teacher_context": lambda some: tokenize_all(tokenizer, [e.teacher_prompt + job.prefill for e in some])}


def vocabulary_of(tokenizer: Tokenizer) -> int:
    """Token ids that a tokenizer knows; a head may have more rows, as padding."""
    last: int = max(tokenizer.get_vocab().values())
    return last + 1


class PrefixedModel:
    """A frozen model whose rows all open with the same tokens, which are run only once.

    Where its layers are compiled, which take no keys that came before, once for every pack, if at all (`collate`).
    """

    def __init__(self, model: Model, prefix: list[int], device: torch.device) -> None:
        prefix = [] if has_compiled_layers(model) else prefix
        self.model, self.prefix, self.device = model, prefix, device
        self.head_VH = whole_head(model, model.dtype)  # with rows beyond the vocabulary
        self.layers = self._run_prefix() if prefix else []

    @torch.no_grad()
    def _run_prefix(self) -> list[tuple[Tensor, Tensor]]:
        documents = Documents((len(self.prefix),), self.device)
        tokens_1T = torch.tensor([self.prefix], device=self.device)
        cache = self.model.base_model(
            input_ids=tokens_1T, use_cache=True, **documents.forward_arguments()
        ).past_key_values
        cut_again(self.model.base_model)
        return [(layer.keys, layer.values) for layer in cache.layers]

    @torch.no_grad()
    def completion_hidden(self, rows: Sequence[Row]) -> Tensor:
        """The last hidden state where completion tokens are predicted, [N, H]; equal to running the rows whole."""
        rests = [Row(row.context[len(self.prefix) :], row.completion) for row in rows]
        batch = collate(rests, [0.0] * len(rows), self.device)
        if not self.layers:
            return completion_hidden(self.model, batch)
        documents = replace(batch.documents, prefix=len(self.prefix))
        hidden_1TH: Tensor = self.model.base_model(
            input_ids=batch.tokens_T[None], past_key_values=self._cache(), **documents.forward_arguments()
        ).last_hidden_state
        cut_again(self.model.base_model)
        return hidden_1TH[0, batch.positions_N]

    def _cache(self) -> Any:
        """The prefix's keys and values, for one pass: the pass adds its own."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for index, (keys, values) in enumerate(self.layers):
            cache.update(keys, values, index)
        return cache


def shared_prefix(contexts: Iterable[Sequence[int] | NDArray[np.int32]]) -> list[int]:
    """The tokens that all contexts open with; at least one token of each context stays outside."""
    every = iter(contexts)
    shared = np.asarray(next(every, []))[:-1]
    for context in every:
        other = np.asarray(context)[: min(len(shared), len(context) - 1)]
        differs = np.flatnonzero(shared[: len(other)] != other)
        shared = shared[: differs[0] if len(differs) else len(other)]
    found: list[int] = shared.tolist()
    return found


def require_same_tokens(student: Tokenizer, teacher: Tokenizer, texts: Sequence[str]) -> None:
    """Raises JobError unless both tokenizers give the same ids: distributions over other tokens mean nothing."""
    if difference := token_difference(student, teacher, texts):
        raise JobError(
            f"teacher and student {difference}, and KL distillation needs one tokenizer: "
            'use sft instead, or a distill job with divergence = "uld" and a live teacher'
        )
