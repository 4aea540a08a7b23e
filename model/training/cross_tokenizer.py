"""Distillation from a teacher with another tokenizer: `divergence = "uld"` (model/losses/uld.py).

Both read the same completion, each in its own tokens. A student's token is compared with the teacher's where both have
read the same text before it: at the completion's beginning, where two tokens end at the same character, and before the
end-of-turn token. The paper cuts both to the shorter length and compares the t-th token with the t-th, which after the
first token that is split otherwise compares different places. Tokens without a partner keep their cross-entropy.
The teacher's prompt must be in the teacher's own format; here it is taken as it is given.

Axes: N completion tokens of all rows, of the student; H the teacher's hidden size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from model.losses.head import Kernel, Part, project
from model.losses.uld import uld_part
from model.training.data import Row, TokenBatch, Tokenizer, completion_tokens
from model.training.distill import (
    LiveTeacherStage,
    teacher_contexts,
    vocabulary_of,
)
from model.training.job import DistillJob, JobError
from model.training.load import load_frozen
from model.training.parallel import World
from model.training.process import StopSignal


class CrossTokenizerStage(LiveTeacherStage):
    """Cross-entropy, and sorted probabilities drawn to the teacher's where both stand at the same place of the text."""

    teacher_completion = "teacher_completion"

    def __init__(self, job: DistillJob, tokenizer: Tokenizer, world: World, stop: StopSignal) -> None:
        assert job.teacher is not None, "a job checks that"
        self.job: DistillJob = job
        model, theirs = load_frozen(job.teacher, job, world)
        own = {
            **teacher_contexts(theirs, job),
            "teacher_completion": lambda some: completion_tokens(theirs, some, job.prefill),
            "partners": lambda some: [
                partners(token_starts(tokenizer, text), token_starts(theirs, text))
                for text in (example.completion.removeprefix(job.prefill) for example in some)
            ],
        }
        super().__init__(job, tokenizer, world, stop, own)
        self.vocabulary, self.teacher_vocabulary = vocabulary_of(tokenizer), vocabulary_of(theirs)
        self.take_teacher(model)

    def teacher_row(self, index: int) -> Row:
        """See `LiveTeacherStage`."""
        return Row(self.numbers("teacher_context", index), self.numbers("teacher_completion", index))

    def kernel_of(self, indices: Sequence[int], batch: TokenBatch, teacher_hidden_NH: Tensor) -> Kernel:
        """See `LiveTeacherStage`."""
        return self.kernel(batch, teacher_hidden_NH, self.partners_of(indices))

    def partners_of(self, indices: Sequence[int]) -> Tensor:
        """For each of the student's tokens of some examples the row of the teacher's hidden states, or −1; [N]."""
        lengths = [len(self.numbers("teacher_completion", i)) for i in indices]
        firsts = [0, *accumulate(lengths)][: len(lengths)]
        places = [
            first + at if at >= 0 else -1
            for first, i in zip(firsts, indices, strict=True)
            for at in self.numbers("partners", i)
        ]
        return torch.tensor(places, device=self.device)

    def kernel(self, batch: TokenBatch, teacher_hidden_NH: Tensor, partners_N: Tensor) -> Kernel:
        """The loss of some of a batch's completion tokens; metrics `cross_entropy`, `uld`, `aligned_share`."""
        teacher_UH, vocabulary = self.teacher.head_VH, self.teacher_vocabulary

        def part(logits_CV: Tensor, rows: slice) -> Part:
            paired_M = (partners_N[rows] >= 0).nonzero().flatten()
            return uld_part(
                logits_CV,
                project(teacher_hidden_NH[partners_N[rows][paired_M]], teacher_UH, vocabulary, precise=True),
                paired_M,
                batch.weights_N[rows],
                batch.targets_N[rows],
                uld_weight=self.job.uld_weight,
            )

        return Kernel(part, precise=True, vocabulary=self.vocabulary)


def token_starts(tokenizer: Tokenizer, text: str) -> list[int]:
    """The character before which each token of a text begins, and the end-of-turn token after it.

    −1 for a token that begins within a character. A token begins where the one before it ended, since some tokenizers
    leave the blank before a word out of its extent. Raises JobError for a tokenizer that cannot tell.
    """
    try:
        extents = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    except NotImplementedError as error:
        raise JobError('divergence = "uld" needs tokenizers that tell where a token stands (fast ones)') from error
    ends = [0, *(end for _, end in extents)]
    begins = [*(begin for begin, _ in extents), len(text)]
    return [end if begin >= end else -1 for begin, end in zip(begins, ends, strict=True)]


def partners(student: Sequence[int], teacher: Sequence[int]) -> list[int]:
    """For each of the student's tokens the teacher's token that begins at the same character, or −1.

    The end-of-turn tokens, the last of both, are partners. A character before which several tokens of one side begin
    (some stand for no text) has none.
    """
    often, at = Counter(student[:-1]), Counter(teacher[:-1])
    place = {start: index for index, start in enumerate(teacher[:-1]) if start >= 0 and at[start] == 1}
    return [place.get(start, -1) if often[start] == 1 else -1 for start in student[:-1]] + [len(teacher) - 1]
