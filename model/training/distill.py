"""KL distillation: on the same completion tokens, the student's distributions are drawn to a teacher's.

The teacher may see another prompt (`teacher_prompt`, with worked turns) than the student: context distillation. Both
need the same tokenizer (`cross_tokenizer.py` does not). A live teacher runs beside the student; the turns that all its
prompts open with are run once and kept as keys and values. Of a stored one the k likeliest tokens are read, and no
model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from model.losses.head import Kernel, Part, project
from model.losses.kl import Divergence, divergence_part
from model.losses.top_k import top_k_part
from model.training.data import Row, TokenBatch, Tokenizer, collate, tokenize
from model.training.documents import Documents
from model.training.forward import Model, completion_hidden, load_model
from model.training.job import DistillJob, JobError
from model.training.loop import MicroBatch, StepWork
from model.training.parallel import World
from model.training.sft import ExampleStage
from model.training.teacher_rows import TeacherRows


class LiveTeacherStage(ExampleStage):
    """What stages with a teacher beside the student share: its last hidden states for a step's examples."""

    teacher: PrefixedModel
    teacher_rows: list[Row]  # of all examples, as the teacher reads them

    def prepare(self, step: int) -> StepWork:
        """The step's examples, with the teacher's last hidden states for its tokens of them."""
        micros = []
        for indices, weights in self.step_rows(step):
            batch = self.collate(indices, weights)
            hidden_NH = self.teacher.completion_hidden([self.teacher_rows[i] for i in indices])
            micros.append(MicroBatch(batch, self.kernel_of(indices, batch, hidden_NH)))
        return StepWork(micros)

    def kernel_of(self, indices: Sequence[int], batch: TokenBatch, teacher_hidden_NH: Tensor) -> Kernel:
        """The loss on some examples' tokens."""
        raise NotImplementedError


class DistillStage(LiveTeacherStage):
    """Forward, reverse or Jensen-Shannon distance to a live teacher, token by token."""

    def __init__(self, job: DistillJob, tokenizer: Tokenizer, world: World) -> None:
        super().__init__(job, tokenizer, world)
        assert job.teacher is not None, "a job without a teacher is StoredDistillStage's"
        self.job: DistillJob = job
        model, teacher_tokenizer = load_model(job.teacher, job.dtype, self.device)
        require_same_tokens(tokenizer, teacher_tokenizer, [e.completion for e in self.examples[:100]])
        self.vocabulary = vocabulary_of(tokenizer)
        self.teacher_rows = teacher_rows(self, tokenizer)
        self.teacher = PrefixedModel(model, shared_prefix([row.context for row in self.teacher_rows]), self.device)

    def kernel_of(self, _indices: Sequence[int], batch: TokenBatch, teacher_hidden_NH: Tensor) -> Kernel:
        """See `LiveTeacherStage`."""
        return self.kernel(batch, teacher_hidden_NH)

    def kernel(self, batch: TokenBatch, teacher_hidden_NH: Tensor) -> Kernel:
        """Distance at some of a batch's completion tokens, over the token ids that both models have."""
        job = self.job
        return divergence_kernel(
            batch,
            teacher_hidden_NH,
            self.teacher.head(self.vocabulary),
            job.divergence,
            beta=job.beta,
            temperature=job.temperature,
        )


