"""What the papers define, written out from their formulas: whole tables, plain loops, float64, autograd for gradients.

Slow and naive on purpose, and none of it calls the code that trains: `check.py` lays the two side by side, and tests
use these as their definitions. `Completions` are per-token vectors cut into one per completion, o_1 … o_B; A_i is
completion i's advantage. An objective J is maximised in its paper; here it is the loss, −J.

Axes: B completions, G completions of one problem, N tokens of all completions, V vocabulary, K stored tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import comb

import torch
from torch import Tensor

Completions = Sequence[Tensor]  # B vectors, of |o_i| tokens each


def probabilities(logits_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """π_v = e^(z_v/τ) / Σ_u e^(z_u/τ), shape [N, V]."""
    exponentials_NV = torch.exp(logits_NV / temperature)
    return exponentials_NV / exponentials_NV.sum(-1, keepdim=True)


def log_probs(logits_NV: Tensor, targets_N: Tensor, temperature: float = 1.0) -> Tensor:
    """log π(o_n), nats, shape [N]."""
    probabilities_NV = probabilities(logits_NV, temperature)
    return torch.stack([torch.log(row_V[target]) for row_V, target in zip(probabilities_NV, targets_N, strict=True)])


def entropy(logits_NV: Tensor) -> Tensor:
    """H = −Σ_v π_v log π_v, nats, shape [N]."""
    probabilities_NV = probabilities(logits_NV)
    return -(probabilities_NV * torch.log(probabilities_NV)).sum(-1)


# --- means over a batch ----------------------------------------------------------------------------------------------


def token_mean(values: Completions) -> Tensor:
    """(1 / Σ_j |o_j|) Σ_i Σ_t ℓ_it: every token alike."""
    return torch.stack([each.sum() for each in values]).sum() / sum(len(each) for each in values)


def sequence_mean(values: Completions) -> Tensor:
    """(1/B) Σ_i (1/|o_i|) Σ_t ℓ_it: every completion alike."""
    return torch.stack([each.sum() / len(each) for each in values]).sum() / len(values)


def constant_mean(values: Completions, max_length: int) -> Tensor:
    """(1/B) Σ_i (1/L) Σ_t ℓ_it with a fixed length L."""
    return torch.stack([each.sum() / max_length for each in values]).sum() / len(values)


# --- distances between distributions ---------------------------------------------------------------------------------


def kl(p_NV: Tensor, q_NV: Tensor) -> Tensor:
    """KL(p‖q) = Σ_v p_v log(p_v / q_v), nats, shape [N]."""
    return (p_NV * torch.log(p_NV / q_NV)).sum(-1)


def jsd(p_NV: Tensor, q_NV: Tensor, beta: float) -> Tensor:
    """β KL(p ‖ βp + (1−β)q) + (1−β) KL(q ‖ βp + (1−β)q), nats, shape [N]."""
    mixture_NV = beta * p_NV + (1 - beta) * q_NV
    return beta * kl(p_NV, mixture_NV) + (1 - beta) * kl(q_NV, mixture_NV)


def top_k_kl(p_NV: Tensor, q_NV: Tensor, ids_NK: Tensor) -> Tensor:
    """KL of the k + 1 classes {each stored token, all others}, nats, shape [N]; no token outside: KL itself."""
    distances = []
    for p_V, q_V, ids_K in zip(p_NV, q_NV, ids_NK, strict=True):
        stored_ids = set(ids_K.tolist())
        others = [v for v in range(len(p_V)) if v not in stored_ids]
        rest_p, rest_q = p_V[others].sum(), q_V[others].sum()
        stored = (p_V[ids_K] * torch.log(p_V[ids_K] / q_V[ids_K])).sum()
        distances.append(stored + rest_p * torch.log(rest_p / rest_q) if others else stored)
    return torch.stack(distances)


def uld(p_NU: Tensor, q_NV: Tensor) -> Tensor:
    """Σ_i |p_(i) − q_(i)| of the sorted probabilities, the shorter vector padded with zeros, shape [N]."""
    longest = max(p_NU.shape[-1], q_NV.shape[-1])
    p_NW, q_NW = (
        torch.cat([each, torch.zeros(len(each), longest - each.shape[-1])], dim=-1).sort(-1).values
        for each in (p_NU, q_NV)
    )
    return (p_NW - q_NW).abs().sum(-1)


# --- policy losses ---------------------------------------------------------------------------------------------------


def clipped_gain(ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """min(ρ A, clip(ρ, 1−ε_low, 1+ε_high) A), PPO's clipped surrogate."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)


