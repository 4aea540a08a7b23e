"""Log-probabilities of given tokens, in nats, reduced in float32 whatever the logits' type.

Axes: N completion tokens of all rows, one after another; V vocabulary.
"""

from __future__ import annotations

from torch import Tensor


def token_log_probs(logits_NV: Tensor, targets_N: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature)[target], nats, float32, shape [N].

    Written as logit − logsumexp, so that no [N, V] table of log-probabilities is kept.
    With a sampler at temperature ≠ 1, give the same temperature here: the policy is what was sampled from.
    """
    logits_NV = logits_NV.float() / temperature
    chosen_N = logits_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    return chosen_N - logits_NV.logsumexp(-1)
