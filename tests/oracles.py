"""
The objective written naively, from the paper and TRL's documentation: one sequence at a time, no padding, full logits.

Imports nothing from trl_fork and nothing from TRL.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, exp

import torch

from tests import naive_rules
from tests.naive_rules import Facts


@dataclass
class Rollout:
    """One completion: token ids, which of its tokens the model wrote, its reward, and its place in the batch."""

    prompt: list[int]
    completion: list[int]
    reward: float
    group: int
    row: int  # in generation order, over all processes
    valid: list[int] = field(default_factory=list)  # 1 = written by the model and counted; all of them by default

    def __post_init__(self):
        self.valid = self.valid or [1] * len(self.completion)


def log_probs_and_entropies(model, rollout: Rollout, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each completion token and entropy of its distribution, both `(len(completion),)`."""
    ids = torch.tensor([rollout.prompt + rollout.completion])
    # From the end: virtual tokens of an adapter stand before the prompt.
    logits = model(input_ids=ids, use_cache=False).logits[0, -len(rollout.completion) - 1 : -1].float() / temperature
    log_probs = torch.log_softmax(logits, -1)
    entropies = -(log_probs.exp() * log_probs).sum(-1)
    return log_probs.gather(1, torch.tensor(rollout.completion)[:, None])[:, 0], entropies