def k1(new_N: Tensor, reference_N: Tensor) -> Tensor:
    """log(π/π_ref), nats."""
    return torch.log(torch.exp(new_N) / torch.exp(reference_N))


def k2(new_N: Tensor, reference_N: Tensor) -> Tensor:
    """½ (log(π_ref/π))², nats."""
    return torch.log(torch.exp(reference_N) / torch.exp(new_N)) ** 2 / 2


def k3(new_N: Tensor, reference_N: Tensor) -> Tensor:
    """π_ref/π − 1 − log(π_ref/π), nats."""
    ratio_N = torch.exp(reference_N) / torch.exp(new_N)
    return (ratio_N - 1) - torch.log(ratio_N)


def clipped_losses(
    new: Completions, old: Completions, advantages: Completions, clip_low: float, clip_high: float
) -> list[Tensor]:
    """−min(ρ_it A_it, clip(ρ_it) A_it) with ρ = π_θ/π_old: of GRPO, DAPO, Dr. GRPO and PPO alike."""
    return [
        -clipped_gain(torch.exp(n) / torch.exp(o), a, clip_low, clip_high)
        for n, o, a in zip(new, old, advantages, strict=True)
    ]


def gspo_loss(new: Completions, old: Completions, advantages_B: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """−(1/B) Σ_i min(s_i A_i, clip(s_i) A_i) with s_i = (π_θ(o_i) / π_old(o_i))^(1/|o_i|)."""
    gains = []
    for n, o, advantage in zip(new, old, advantages_B, strict=True):
        ratio = (torch.exp(n.sum()) / torch.exp(o.sum())) ** (1 / len(n))
        gains.append(clipped_gain(ratio, advantage, clip_low, clip_high))
    return -torch.stack(gains).mean()


def gspo_token_loss(
    new: Completions, old: Completions, advantages: Completions, clip_low: float, clip_high: float
) -> Tensor:
    """−(1/B) Σ_i (1/|o_i|) Σ_t min(s_it A_it, clip(s_it) A_it), s_it = sg(s_i) π_θ(o_it) / sg(π_θ(o_it))."""
    losses = []
    for n, o, a in zip(new, old, advantages, strict=True):
        ratio = (torch.exp(n.sum()) / torch.exp(o.sum())) ** (1 / len(n))
        ratios_T = ratio.detach() * torch.exp(n) / torch.exp(n).detach()
        losses.append(-clipped_gain(ratios_T, a, clip_low, clip_high))
    return sequence_mean(losses)


def truncated_weights(old_N: Tensor, sampler_N: Tensor, most: float) -> Tensor:
    """min(π_old / π_sampler, C)."""
    ratios = [torch.exp(old) / torch.exp(sampler) for old, sampler in zip(old_N, sampler_N, strict=True)]
    return torch.stack([ratio if ratio < most else torch.full_like(ratio, most) for ratio in ratios])


def masked_weights(old_N: Tensor, sampler_N: Tensor, low: float, high: float) -> Tensor:
    """M(k) = k where α ≤ k ≤ β, else 0, of k = π_old / π_sampler."""
    ratios = [torch.exp(old) / torch.exp(sampler) for old, sampler in zip(old_N, sampler_N, strict=True)]
    return torch.stack([ratio if low <= ratio <= high else torch.zeros_like(ratio) for ratio in ratios])


def cispo_losses(
    new: Completions, old: Completions, advantages_B: Tensor, clip_low: float, clip_high: float
) -> list[Tensor]:
    """−sg(clip(ρ_it)) A_i log π_θ(o_it)."""
    losses = []
    for n, o, advantage in zip(new, old, advantages_B, strict=True):
        weight = (torch.exp(n) / torch.exp(o)).clamp(1 - clip_low, 1 + clip_high).detach()
        losses.append(-weight * advantage * n)
    return losses


def rloo_loss(new: Completions, rewards_B: Tensor) -> Tensor:
    """−(1/k) Σ_i (R_i − (1/(k−1)) Σ_{j≠i} R_j) log π_θ(o_i), whose gradient is the estimator."""
    advantages_B = rloo_advantages(rewards_B)
    return -torch.stack([a * n.sum() for a, n in zip(advantages_B, new, strict=True)]).mean()


def online_rft_loss(new: Completions, rewards_B: Tensor) -> Tensor:
    """−(1/B) Σ_i (1/|o_i|) Σ_t I(o_i) log π_θ(o_it), I(o) = 1 where the answer is right."""
    return -torch.stack([float(reward >= 1) * n.mean() for reward, n in zip(rewards_B, new, strict=True)]).mean()


# --- advantages, of one problem's group ------------------------------------------------------------------------------


def grpo_advantages(rewards_G: Tensor) -> Tensor:
    """(r_i − mean r) / std r."""
    mean = rewards_G.sum() / len(rewards_G)
    std = torch.sqrt(((rewards_G - mean) ** 2).sum() / len(rewards_G))
    return (rewards_G - mean) / std


def dr_grpo_advantages(rewards_G: Tensor) -> Tensor:
    """r_i − mean r."""
    return rewards_G - rewards_G.sum() / len(rewards_G)


def rloo_advantages(rewards_G: Tensor) -> Tensor:
    """r_i − (1/(k−1)) Σ_{j≠i} r_j."""
    others = [torch.cat([rewards_G[:i], rewards_G[i + 1 :]]) for i in range(len(rewards_G))]
    return torch.stack([r - rest.sum() / len(rest) for r, rest in zip(rewards_G, others, strict=True)])


# --- a value model's advantages and loss, of one completion --------------------------------------------------------


def gae(rewards_T: Tensor, values_T: Tensor, discount: float, gae_lambda: float) -> Tensor:
    """A_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} − V_t and V = 0 at the end."""
    count, values = len(rewards_T), [*values_T, torch.zeros(())]
    deltas = [rewards_T[t] + discount * values[t + 1] - values[t] for t in range(count)]
    return torch.stack(
        [
            torch.stack([(discount * gae_lambda) ** (u - t) * deltas[u] for u in range(t, count)]).sum()
            for t in range(count)
        ]
    )


def value_losses(values_N: Tensor, old_N: Tensor, returns_N: Tensor, clip: float) -> Tensor:
    """½ max((V − R)², (V_old + clip(V − V_old, −ε, ε) − R)²), shape [N]."""
    near_N = old_N + torch.clamp(values_N - old_N, -clip, clip)
    return torch.maximum((values_N - returns_N) ** 2, (near_N - returns_N) ** 2) / 2


# --- rewards and measures --------------------------------------------------------------------------------------------


def overlong_reward(length: int, limit: int, margin: int) -> float:
    """0 up to L−c; ((L−c) − |o|) / c up to L; −1 beyond it."""
    if length <= limit - margin:
        return 0.0
    if length <= limit:
        return ((limit - margin) - length) / margin
    return -1.0


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """1 − C(n−c, k) / C(n, k), in fractions."""
    return float(1 - Fraction(comb(samples - correct, k), comb(samples, k)))
