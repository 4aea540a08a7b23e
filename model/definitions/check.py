"""Every loss, advantage and measure beside its published definition, on the same random tensors.

Ours runs in float32, as it trains; the definition in float64 (`published.py`). A row agrees where the largest
difference of the values, relative to the largest value (to 0.1 where that is smaller: a loss whose terms cancel), and
the difference of each gradient, relative to its norm, lie within the row's tolerance. Rounding costs some 1e-7, another
definition mostly some 1e-2; an epsilon of 1e-6 in a divisor would not show. Nor does this show what bfloat16 costs
(tests/model/losses/test_head.py does).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import torch
from torch import Tensor

from model.advantages import Advantage, group_advantages
from model.definitions import ours, published
from model.definitions.ours import LENGTHS, MAX_LENGTH, Inputs, Outcome
from model.losses.grpo import Objective
from model.losses.kl import Divergence
from model.losses.kl_estimators import KLEstimator, KLPlace
from model.losses.mismatch import Mismatch, sampler_weights
from model.losses.normalise import Normalise
from model.metrics import pass_at_k
from model.training.rewards import overlong_penalty

TOLERANCE = 1e-5  # relative; float32's unit roundoff is 6e-8, and a gradient sums hundreds of terms
EXACT = 1e-12  # for what is computed in float64 on both sides
BETA = 0.04  # weight of a KL penalty
JSD_BETA = 0.3


@dataclass(frozen=True)
class Check:
    """One row: what it is, where it is defined, and both sides of it."""

    name: str
    source: str
    ours: Callable[[], Outcome]
    published: Callable[[], Outcome]
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class Row:
    """A check that was carried out; where there are several values, their root mean square."""

    name: str
    source: str
    ours: float
    published: float
    difference: float  # of values, relative
    gradient: float | None  # difference of gradients, relative; None: nothing to differentiate
    tolerance: float
    agrees: bool = field(init=False)

    def __post_init__(self) -> None:
        worst = max(self.difference, self.gradient or 0.0)
        object.__setattr__(self, "agrees", worst <= self.tolerance)  # nan does not


def check_losses(seed: int = 0, vocabulary: int = 512) -> list[Row]:
    """All rows, on inputs that depend on the seed."""
    return [compare(check) for check in checks(ours.draw(seed, vocabulary))]


def compare(check: Check) -> Row:
    """Carries out a check."""
    mine, theirs = check.ours(), check.published()
    gradients = [
        _relative(m, t, torch.linalg.vector_norm) for m, t in zip(mine.gradients, theirs.gradients, strict=True)
    ]
    return Row(
        check.name,
        check.source,
        _shown(mine.value),
        _shown(theirs.value),
        _relative(mine.value, theirs.value, _largest, least=0.1),
        max(gradients) if gradients else None,
        check.tolerance,
    )


def _shown(value: Tensor) -> float:
    return (value.double().square().mean().sqrt() if value.dim() else value).item()


def _relative(mine: Tensor, theirs: Tensor, size: Callable[[Tensor], Tensor], least: float = 1e-30) -> float:
    """Size of the difference over the size of what it should be."""
    return (size(mine.double() - theirs.double()) / size(theirs.double()).clamp_min(least)).item()


def _largest(values: Tensor) -> Tensor:
    return values.abs().max()


def table(rows: Sequence[Row]) -> str:
    """The rows as text, those that differ marked, with a last line that counts them."""
    width = max(len(row.name) for row in rows)
    lines = [
        f"{'':8}{'what':{width}}  {'ours':>12}{'published':>12}{'differs by':>12}{'gradient':>10}{'limit':>8}  source"
    ]
    for row in rows:
        gradient = "" if row.gradient is None else f"{row.gradient:.1e}"
        mark = "" if row.agrees else "DIFFERS"
        numbers = f"{row.ours:12.6f}{row.published:12.6f}{row.difference:12.1e}{gradient:>10}{row.tolerance:8.0e}"
        lines.append(f"{mark:8}{row.name:{width}}  {numbers}  {row.source}")
    differing = sum(not row.agrees for row in rows)
    lines.append(f"{len(rows)} definitions: " + (f"{differing} DIFFER" if differing else "all agree"))
    return "\n".join(lines)


def checks(inputs: Inputs) -> list[Check]:
    """The rows, in the order of the table."""
    parts = (
        _cross_entropy,
        _distances,
        _two_vocabularies,
        _log_probs,
        _clipped_objectives,
        _weighted_objectives,
        _token_sequence_objective,
        _sampled_by_an_engine,
        _penalties,
        _advantages,
        _values,
        _measures,
    )
    return [check for part in parts for check in part(inputs)]


# --- the two sides' common ground ------------------------------------------------------------------------------------


def by_autograd(inputs: Inputs, loss: Callable[[Tensor], Tensor]) -> Outcome:
    """A loss of all logits in float64, with the gradients of hidden states and head."""
    leaves = tuple(each.double().requires_grad_() for each in (inputs.hidden_NH, inputs.weight_VH))
    value = loss(leaves[0] @ leaves[1].T)
    return Outcome(value.detach(), torch.autograd.grad(value, leaves))


def completions(values_N: Tensor) -> tuple[Tensor, ...]:
    """Per-token values cut into one vector per completion."""
    return torch.split(values_N, list(LENGTHS))


def against_autograd(
    name: str, source: str, inputs: Inputs, mine: Callable[[Inputs], Outcome], loss: Callable[[Tensor], Tensor]
) -> Check:
    """A row whose definition is a loss of all logits."""
    return Check(name, source, partial(mine, inputs), partial(by_autograd, inputs, loss))


def against_values(name: str, source: str, mine: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> Check:
    """A row of plain values."""
    return Check(name, source, lambda: Outcome(mine), lambda: Outcome(theirs), tolerance)


MEANS: dict[Normalise, Callable[[Sequence[Tensor]], Tensor]] = {
    Normalise.TOKEN: published.token_mean,
    Normalise.SEQUENCE: published.sequence_mean,
    Normalise.CONSTANT: partial(published.constant_mean, max_length=MAX_LENGTH),
}


# --- the rows --------------------------------------------------------------------------------------------------------


def _cross_entropy(inputs: Inputs) -> Iterator[Check]:
    sources = {
        Normalise.TOKEN: "mean over all tokens; weights of DAPO, arXiv:2503.14476, eq. 8",
        Normalise.SEQUENCE: "DeepSeekMath, arXiv:2402.03300, eq. 6: E[(1/|o|) sum_t log pi(o_t)]",
        Normalise.CONSTANT: "weights of Dr. GRPO, arXiv:2503.20783, its listing",
    }

    def loss(logits_NV: Tensor, normalise: Normalise) -> Tensor:
        return MEANS[normalise]([-each for each in completions(published.log_probs(logits_NV, inputs.targets_N))])

    for normalise, source in sources.items():
        mine = partial(ours.cross_entropy, normalise=normalise)
        yield against_autograd(
            f"cross-entropy, normalise = {normalise}", source, inputs, mine, partial(loss, normalise=normalise)
        )


def _distances(inputs: Inputs) -> Iterator[Check]:
    sources = {
        Divergence.FORWARD: "KL(p||q), Kullback and Leibler 1951",
        Divergence.REVERSE: "KL(q||p); MiniLLM, arXiv:2306.08543, eq. 1, per token",
        Divergence.JSD: "GKD, arXiv:2306.13649, eq. 1",
    }
    hinton = "; tau^2: Hinton et al., arXiv:1503.02531, eq. 1 and the end of section 2"

    def distance(logits_NV: Tensor, kind: Divergence, temperature: float) -> Tensor:
        p_NV = published.probabilities(inputs.teacher_NV.double(), temperature)
        q_NV = published.probabilities(logits_NV, temperature)
        distance_N = {
            Divergence.FORWARD: lambda: published.kl(p_NV, q_NV),
            Divergence.REVERSE: lambda: published.kl(q_NV, p_NV),
            Divergence.JSD: lambda: published.jsd(p_NV, q_NV, JSD_BETA),
        }[kind]()
        return temperature**2 * distance_N.mean()

    for (kind, source), temperature in product(sources.items(), (1.0, 2.0)):
        name = f"{kind} KL" if kind is not Divergence.JSD else f"generalised JSD, beta {JSD_BETA}"
        softened = "" if temperature == 1 else f", tau {temperature:.0f}"
        mine = partial(ours.divergence, kind=kind, beta=JSD_BETA, temperature=temperature)
        loss = partial(distance, kind=kind, temperature=temperature)
        yield against_autograd(name + softened, source + (hinton if softened else ""), inputs, mine, loss)

    def stored(logits_NV: Tensor, k: int) -> Tensor:
        p_NV, q_NV = published.probabilities(inputs.teacher_NV.double()), published.probabilities(logits_NV)
        return published.top_k_kl(p_NV, q_NV, inputs.teacher_NV.topk(k).indices).mean()

    for k in (1, 8, 64, inputs.teacher_NV.shape[-1]):
        source = "KL of k+1 classes; DistillKit's and TRL's tail bucket (no paper)"
        yield against_autograd(f"top-{k} KL with tail", source, inputs, partial(ours.top_k, k=k), partial(stored, k=k))


def _two_vocabularies(inputs: Inputs) -> Iterator[Check]:
    teacher_NV, weight = inputs.teacher_NV, 1.5
    vocabulary = teacher_NV.shape[-1]

    def loss(logits_NV: Tensor, teacher_NU: Tensor) -> Tensor:
        distance_N = published.uld(published.probabilities(teacher_NU.double()), published.probabilities(logits_NV))
        every_other_N = 1 - torch.arange(len(logits_NV)) % 2
        surprise_N = -published.log_probs(logits_NV, inputs.targets_N)
        return (surprise_N + weight * every_other_N * distance_N).mean()

    for name, teacher_NU in (
        ("a smaller", teacher_NV[:, : vocabulary * 3 // 4]),
        ("a larger", torch.cat([teacher_NV, teacher_NV[:, : vocabulary // 4] - 1], dim=-1)),
    ):
        yield against_autograd(
            f"ULD, {name} vocabulary's teacher",
            "arXiv:2402.12030, eq. 4-5, lambda 1.5; beside every other token",
            inputs,
            partial(ours.uld, teacher_NU=teacher_NU, uld_weight=weight),
            partial(loss, teacher_NU=teacher_NU),
        )


def _log_probs(inputs: Inputs) -> Iterator[Check]:
    logits_NV, targets_N = inputs.logits.double(), inputs.targets_N
    source = "p_v = exp(z_v/tau) / sum_u exp(z_u/tau)"
    for temperature in (1.0, 0.7):
        theirs = published.log_probs(logits_NV, targets_N, temperature)
        yield Check(
            f"chosen log-probs, tau {temperature}",
            source,
            partial(ours.log_probs, inputs, temperature),
            partial(Outcome, theirs),
        )

        def mean(logits_NV: Tensor, temperature: float) -> Tensor:
            return published.log_probs(logits_NV, targets_N, temperature).mean()

        yield against_autograd(
            f"chosen log-probs' mean, tau {temperature}",
            source,
            inputs,
            partial(ours.mean_log_prob, temperature=temperature),
            partial(mean, temperature=temperature),
        )
    yield Check(
        "entropy",
        "H = -sum_v p_v log p_v (Shannon)",
        partial(ours.entropy, inputs),
        lambda: Outcome(published.entropy(logits_NV)),
    )


def _spread(inputs: Inputs, kind: Advantage) -> Tensor:
    """Our advantages, one for each token."""
    return inputs.per_token(group_advantages(inputs.rewards_B[None], kind)[0])


def _new(inputs: Inputs, logits_NV: Tensor) -> tuple[Tensor, ...]:
    """Log-probabilities of the policy that is trained, by completion."""
    return completions(published.log_probs(logits_NV, inputs.targets_N))


def _clipped_objectives(inputs: Inputs) -> Iterator[Check]:
    old, advantages = completions(inputs.old_N.double()), partial(_spread, inputs)
    grpo_B = published.grpo_advantages(inputs.rewards_B.double())
    centred_B = published.dr_grpo_advantages(inputs.rewards_B.double())

    def clipped(logits_NV: Tensor, normalise: Normalise, advantages_B: Tensor, high: float, beta: float) -> Tensor:
        each = _new(inputs, logits_NV)
        spread = completions(inputs.per_token(advantages_B))
        losses = published.clipped_losses(each, old, spread, 0.2, high)
        penalties = [published.k3(n, r) for n, r in zip(each, completions(inputs.reference_N.double()), strict=True)]
        return MEANS[normalise]([loss + beta * k for loss, k in zip(losses, penalties, strict=True)])

    yield against_autograd(
        "GRPO objective",
        "DeepSeekMath, arXiv:2402.03300, eq. 3-4; A: R1, arXiv:2501.12948, eq. 3",
        inputs,
        partial(ours.policy, advantages_N=advantages(Advantage.GRPO), normalise=Normalise.SEQUENCE, kl_weight=BETA),
        partial(clipped, normalise=Normalise.SEQUENCE, advantages_B=grpo_B, high=0.2, beta=BETA),
    )
    yield against_autograd(
        "DAPO objective",
        "arXiv:2503.14476, eq. 8-9 (one problem's group)",
        inputs,
        partial(ours.policy, advantages_N=advantages(Advantage.GRPO), normalise=Normalise.TOKEN, clip_high=0.28),
        partial(clipped, normalise=Normalise.TOKEN, advantages_B=grpo_B, high=0.28, beta=0.0),
    )
    yield against_autograd(
        "Dr. GRPO objective",
        "arXiv:2503.20783, section 3.2, over a constant length as in its listing",
        inputs,
        partial(ours.policy, advantages_N=advantages(Advantage.DR_GRPO), normalise=Normalise.CONSTANT),
        partial(clipped, normalise=Normalise.CONSTANT, advantages_B=centred_B, high=0.2, beta=0.0),
    )


def _weighted_objectives(inputs: Inputs) -> Iterator[Check]:
    old, advantages = completions(inputs.old_N.double()), partial(_spread, inputs)
    grpo_B = published.grpo_advantages(inputs.rewards_B.double())

    yield against_autograd(
        "GSPO objective",
        "arXiv:2507.18071, eq. 5, 7",
        inputs,
        partial(
            ours.policy,
            advantages_N=advantages(Advantage.GRPO),
            normalise=Normalise.SEQUENCE,
            objective=Objective.GSPO,
            clip_low=0.05,
            clip_high=0.05,
        ),
        lambda logits_NV: published.gspo_loss(_new(inputs, logits_NV), old, grpo_B, 0.05, 0.05),
    )
    yield against_autograd(
        "CISPO objective",
        "MiniMax-M1, arXiv:2506.13585, eq. 4-5 (one problem's group)",
        inputs,
        partial(
            ours.policy,
            advantages_N=advantages(Advantage.GRPO),
            normalise=Normalise.TOKEN,
            objective=Objective.CISPO,
            clip_low=1.0,
        ),
        lambda logits_NV: published.token_mean(published.cispo_losses(_new(inputs, logits_NV), old, grpo_B, 1.0, 0.2)),
    )
    # On policy cispo's weight is 1: REINFORCE. A constant length of 1 leaves a sum over tokens, as in the paper.
    yield against_autograd(
        "RLOO objective",
        "arXiv:2402.14740, section 2.3, the RLOO estimator (after eq. 8)",
        inputs,
        partial(
            ours.policy,
            advantages_N=MAX_LENGTH * advantages(Advantage.RLOO),
            normalise=Normalise.CONSTANT,
            objective=Objective.CISPO,
            on_policy=True,
        ),
        lambda logits_NV: published.rloo_loss(_new(inputs, logits_NV), inputs.rewards_B.double()),
    )
    yield against_autograd(
        "online RFT objective",
        "DeepSeekMath, arXiv:2402.03300, eq. 11 (its gradient)",
        inputs,
        partial(
            ours.policy,
            advantages_N=advantages(Advantage.RFT),
            normalise=Normalise.SEQUENCE,
            objective=Objective.CISPO,
            on_policy=True,
        ),
        lambda logits_NV: published.online_rft_loss(_new(inputs, logits_NV), inputs.rewards_B),
    )


def _token_sequence_objective(inputs: Inputs) -> Iterator[Check]:
    """Advantages that differ within a completion, as a penalty in the reward makes them."""
    old_N, reference_N = inputs.old_N.double(), inputs.reference_N.double()
    paid_N = inputs.per_token(published.grpo_advantages(inputs.rewards_B.double()))
    paid = completions(paid_N - BETA * published.k1(old_N, reference_N))

    def loss(logits_NV: Tensor) -> Tensor:
        return published.gspo_token_loss(_new(inputs, logits_NV), completions(old_N), paid, 0.05, 0.05)

    mine = partial(
        ours.policy,
        advantages_N=_spread(inputs, Advantage.GRPO),
        normalise=Normalise.SEQUENCE,
        objective=Objective.GSPO,
        clip_low=0.05,
        clip_high=0.05,
        kl_weight=BETA,
        kl_estimator=KLEstimator.K1,
        kl_in=KLPlace.REWARD,
    )
    yield against_autograd("GSPO-token objective", "arXiv:2507.18071, eq. 13-14", inputs, mine, loss)


def _sampled_by_an_engine(inputs: Inputs) -> Iterator[Check]:
    old_N, sampler_N = inputs.old_N.double(), inputs.sampler_N.double()
    spread_N = inputs.per_token(published.grpo_advantages(inputs.rewards_B.double()))
    corrections: dict[Mismatch, tuple[str, str, Tensor]] = {
        Mismatch.TIS: (
            "TIS, C 2",
            "Yao et al. 2025, Your efficient RL framework secretly brings you off-policy RL training",
            published.truncated_weights(old_N, sampler_N, 2.0),
        ),
        Mismatch.ICEPOP: (
            "IcePop, 0.5 to 2",
            "Ring-1T, arXiv:2510.18855, eq. 1-2",
            published.masked_weights(old_N, sampler_N, 0.5, 2.0),
        ),
    }

    def loss(logits_NV: Tensor, weights_N: Tensor) -> Tensor:
        new = _new(inputs, logits_NV)
        losses = published.clipped_losses(new, completions(old_N), completions(spread_N), 0.2, 0.2)
        weighed = [weights_T * each for weights_T, each in zip(completions(weights_N), losses, strict=True)]
        penalties = [published.k3(n, r) for n, r in zip(new, completions(inputs.reference_N.double()), strict=True)]
        return published.sequence_mean([each + BETA * k for each, k in zip(weighed, penalties, strict=True)])

    for mismatch, (name, source, weights_N) in corrections.items():
        mine_N = sampler_weights(inputs.old_N, inputs.sampler_N, mismatch, low=0.5, high=2.0).weights_N
        yield against_values(f"{name}: weights", source, mine_N, weights_N)
        mine = partial(
            ours.policy,
            advantages_N=_spread(inputs, Advantage.GRPO),
            normalise=Normalise.SEQUENCE,
            kl_weight=BETA,
            mismatch=mismatch,
        )
        yield against_autograd(f"{name}: GRPO objective", source, inputs, mine, partial(loss, weights_N=weights_N))


def _penalties(inputs: Inputs) -> Iterator[Check]:
    old_N, reference_N = inputs.old_N.double(), inputs.reference_N.double()
    advantages_B = group_advantages(inputs.rewards_B[None], Advantage.GRPO)[0]
    advantages_N = inputs.per_token(published.grpo_advantages(inputs.rewards_B.double()))
    formulas = {KLEstimator.K1: published.k1, KLEstimator.K2: published.k2, KLEstimator.K3: published.k3}
    placed = {KLPlace.LOSS: "", KLPlace.REWARD: "; in the reward: DeepSeekMath, arXiv:2402.03300, eq. 2"}

    def loss(logits_NV: Tensor, estimator: KLEstimator, place: KLPlace) -> Tensor:
        k, new_N = formulas[estimator], published.log_probs(logits_NV, inputs.targets_N)
        paid_N = advantages_N - (BETA * k(old_N, reference_N) if place is KLPlace.REWARD else 0.0)
        losses = published.clipped_losses([new_N], [old_N], [paid_N], 0.2, 0.2)[0]
        return (losses + (BETA * k(new_N, reference_N) if place is KLPlace.LOSS else 0.0)).mean()

    for estimator, place in product(KLEstimator, KLPlace):
        mine = partial(
            ours.policy,
            advantages_N=inputs.per_token(advantages_B),
            normalise=Normalise.TOKEN,
            kl_weight=BETA,
            kl_estimator=estimator,
            kl_in=place,
        )
        theirs = partial(loss, estimator=estimator, place=place)
        yield against_autograd(
            f"{estimator} in the {place}",
            "Schulman, Approximating KL divergence, 2020" + placed[place],
            inputs,
            mine,
            theirs,
        )


def _advantages(inputs: Inputs) -> Iterator[Check]:
    rewards_PG = torch.stack([inputs.rewards_B, inputs.rewards_B.flip(0).square()])
    formulas = {
        Advantage.GRPO: (published.grpo_advantages, "R1, arXiv:2501.12948, eq. 3"),
        Advantage.DR_GRPO: (published.dr_grpo_advantages, "arXiv:2503.20783, section 3.2"),
        Advantage.RLOO: (published.rloo_advantages, "arXiv:2402.14740, section 2.3, the RLOO estimator (after eq. 8)"),
    }
    for kind, (formula, source) in formulas.items():
        theirs = torch.stack([formula(group_G) for group_G in rewards_PG.double()])
        yield against_values(f"{kind} advantages", source, group_advantages(rewards_PG, kind), theirs)


def _values(inputs: Inputs) -> Iterator[Check]:
    schulman, old = "Schulman et al., arXiv:1506.02438, eq. 16", completions(inputs.old_N.double())

    def advantages(gae_lambda: float, discount: float = 1.0) -> Tensor:
        parts = zip(old, *map(completions, (inputs.reference_N, inputs.old_values_N)), inputs.rewards_B, strict=True)
        found = []
        for old_T, reference_T, values_T, reward in parts:
            rewards_T = -BETA * published.k1(old_T, reference_T.double())
            rewards_T[-1] += reward
            found.append(published.gae(rewards_T, values_T.double(), discount, gae_lambda))
        return torch.cat(found)

    for discount, gae_lambda in ((1.0, 1.0), (1.0, 0.0), (0.99, 0.95)):
        mine = ours.value_advantages(inputs, discount, gae_lambda, BETA)
        name = f"GAE, gamma {discount}, lambda {gae_lambda}"
        yield against_values(name, schulman + "; KL in the reward per token", mine, advantages(gae_lambda, discount))

    def objective(logits_NV: Tensor) -> Tensor:
        new = completions(published.log_probs(logits_NV, inputs.targets_N))
        return published.token_mean(published.clipped_losses(new, old, completions(advantages(0.95)), 0.2, 0.2))

    yield against_autograd(
        "PPO objective",
        "arXiv:1707.06347, eq. 7",
        inputs,
        partial(ours.policy, advantages_N=ours.value_advantages(inputs, 1.0, 0.95, BETA), normalise=Normalise.TOKEN),
        objective,
    )
    returns_N = advantages(0.95) + inputs.old_values_N

    def squares(clip: float) -> Outcome:
        values_N = inputs.values_N.double().requires_grad_()
        loss = published.value_losses(values_N, inputs.old_values_N.double(), returns_N, clip).mean()
        return Outcome(loss.detach(), torch.autograd.grad(loss, values_N))

    for clip, source in (
        (math.inf, "arXiv:1707.06347, eq. 9"),
        (0.5, "OpenAI baselines; Huang et al. 2022 (no equation)"),
    ):
        name = "value loss" if clip == math.inf else f"value loss, clip {clip}"
        mine_by = partial(ours.value_loss, inputs, returns_N.float(), 0.0 if clip == math.inf else clip)
        yield Check(name, source, mine_by, partial(squares, clip))


def _measures(_inputs: Inputs) -> Iterator[Check]:
    counts = [(n, c, k) for n in (1, 4, 16, 64) for c in range(n + 1) for k in (1, 2, 4, 8, 64) if k <= n]
    lengths = range(1, 20)
    yield against_values(
        "overlong shaping",
        "DAPO, arXiv:2503.14476, eq. 13",
        torch.tensor([overlong_penalty(length, 16, 4) for length in lengths]).double(),
        torch.tensor([published.overlong_reward(length, 16, 4) for length in lengths]).double(),
        EXACT,
    )
    yield against_values(
        "pass@k",
        "Chen et al., arXiv:2107.03374, eq. 1",
        torch.tensor([pass_at_k(*count) for count in counts], dtype=torch.float64),
        torch.tensor([published.pass_at_k(*count) for count in counts], dtype=torch.float64),
        EXACT,
    )
