"""Our own losses on the tensors of a check, by the way that training takes: the head's kernels, some rows at a time.

Axes: B completions (one problem's group), N tokens, C tokens of a chunk, H hidden size, V vocabulary, K stored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.gae import generalised_advantages, token_rewards
from model.losses.grpo import Objective, grpo_terms, sequence_ratios
from model.losses.head import Kernel, Part, head_gradients, project
from model.losses.kl import Divergence, divergence_part
from model.losses.kl_estimators import KLEstimator, KLPlace
from model.losses.log_probs import log_prob_part, softmax_and_entropy_, token_log_probs
from model.losses.mismatch import Mismatch, sampler_weights
from model.losses.normalise import Normalise, token_weights
from model.losses.sft import sft_part
from model.losses.top_k import top_k_part
from model.losses.uld import uld_part
from model.losses.value import value_terms

LENGTHS = (3, 17, 8, 1, 12, 6, 10, 7)  # |o_i|, tokens
MAX_LENGTH = 20  # tokens, of normalise = "constant"
_ROWS = 24  # of a chunk, so that cuts go through completions


@dataclass(frozen=True)
class Inputs:
    """What is drawn once and given to both sides, float32."""

    hidden_NH: Tensor
    weight_VH: Tensor
    teacher_NV: Tensor  # logits
    targets_N: Tensor
    old_N: Tensor  # log π_old of the targets, nats; ratios lie on both sides of a clip at 0.2
    reference_N: Tensor  # log π_ref
    rewards_B: Tensor
    values_N: Tensor  # of a value model
    old_values_N: Tensor
    sampler_N: Tensor  # log π of an engine; π_old over it lies on both sides of a half and of 2

    @property
    def lengths(self) -> Tensor:
        """|o_i|."""
        return torch.tensor(LENGTHS)

    @property
    def logits(self) -> Tensor:
        """The student's."""
        return self.hidden_NH @ self.weight_VH.T

    def per_token(self, values_B: Tensor) -> Tensor:
        """A completion's value at each of its tokens, shape [N]."""
        return values_B.repeat_interleave(self.lengths)

    def weights(self, normalise: Normalise) -> Tensor:
        """Weight of every token in the loss."""
        return self.per_token(token_weights(self.lengths, normalise, MAX_LENGTH))


@dataclass(frozen=True)
class Outcome:
    """A value (a loss, or a vector of them) and its gradients, if it has any."""

    value: Tensor
    gradients: tuple[Tensor, ...] = ()


def draw(seed: int, vocabulary: int, hidden: int = 32) -> Inputs:
    """Random inputs: logits and log-ratios of a spread that training meets."""
    generator, tokens = torch.Generator().manual_seed(seed), sum(LENGTHS)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    hidden_NH, weight_VH = normal(tokens, hidden), 2 * normal(vocabulary, hidden) / hidden**0.5
    targets_N = torch.randint(vocabulary, (tokens,), generator=generator)
    log_probs_N = token_log_probs(hidden_NH @ weight_VH.T, targets_N)
    return Inputs(
        hidden_NH=hidden_NH,
        weight_VH=weight_VH,
        teacher_NV=2 * normal(tokens, vocabulary),
        targets_N=targets_N,
        old_N=log_probs_N + 0.3 * normal(tokens),
        reference_N=log_probs_N + 0.5 * normal(tokens),
        rewards_B=torch.tensor([1.2, 0.0, 0.2, 1.0, 0.0, 0.2, 1.2, 0.7]),
        values_N=normal(tokens),
        old_values_N=normal(tokens),
        sampler_N=log_probs_N + normal(tokens),
    )


def by_head(inputs: Inputs, kernel: Kernel) -> Outcome:
    """A kernel's loss, with the gradients of hidden states and head."""
    found = head_gradients(inputs.hidden_NH, inputs.weight_VH, kernel, rows=_ROWS)
    assert found.weight_VH is not None, "the head is not frozen"
    return Outcome(torch.tensor(found.loss), (found.hidden_NH, found.weight_VH))


def cross_entropy(inputs: Inputs, normalise: Normalise) -> Outcome:
    """SFT's loss."""
    weights_N = inputs.weights(normalise)
    return by_head(inputs, Kernel(lambda logits_CV, rows: sft_part(logits_CV, inputs.targets_N[rows], weights_N[rows])))


def divergence(inputs: Inputs, kind: Divergence, beta: float, temperature: float) -> Outcome:
    """KL distillation's loss with a live teacher, every token alike."""
    weights_N = inputs.weights(Normalise.TOKEN)

    def part(logits_CV: Tensor, rows: slice) -> Part:
        teacher_CV, targets_C = inputs.teacher_NV[rows].clone(), inputs.targets_N[rows]
        return divergence_part(
            logits_CV, teacher_CV, weights_N[rows], kind, targets_C, beta=beta, temperature=temperature
        )

    return by_head(inputs, Kernel(part))