def divergence_kernel(
    batch: TokenBatch,
    teacher_hidden_NH: Tensor,
    teacher_VH: Tensor,
    kind: Divergence,
    *,
    beta: float,
    temperature: float,
    own_text: bool = False,
) -> Kernel:
    """Distance at a batch's completion tokens, over the token ids that `teacher_VH`, a live teacher's head, has.

    Metrics are those of `divergence_part`. `own_text`: the student has written it; then they are `divergence`, and at
    τ = 1 the means of −log q(o), `entropy`, and of log q(o) − log p(o), `reverse_kl`: one token's estimates, nats.
    """

    def part(logits_CV: Tensor, rows: slice) -> Part:
        teacher_CV, targets_C = project(teacher_hidden_NH[rows], teacher_VH, precise=True), batch.targets_N[rows]
        surprise = _surprise(teacher_CV, targets_C) if own_text else None
        found = divergence_part(
            logits_CV[:, : len(teacher_VH)],
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
        return without_padding(found, logits_CV)

    return Kernel(part, precise=True)


def _surprise(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    """Σ_c −log softmax(logits)[target]."""
    chosen_C = logits_CV.gather(-1, targets_C[:, None]).squeeze(-1)
    return (logits_CV.logsumexp(-1) - chosen_C).sum()


class StoredDistillStage(ExampleStage):
    """Forward distance to what a teacher's k likeliest tokens say, all others being one class."""

    def __init__(self, job: DistillJob, tokenizer: Tokenizer, world: World) -> None:
        super().__init__(job, tokenizer, world)
        assert job.stored is not None, "a job with a live teacher is DistillStage's"
        self.vocabulary = vocabulary_of(tokenizer)
        self.stored = TeacherRows(job.stored)
        asked = zip(self.examples, teacher_rows(self, tokenizer), strict=True)
        self.stored.require({example.sample_id: row for example, row in asked})

    def prepare(self, step: int) -> StepWork:
        """The step's examples, with what the teacher thought of them."""
        micros = []
        for indices, weights in self.step_rows(step):
            batch = self.collate(indices, weights)
            ids_NK, log_probs_NK = self.stored.read([self.examples[i].sample_id for i in indices])
            micros.append(MicroBatch(batch, self.kernel(batch, ids_NK.to(self.device), log_probs_NK.to(self.device))))
        return StepWork(micros)

    def kernel(self, batch: TokenBatch, ids_NK: Tensor, log_probs_NK: Tensor) -> Kernel:
        """Distance at some of a batch's completion tokens; metrics `divergence`, `teacher_mass`, `student_mass`."""

        def part(logits_CV: Tensor, rows: slice) -> Part:
            own_CV = logits_CV[:, : self.vocabulary]
            found = top_k_part(own_CV, ids_NK[rows], log_probs_NK[rows], batch.weights_N[rows])
            return without_padding(found, logits_CV)

        return Kernel(part, precise=True)


def teacher_rows(stage: ExampleStage, tokenizer: Tokenizer) -> list[Row]:
    """The stage's rows with the teacher's contexts instead of the student's."""
    contexts = [tokenize(tokenizer, e.teacher_prompt + stage.job.prefill) for e in stage.examples]
    return [Row(context, row.completion) for context, row in zip(contexts, stage.rows, strict=True)]


def vocabulary_of(tokenizer: Tokenizer) -> int:
    """Token ids that a tokenizer knows; a head may have more rows, as padding."""
    last: int = max(tokenizer.get_vocab().values())
    return last + 1


def without_padding(found: Part, logits_CV: Tensor) -> Part:
    """Rows of the head beyond the vocabulary get neither mass nor gradient."""
    used = found.gradient_CV.shape[-1]
    logits_CV[:, :used] = found.gradient_CV
    logits_CV[:, used:] = 0.0
    return replace(found, gradient_CV=logits_CV)


class PrefixedModel:
    """A frozen model whose rows all open with the same tokens, which are run only once."""

    def __init__(self, model: Model, prefix: list[int], device: torch.device) -> None:
        self.model, self.prefix, self.device = model, prefix, device
        self.layers = self._run_prefix() if prefix else []

    def head(self, vocabulary: int) -> Tensor:
        """Its head's weight for the first so many token ids, [V, H]."""
        weight_VH: Tensor = self.model.get_output_embeddings().weight
        return weight_VH[:vocabulary]

    @torch.no_grad()
    def _run_prefix(self) -> list[tuple[Tensor, Tensor]]:
        documents = Documents((len(self.prefix),), self.device)
        tokens_1T = torch.tensor([self.prefix], device=self.device)
        cache = self.model.base_model(
            input_ids=tokens_1T, use_cache=True, **documents.forward_arguments()
        ).past_key_values
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
        return hidden_1TH[0, batch.positions_N]

    def _cache(self) -> Any:
        """The prefix's keys and values, for one pass: the pass adds its own."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for index, (keys, values) in enumerate(self.layers):
            cache.update(keys, values, index)
        return cache


def shared_prefix(contexts: Sequence[list[int]]) -> list[int]:
    """The tokens that all contexts open with; at least one token of each context stays outside."""
    first, last = min(contexts), max(contexts)  # in dictionary order: what these two share, all share
    longest = min(len(context) for context in contexts) - 1
    shared = 0
    while shared < longest and first[shared] == last[shared]:
        shared += 1
    return first[:shared]


def require_same_tokens(student: Tokenizer, teacher: Tokenizer, texts: Sequence[str]) -> None:
    """Raises JobError unless both tokenizers give the same ids: distributions over other tokens mean nothing."""
    if student.get_vocab() != teacher.get_vocab():
        raise JobError(
            "teacher and student have different vocabularies, and KL distillation needs one tokenizer: "
            'use sft instead, or a distill job with divergence = "uld" and a live teacher'
        )
    for text in texts:
        if tokenize(student, text) != tokenize(teacher, text):
            raise JobError(f"teacher and student split {text[:60]!r} into different tokens: KL needs one tokenizer")
