"""Advantages of single tokens from a value model: generalised advantage estimation (arXiv:1506.02438), PPO's critic.

    δ_t = r_t + γ V_{t+1} − V_t                 V beyond a completion's last token is 0
    A_t = Σ_l (γλ)^l δ_{t+l} = δ_t + γλ A_{t+1}          (equation 16)
    R_t = A_t + V_t                             what the value model is drawn to

λ = 0 trusts the value model (A = δ), λ = 1 the rewards alone (R_t = Σ_l γ^l r_{t+l}). V_t is the value before token t
is written: what the value model says of the context up to the token before it. A completion that the token limit cut
ends like any other: its reward is the verifier's, and no value stands for what it might have become.

Axes: N completion tokens of all rows, one after another; B rows; T tokens of the longest.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_rewards(rewards_B: Tensor, penalties_N: Tensor, lengths_B: Tensor) -> Tensor:
    """r_t = −penalty_t, and the completion's reward on top at its last token, shape [N].

    Args:
        rewards_B: of whole completions.
        penalties_N: β·k at every token (zeros: the penalty stands elsewhere).
        lengths_B: |o_i| in tokens, at least 1; they sum to N.

    Source: DeepSeekMath, arXiv:2402.03300, equation 2 (InstructGPT, arXiv:2203.02155, equation 2, of whole texts).
    """
    last_B = lengths_B.cumsum(0) - 1
    return (-penalties_N).index_add(0, last_B, rewards_B.to(penalties_N))


def generalised_advantages(
    rewards_N: Tensor, values_N: Tensor, lengths_B: Tensor, *, discount: float, gae_lambda: float
) -> Tensor:
    """A at every token, summed in float64, in the values' type, shape [N]; log₂ T passes over a padded table.

    Args:
        rewards_N: r, from `token_rewards`.
        values_N: V, no gradient.
        lengths_B: |o_i| in tokens; they sum to N.
        discount: γ in [0, 1].
        gae_lambda: λ in [0, 1].
    """
    longest = max(lengths_B.tolist(), default=0)
    inside_BT = torch.arange(longest, device=lengths_B.device) < lengths_B[:, None]
    # Past a completion's end everything is 0, and so is what its last token looks ahead to.
    rewards_BT, values_BT = (_padded(each_N, inside_BT) for each_N in (rewards_N, values_N))
    sums_BT = rewards_BT + discount * _ahead(values_BT, 1) - values_BT  # δ; then of 2, 4, 8, … tokens
    reach = 1
    while reach < sums_BT.shape[1]:
        sums_BT = sums_BT + (discount * gae_lambda) ** reach * _ahead(sums_BT, reach)
        reach *= 2
    return sums_BT[inside_BT].to(values_N.dtype)


def _padded(values_N: Tensor, inside_BT: Tensor) -> Tensor:
    """One row per completion, zeros behind it, float64."""
    rows_BT = torch.zeros(inside_BT.shape, dtype=torch.float64, device=values_N.device)
    rows_BT[inside_BT] = values_N.double()
    return rows_BT


def _ahead(rows_BT: Tensor, by: int) -> Tensor:
    """What stands `by` tokens later in a row, zeros beyond its end."""
    return torch.cat([rows_BT[:, by:], torch.zeros_like(rows_BT[:, :by])], dim=1)


def whitened(advantages_N: Tensor, all_M: Tensor) -> Tensor:
    """(A − mean) / std, both of the advantages of all tokens of the global batch; where those are equal, 0.

    The std divides by M.

    Source: no equation; common in PPO (Huang et al., "The 37 implementation details of PPO", 2022). verl and TRL
    divide by N − 1 under the root and add 1e-8.
    """
    if all_M.max() == all_M.min():
        return torch.zeros_like(advantages_N)
    mean = all_M.mean()
    return (advantages_N - mean.to(advantages_N.device)) / (all_M - mean).square().mean().sqrt().item()


def explained_variance(values_N: Tensor, returns_N: Tensor) -> float:
    """1 − Var(R − V) / Var(R): 1 where the value model knows every return, 0 where a constant does as well.

    0 where all returns are equal.
    """
    spread = returns_N.var(correction=0).item()
    return 1 - (returns_N - values_N).var(correction=0).item() / spread if spread else 0.0