def informative_batch(rounds: list[list[Rollout]], num_generations: int, wanted: int) -> list[Rollout]:
    """
    What dynamic sampling trains on: the first `wanted` groups with spread in the order of generation, topped up with
    the first of the others; rows and groups numbered anew.
    """
    rows = [rollout for generated in rounds for rollout in generated]
    groups = [rows[i : i + num_generations] for i in range(0, len(rows), num_generations)]
    spread = [len({rollout.reward for rollout in group}) > 1 for group in groups]
    chosen = [i for i, keep in enumerate(spread) if keep][:wanted]
    chosen += [i for i, keep in enumerate(spread) if not keep][: wanted - len(chosen)]
    rows = [rollout for i in sorted(chosen) for rollout in groups[i]]
    return [
        Rollout(r.prompt, r.completion, r.reward, row // num_generations, row, r.valid) for row, r in enumerate(rows)
    ]


def advantages(rollouts: list[Rollout], scale: bool = True) -> list[float]:
    """`(R - mean) / (std + 1e-4)` within each group, standard deviation with `n - 1`; 0 for equal rewards."""
    result = []
    for rollout in rollouts:
        group = torch.tensor([r.reward for r in rollouts if r.group == rollout.group], dtype=torch.float64)
        if (group == group[0]).all():
            result.append(0.0)
        else:
            result.append(((rollout.reward - group.mean()) / (group.std() + 1e-4 if scale else 1)).item())
    return result


def forking_count_of(num_tokens: int, fraction: float) -> int:
    return ceil(Fraction(str(fraction)) * num_tokens)


def top(scores: dict[tuple[int, int], float], fraction: float) -> set[tuple[int, int]]:
    """Keys `(row, token)` of the `ceil(fraction * n)` largest scores; ties to the lower row, then token."""
    count = forking_count_of(len(scores), fraction)
    return set(sorted(scores, key=lambda key: (-scores[key], key))[:count])


def select(rollouts, scores, fraction: float, rule: str, pools: list[list[int]]) -> set[tuple[int, int]]:
    """
    Selected `(row, token)` pairs.

    Args:
        rollouts: All of them.
        scores: `{row: list of floats}`, entropies or, for `"random"`, priorities.
        fraction: rho.
        rule: `"high_entropy"`, `"low_entropy"` or `"random"`.
        pools: Rows of each pool.
    """
    by_row = {rollout.row: rollout for rollout in rollouts}
    selected = set()
    for pool in pools:
        valid = {
            (row, t): float(scores[row][t]) if rule != "random" else scores[row][t]
            for row in pool
            for t, ok in enumerate(by_row[row].valid)
            if ok
        }
        chosen = top(valid, fraction)
        selected |= set(valid) - chosen if rule == "low_entropy" else chosen
    return selected


def credit(rollouts, chain: list[dict], scores: dict[str, dict], pools: list[list[int]], row_advantages=()) -> dict:
    """
    Weights of `(row, token)` pairs under a chain of credit rules, before they are normalised.

    Args:
        rollouts: All of them.
        chain: Each rule is `{"weight": name of a score}`, the score itself as the weight; or `{"fraction": f, "score":
            name}` with optional `"complement"` and `"per_row"`: 1 on the top `ceil(f * n)` of what is left of a pool;
            or `{"kind": name}` with the parameters of a function of `naive_rules`.
        scores: `{name: {row: list of numbers}}`; `"position"` is made here.
        pools: Rows of each pool.
        row_advantages: Advantage of each row.
    """
    valid = {r.row: [t for t, ok in enumerate(r.valid) if ok] for r in rollouts}
    places = {row: {t: i for i, t in enumerate(tokens)} for row, tokens in valid.items()}
    scores = {**scores, "position": places}
    weights = {(row, t): 1.0 for row, tokens in valid.items() for t in tokens}
    for rule in chain:
        if "kind" in rule:
            parameters = {name: value for name, value in rule.items() if name != "kind"}
            left = [key for key, weight in weights.items() if weight]
            facts = Facts(left, scores, dict(enumerate(row_advantages)), {r.row: r.group for r in rollouts}, pools)
            given = dict.fromkeys(weights, 0.0) | getattr(naive_rules, rule["kind"])(facts, **parameters)
        elif "weight" in rule:
            given = {(row, t): float(scores[rule["weight"]][row][t]) for row, t in weights}
        else:
            given = dict.fromkeys(weights, 0.0)
            for pool in [[r.row] for r in rollouts] if rule.get("per_row") else pools:
                left = {
                    key: scores[rule["score"]][key[0]][key[1]] for key in weights if key[0] in pool and weights[key]
                }
                chosen = top(left, rule["fraction"])
                given |= dict.fromkeys(set(left) - chosen if rule.get("complement") else chosen, 1.0)
        weights = {key: weight * given[key] for key, weight in weights.items()}
    return {key: weight for key, weight in weights.items() if weight}


def gap_at_threshold(rollouts, scores, fraction: float, pools: list[list[int]]) -> float:
    """Smallest distance between a score just inside and just outside a pool's top set."""
    by_row = {rollout.row: rollout for rollout in rollouts}
    gaps = []
    for pool in pools:
        values = sorted((float(scores[row][t]) for row in pool for t, ok in enumerate(by_row[row].valid) if ok))
        count = forking_count_of(len(values), fraction)
        if 0 < count < len(values):
            gaps.append(values[-count] - values[-count - 1])
    return min(gaps)


def priority(seed: int, generation: tuple[int, ...], row: int, token: int) -> int:
    """SplitMix64 chained over what names the token, as a signed 64-bit integer."""

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    state = seed
    for part in (*generation, row, token):
        state = mix(state ^ part)
    return state - 2**64 if state >= 2**63 else state


def surrogate(ratio, log_prob, advantage, loss_type="dapo", low=0.2, high=0.28, delta=None):
    """TRL's per-token policy loss before any mask or mean."""
    if loss_type == "cispo":
        return -torch.clamp(ratio, max=high).detach() * advantage * log_prob
    if loss_type == "sapo":
        temperature = 1.0 if advantage > 0 else 1.05
        return -torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature * advantage
    clipped = torch.clamp(ratio, 1 - low, 1 + high)
    if delta is not None:
        ratio = torch.clamp(ratio, max=delta)
    return -torch.min(ratio * advantage, clipped * advantage)


def loss(
    model,
    rollouts: list[Rollout],
    row_advantages: dict[int, float],
    selected: set[tuple[int, int]] | dict[tuple[int, int], float],
    divisor: Callable[[list[Rollout]], float] | float,
    *,
    old_log_probs: dict[int, torch.Tensor] | None = None,
    row_divisor: Callable[[Rollout], float] = lambda rollout: 1.0,
    sequence_level: bool = False,
    reference=None,
    beta: float = 0.0,
    kl_divisor: float = 1.0,
    **surrogate_arguments,
):
    """
    Policy loss over selected tokens, divided by `divisor`, plus `beta` times the KL over all valid ones. A dictionary
    gives each of them a weight.

    `old_log_probs` maps a row to the log-probabilities at generation; without it the step is on policy.
    """
    total, kl = 0.0, 0.0
    weights = selected if isinstance(selected, dict) else dict.fromkeys(selected, 1.0)
    for rollout in rollouts:
        log_probs, _ = log_probs_and_entropies(model, rollout)
        old = log_probs.detach() if old_log_probs is None else old_log_probs[rollout.row]
        log_ratios = log_probs - old
        valid = torch.tensor(rollout.valid, dtype=torch.float32)
        if sequence_level:
            log_ratios = ((log_ratios * valid).sum() / valid.sum().clamp(min=1)).expand_as(log_ratios)
        for t in range(len(rollout.completion)):
            if (rollout.row, t) in weights:
                value = weights[rollout.row, t] * surrogate(
                    log_ratios[t].exp(), log_probs[t], row_advantages[rollout.row], **surrogate_arguments
                )
                total = total + value / row_divisor(rollout)
        if beta:
            with torch.no_grad():
                ref, _ = log_probs_and_entropies(reference, rollout)
            difference = ref - log_probs
            estimate = (difference.exp() - difference - 1) * log_ratios.exp()  # TRL's bias correction by the ratio
            kl = kl + (estimate * valid).sum()
    return total / divisor + beta * kl / kl_divisor


def balance_gap(
    rollout, log_probs, ref_log_probs, reward: float, beta: float, length_normalized: bool = True
) -> float:
    """`reward / beta - log(pi / pi_ref)` of a completion, over its valid tokens: the `log Z` that fits it alone."""
    differences = [(a - b).item() for a, b, ok in zip(log_probs, ref_log_probs, rollout.valid, strict=True) if ok]
    return reward / beta - sum(differences) / (len(differences) if length_normalized else 1)


def group_constants(
    rollouts, log_probs, ref_log_probs, rewards, beta, length_normalized=True, turns: int = 1
) -> dict[int, float]:
    """
    The mean gap of each row's group, of the completions of the same turn that have a valid token and a reward. By row.
    `beta` is one number, or one for each row.
    """
    gaps: dict[tuple[int, int], list[float]] = {}
    for r in rollouts:
        if any(r.valid) and rewards[r.row] is not None:
            own = beta[r.row] if isinstance(beta, dict) else beta
            gap = balance_gap(r, log_probs[r.row], ref_log_probs[r.row], rewards[r.row], own, length_normalized)
            gaps.setdefault((r.group, r.row % turns), []).append(gap)
    places = {r.row: gaps.get((r.group, r.row % turns)) for r in rollouts}
    return {row: sum(found) / len(found) for row, found in places.items() if found}


def mirror_target(start_log_probs, magnet_log_probs, taus: dict[int, float], eta: float) -> tuple[dict, dict]:
    """Log-probabilities of the reference of a mirror step, and the number that divides rewards. By row."""
    mixed = {
        row: (start_log_probs[row] + eta * tau * magnet_log_probs[row]) / (1 + eta * tau) for row, tau in taus.items()
    }
    return mixed, {row: (1 + eta * tau) / eta for row, tau in taus.items()}


def balance(
    model,
    rollouts: list[Rollout],
    rewards: dict[int, float | None],
    constants: dict[int, float],
    ref_log_probs: dict[int, torch.Tensor],
    divisor: float,
    *,
    beta: float | dict[int, float],
    length_normalized: bool = True,
    weights: dict[tuple[int, int], float] | None = None,
    old_log_probs: dict[int, torch.Tensor] | None = None,
    largest_ratio: float = 10.0,
) -> tuple[float, torch.Tensor, list[float], list[float]]:
    """
    Trajectory balance: `sum w residual^2 / divisor`, and a value with the gradient that is wanted: that of the loss,
    in which the gradient of the log-probability of a token is multiplied by its weight. Also the residuals and the
    importance ratios before they are clipped, of the completions that have a valid token and a reward.
    """
    value, surrogate, residuals, ratios = 0.0, torch.zeros(()), [], []
    for r in rollouts:
        if not any(r.valid) or rewards[r.row] is None:
            continue
        log_probs, _ = log_probs_and_entropies(model, r)
        own = beta[r.row] if isinstance(beta, dict) else beta
        gap = balance_gap(r, log_probs, ref_log_probs[r.row], rewards[r.row], own, length_normalized)
        residual = constants[r.row] - gap
        ratio = 1.0
        if old_log_probs is not None:
            moved = [(log_probs[t] - old_log_probs[r.row][t]).item() for t, ok in enumerate(r.valid) if ok]
            ratio = exp(sum(moved))
        scale = 2 * min(ratio, largest_ratio) * residual / (sum(r.valid) if length_normalized else 1) / divisor
        for t, ok in enumerate(r.valid):
            if ok:
                surrogate = (
                    surrogate + scale * (1.0 if weights is None else weights.get((r.row, t), 0.0)) * log_probs[t]
                )
        value += min(ratio, largest_ratio) * residual**2 / divisor
        residuals.append(residual)
        ratios.append(ratio)
    return value, surrogate, residuals, ratios


def naive_head(hidden, weight, bias, targets, temperature, softcap, scale):
    """Log-probabilities of the targets and entropies, in float64: hidden states `(rows, width)`, full logits."""
    logits = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_probs = (logits / temperature).log_softmax(-1)
    return log_probs.gather(-1, targets[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(-1)
