"""On-policy distillation: the student writes, and at each of its own tokens is drawn to the teacher's distribution.

GKD (arXiv:2306.13649) with λ = 1; MiniLLM (arXiv:2306.08543) for the reverse KL. The distance is the full one over the
vocabulary, as in `distill.py`; the gradient does not go through the sampling, as GKD has it: which tokens were drawn
is given. So no reward is estimated, and tokens of older weights (`rollouts_ahead`) need no correction: they are other
places at which the same distance is taken. The teacher may see another prompt, with worked turns: context
distillation on the student's own texts. A completion that the token limit cut teaches like any other.

Axes: B rollouts of a step, N their completion tokens, H the teacher's hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from model.losses.normalise import token_weights
from model.records import Problem, TaughtProblem
from model.training.data import Row, Tokenizer, collate, lengths_of, tokenize
from model.training.distill import PrefixedModel, divergence_kernel, require_same_tokens, shared_prefix, vocabulary_of
from model.training.forward import Model
from model.training.job import OnPolicyJob
from model.training.load import load_frozen
from model.training.parallel import World
from model.training.rollout_stage import Reward, RolloutStage, completion_metrics
from model.training.rollouts import Rollout, Rollouts
from model.training.step import MicroBatch, StepWork


class OnPolicyStage(RolloutStage):
    """Rollouts, and a live teacher's distributions at their tokens."""

    job: OnPolicyJob
    problem_kind = TaughtProblem

    def __init__(
        self,
        job: OnPolicyJob,
        model: Model,
        tokenizer: Tokenizer,
        rollouts: Rollouts,
        world: World,
        reward: Reward | None = None,
    ) -> None:
        super().__init__(job, model, rollouts, world)
        self.reward = reward
        teacher, theirs = load_frozen(job.teacher, job, world)
        require_same_tokens(tokenizer, theirs, [problem.prompt for problem in self.problems[:100]])
        self.vocabulary, self.end = vocabulary_of(tokenizer), tokenizer.eos_token_id
        self.teacher_contexts = {
            problem: tokenize(tokenizer, teacher_prompt(problem) + job.prefill) for problem in self.problems
        }
        shared = shared_prefix(list(self.teacher_contexts.values()))
        self.teacher, self.shared = PrefixedModel(teacher, shared, world.device), len(shared)

    def prepare(self, step: int) -> StepWork:
        """Samples the step's rollouts; the teacher reads them."""
        chosen, rollouts, synced = self.step_rollouts(step)
        metrics = {**completion_metrics(rollouts), **synced, **self.paid(rollouts, chosen)}
        return StepWork(self.micro_batches(rollouts, chosen), metrics=metrics)

    def paid(self, rollouts: Sequence[Rollout], chosen: Sequence[Problem]) -> Mapping[str, float]:
        """The mean reward of those that could be judged: it teaches nothing, but shows where the student gets to."""
        rewards = self.rewarded(self.reward, rollouts, chosen) if self.reward else []
        judged = [reward for reward in rewards if not math.isnan(reward)]
        return {"reward": sum(judged) / len(judged)} if judged else {}

    def micro_batches(self, rollouts: Sequence[Rollout], chosen: Sequence[Problem]) -> list[MicroBatch]:
        """This process's rollouts, with the teacher's last hidden states at their tokens."""
        rows = [up_to_unknown(rollout.row, self.vocabulary, self.end) for rollout in rollouts]
        weights = token_weights(lengths_of(rows), self.job.normalise, self.job.max_tokens).tolist()
        return [
            self._micro_batch([rows[b] for b in pack], [weights[b] for b in pack], [chosen[b] for b in pack])
            for pack in self.packs([self._longer(row, problem) for row, problem in zip(rows, chosen, strict=True)])
        ]

    def teacher_lengths(self) -> list[int]:
        """See `RolloutStage`."""
        return [len(context) - self.shared for context in self.teacher_contexts.values()]

    def _longer(self, row: Row, problem: Problem) -> Row:
        """The student's row, or where it is longer what the teacher reads beyond what all its prompts open with."""
        own = self.teacher_contexts[problem][self.shared :]
        return Row(own, row.completion) if len(own) > len(row.context) else row

    def _micro_batch(self, rows: Sequence[Row], weights: Sequence[float], chosen: Sequence[Problem]) -> MicroBatch:
        job, batch = self.job, collate(rows, weights, self.world.device)
        taught = [
            Row(self.teacher_contexts[problem], row.completion) for problem, row in zip(chosen, rows, strict=True)
        ]
        hidden_NH: Tensor = self.teacher.completion_hidden(taught)
        kernel = divergence_kernel(
            batch,
            hidden_NH,
            self.teacher.head_VH,
            self.vocabulary,
            job.divergence,
            beta=job.beta,
            temperature=job.divergence_temperature,
            own_text=True,
        )
        return MicroBatch(batch, kernel)


def teacher_prompt(problem: Problem) -> str:
    """The prompt as the teacher reads it: its own rendering, or the student's."""
    own = problem.teacher_prompt if isinstance(problem, TaughtProblem) else None
    return problem.prompt if own is None else own


def up_to_unknown(row: Row, vocabulary: int, end: int) -> Row:
    """The row up to the first token that is padding of the student's head, `end` in its place.

    The distance where that token was drawn is the teacher's to say like any other; what a model makes of it, not. The
    last token of a row is not read, so `end` only counts in the metrics.
    """
    unknown = next((at for at, token in enumerate(row.completion) if token >= vocabulary), None)
    return row if unknown is None else Row(row.context, [*row.completion[:unknown], end])