def top_k(inputs: Inputs, k: int) -> Outcome:
    """KL distillation's loss with a stored teacher, every token alike."""
    weights_N = inputs.weights(Normalise.TOKEN)
    log_probs_NK, ids_NK = inputs.teacher_NV.log_softmax(-1).topk(k)
    return by_head(
        inputs,
        Kernel(lambda logits_CV, rows: top_k_part(logits_CV, ids_NK[rows], log_probs_NK[rows], weights_N[rows])),
    )


def uld(inputs: Inputs, teacher_NU: Tensor, uld_weight: float) -> Outcome:
    """Cross-tokenizer distillation's loss, every token alike, a teacher's beside every other one."""
    weights_N = inputs.weights(Normalise.TOKEN)

    def part(logits_CV: Tensor, rows: slice) -> Part:
        paired_M = torch.arange(rows.start % 2, rows.stop - rows.start, 2)
        teacher_MU = teacher_NU[rows][paired_M]
        return uld_part(logits_CV, teacher_MU, paired_M, weights_N[rows], inputs.targets_N[rows], uld_weight=uld_weight)

    return by_head(inputs, Kernel(part))


def log_probs(inputs: Inputs, temperature: float) -> Outcome:
    """log π of the chosen tokens, by the pass without gradient."""
    logits_NV = project(inputs.hidden_NH, inputs.weight_VH, precise=True)
    return Outcome(token_log_probs(logits_NV, inputs.targets_N, temperature))


def mean_log_prob(inputs: Inputs, temperature: float) -> Outcome:
    """The same by the pass with gradient, averaged over tokens."""

    def loss(log_probs_C: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        return log_probs_C.sum() / len(inputs.targets_N), {}

    return by_head(
        inputs,
        Kernel(lambda logits_CV, rows: log_prob_part(logits_CV, inputs.targets_N[rows], loss, temperature)),
    )


def entropy(inputs: Inputs) -> Outcome:
    """GRPO's metric `entropy`."""
    logits_NV = project(inputs.hidden_NH, inputs.weight_VH, precise=True)
    return Outcome(softmax_and_entropy_(logits_NV)[1])


def policy(
    inputs: Inputs,
    advantages_N: Tensor,
    normalise: Normalise,
    *,
    on_policy: bool = False,
    objective: Objective = Objective.GRPO,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_weight: float = 0.0,
    kl_estimator: KLEstimator = KLEstimator.K3,
    kl_in: KLPlace = KLPlace.LOSS,
    mismatch: Mismatch | None = None,
) -> Outcome:
    """A policy loss of the GRPO family; `mismatch`: of what an engine sampled."""
    log_probs_N = log_probs(inputs, 1.0).value
    old_N = log_probs_N if on_policy else inputs.old_N
    ratios_N, weights_N = sequence_ratios(log_probs_N - old_N, inputs.lengths), inputs.weights(normalise)
    corrections_N = sampler_weights(old_N, inputs.sampler_N, mismatch).weights_N if mismatch else None

    def loss_at(rows: slice) -> Callable[[Tensor], tuple[Tensor, Mapping[str, Tensor]]]:
        def loss(log_probs_C: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
            terms = grpo_terms(
                log_probs_C,
                old_N[rows],
                inputs.reference_N[rows],
                advantages_N[rows],
                clip_low=clip_low,
                clip_high=clip_high,
                kl_weight=kl_weight,
                objective=objective,
                sequence_ratios_N=ratios_N[rows],
                kl_estimator=kl_estimator,
                kl_in=kl_in,
                sampler_weights_N=None if corrections_N is None else corrections_N[rows],
            )
            return (weights_N[rows] * terms.loss_N).sum(), {}

        return loss

    return by_head(
        inputs, Kernel(lambda logits_CV, rows: log_prob_part(logits_CV, inputs.targets_N[rows], loss_at(rows)))
    )


def value_advantages(inputs: Inputs, discount: float, gae_lambda: float, kl_weight: float) -> Tensor:
    """PPO's advantages, its rewards less a penalty by k1."""
    penalties_N = kl_weight * (inputs.old_N - inputs.reference_N)
    paid_N = token_rewards(inputs.rewards_B, penalties_N, inputs.lengths)
    return generalised_advantages(paid_N, inputs.old_values_N, inputs.lengths, discount=discount, gae_lambda=gae_lambda)


def value_loss(inputs: Inputs, returns_N: Tensor, clip: float) -> Outcome:
    """The value model's loss, every token alike, with the gradient of the values."""
    values_N = inputs.values_N.clone().requires_grad_()
    terms = value_terms(values_N, inputs.old_values_N, returns_N, clip=clip)
    value = (inputs.weights(Normalise.TOKEN) * terms.loss_N).sum()
    return Outcome(value.detach(), torch.autograd.grad(value, values_N))
