"""
Credit rules written naively from the papers: loops over tokens, Python's numbers. Imports nothing from trl_fork.

Every function takes [`Facts`] and gives weights `{(row, token): weight}` of the tokens that are left.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, exp, floor


@dataclass
class Facts:
    """Tokens `(row, token)` that earlier rules left, numbers by name and row, advantages, groups, pools of rows."""

    left: list[tuple[int, int]]
    scores: dict[str, dict]
    advantages: dict[int, float]
    groups: dict[int, int]
    pools: list[list[int]]

    def rows(self):
        """Row and its tokens, in order."""
        for row in sorted({row for row, _ in self.left}):
            yield row, sorted(t for r, t in self.left if r == row)

    def of_row(self, score, row, tokens):
        return [float(self.scores[score][row][t]) for t in tokens]


def window_shares(values, window=101, temperature=1.0):
    """Share of each number's exponential in those of its window, which is mirrored at the ends."""
    n, shares = len(values), []
    half = min((window - 1) // 2, n - 1)
    for t in range(n):
        total = 0.0
        for k in range(t - half, t + half + 1):
            mirrored = -k if k < 0 else 2 * (n - 1) - k if k > n - 1 else k
            total += exp(values[mirrored] / temperature)
        shares.append(exp(values[t] / temperature) / total)
    return shares


def local_entropy(facts, row, tokens, **settings):
    return window_shares(facts.of_row("entropy", row, tokens), **settings)


def proportional(facts, score="local_entropy", rows="positive", strength=1.0, **settings):
    weights = {}
    for row, tokens in facts.rows():
        values = local_entropy(facts, row, tokens, **settings) if score == "local_entropy" else None
        values = values or [max(value, 0.0) for value in facts.of_row(score, row, tokens)]
        total = sum(values)
        for t, value in zip(tokens, values, strict=True):
            weight = len(tokens) * value / total if total else 1.0
            if rows == "positive" and not facts.advantages[row] > 0:
                weight = 1.0
            weights[row, t] = 1 + strength * (weight - 1)
    return weights


def rank(facts, score="prompt_contrast", power=2.1507, strength=1.0):
    weights = {}
    for row, tokens in facts.rows():
        values = facts.of_row(score, row, tokens)
        ranks = [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]
        levels = [(r / len(values)) ** power for r in ranks]
        for t, level in zip(tokens, levels, strict=True):
            weights[row, t] = 1 + strength * (len(tokens) * level / sum(levels) - 1)
    return weights


def contrast_score(log_prob, contrast_log_prob):
    d = min(max(contrast_log_prob - log_prob, -20.0), 20.0)
    return min(exp(d) - d - 1, 10.0)


def interval(facts, low, high, score="relative_surprisal"):
    return {(row, t): float(low <= facts.scores[score][row][t] <= high) for row, t in facts.left}


def span(facts, pattern, missing="completion"):
    """
    `facts.scores` holds the `"text"` of each token, a whole number of characters, and which are `"valid"`, so that a
    match may begin there.
    """
    weights = {}
    for row, texts in facts.scores["text"].items():
        owners = [t for t, text in enumerate(texts) for _ in text]
        matches = [owners[match.start()] for match in re.finditer(pattern, "".join(texts))]
        matches = [t for t in matches if facts.scores["valid"][row][t]]
        for t in range(len(texts)):
            if (row, t) in facts.left:
                weights[row, t] = float(t >= matches[-1] if matches else missing == "completion")
    return weights


def shaped_advantage(advantage, entropy, alpha=0.4, kappa=2.0, strength=1.0):
    return advantage + strength * min(alpha * entropy, abs(advantage) / kappa)


def entropy_advantage(facts, **settings):
    """The shaped advantage over the advantage."""
    weights = {}
    for row, t in facts.left:
        advantage = facts.advantages[row]
        shaped = shaped_advantage(advantage, max(facts.scores["entropy"][row][t], 0.0), **settings)
        weights[row, t] = shaped / advantage if advantage else 1.0
    return weights


def spurious(facts, entropy_quantile, probability=0.002):
    weights = dict.fromkeys(facts.left, 1.0)
    for pool in facts.pools:
        keys = [key for key in facts.left if key[0] in pool]
        order = sorted(keys, key=lambda key: (-facts.scores["entropy"][key[0]][key[1]], key))
        for row, t in order[ceil((1 - Fraction(str(entropy_quantile))) * len(keys)) :]:
            if facts.advantages[row] > 0 and exp(-facts.scores["surprisal"][row][t]) < probability:
                weights[row, t] = 0.0
    return weights


def high_entropy_sum(values, top_tokens):
    return sum(sorted(values, reverse=True)[: ceil(Fraction(str(top_tokens)) * len(values))])


def rollouts(facts, keep=0.5, positives="high_entropy_sum", negatives="random", top_tokens=0.005):
    """`facts.scores["row_priority"]` holds a random number of each row."""

    def order(row, choice):
        if choice == "random":
            return (-facts.scores["row_priority"][row], row)
        total = high_entropy_sum(facts.of_row("entropy", row, tokens_of[row]), top_tokens)
        return (total if choice == "low_entropy_sum" else -total, row)

    tokens_of, kept = dict(facts.rows()), set()
    for group in {facts.groups[row] for row in tokens_of}:
        good = [row for row in tokens_of if facts.groups[row] == group and facts.advantages[row] > 0]
        bad = [row for row in tokens_of if facts.groups[row] == group and row not in good]
        size = len(good) + len(bad)
        wanted = max(floor(Fraction(str(keep)) * size + Fraction(1, 2)), 1)
        num_good = floor(Fraction(wanted * len(good), size) + Fraction(1, 2))
        num_good = min(max(num_good, 1 if good else 0), len(good))
        num_bad = min(max(wanted - num_good, 1 if bad else 0), len(bad))
        kept |= set(sorted(good, key=lambda row: order(row, positives))[:num_good])
        kept |= set(sorted(bad, key=lambda row: order(row, negatives))[:num_bad])
    return {(row, t): float(row in kept) for row, t in facts.left}
