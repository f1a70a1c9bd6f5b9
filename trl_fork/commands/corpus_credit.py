"""Weights that a credit rule gives to the responses on the page of `trl-fork analyze`, from stored scores."""

import argparse
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from .._logging import logger
from ..analysis.score_store import ScoreStore
from ..credit import Chain, Signals, build_credit, credit_effect, normalise, pool_of, random_priorities, totals
from ..credit.pools import POOLS, is_at_loss_time
from ..data.yaml_values import json_value
from ..ranks import Ranks
from .corpus import Corpus


EXAMPLE = '{"top_fraction": {"fraction": 0.2}}'
SCOPES = tuple(name for name in POOLS if not is_at_loss_time(name))
# The signals that scores of a file, its tokens and a seed give; the advantages come beside them.
_SIGNALS = frozenset({"entropies", "log_probs", "completion_ids", "priorities"})
_PAGE_OF_TRAINING = "The page of a training run shows its weights: --fork_report_steps of trl-fork train"


class Weighed(NamedTuple):
    """
    Args:
        weights (`list[list[float]]`): Factors of the policy term by response and token, divided by the total weight.
        effect (`dict[str, Any]`): The section `credit` of `summary.json`.
    """

    weights: list[list[float]]
    effect: dict[str, Any]


def credit_rules(text: str) -> Chain:
    """
    The chain that an option names, as `--token_credit` of `trl-fork train` does.

    Raises:
        `argparse.ArgumentTypeError`: if there is none, or it needs what a file of responses does not give.
    """
    try:
        chain = build_credit(json_value(text, EXAMPLE) if text.lstrip()[:1] in ("{", "[") else text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("token_credit: ")) from error
    for rule in chain.rules:
        if missing := sorted(rule.needs - _SIGNALS):
            reason = "a file of responses does not give"
            if missing == ["contrast_log_probs"]:
                reason = "the log-probabilities after another prompt, which a file of responses does not have"
            raise argparse.ArgumentTypeError(
                f"{text}: the rule {rule.name} needs {' and '.join(missing)}, {reason}. {_PAGE_OF_TRAINING}"
            )
        if rule.pool is not None and rule.pool not in SCOPES:
            raise argparse.ArgumentTypeError(
                f"{text}: the rule {rule.name} takes the pool {rule.pool!r}, which exists only at the loss of a "
                f"training step. Give it {' or '.join(map(repr, SCOPES))}"
            )
    return chain


def group_advantages(corpus: Corpus) -> np.ndarray | None:
    """
    Advantages of all responses, as GRPO has them with `scale_rewards="group"`: the reward less the mean of its group,
    the responses to the same problem, over their standard deviation and 1e-4.

    Returns:
        `np.ndarray` of shape `(responses,)`: 0 where no reward is known, or of one response only. `None` if no problem
        has two responses with a reward.
    """
    rewards = np.array([np.nan if value is None else value for value in corpus.rewards], dtype=float)
    known = ~np.isnan(rewards)
    rewards, groups = rewards[known], np.array(corpus.problems)[known]
    sizes = np.maximum(np.bincount(groups, minlength=corpus.num_problems), 1)
    if not (sizes > 1).any():
        return None
    from_mean = rewards - (np.bincount(groups, rewards, len(sizes)) / sizes)[groups]
    deviations = np.sqrt(np.bincount(groups, from_mean**2, len(sizes)) / np.maximum(sizes - 1, 1))
    lowest, highest = np.full(len(sizes), np.inf), np.full(len(sizes), -np.inf)
    np.minimum.at(lowest, groups, rewards)
    np.maximum.at(highest, groups, rewards)
    # Equal rewards have advantage 0, which rounding of their mean need not give.
    advantages = np.zeros(len(known))
    advantages[known] = from_mean / (deviations[groups] + 1e-4) * (lowest < highest)[groups]
    return advantages


class _Watched(torch.Tensor):
    """A tensor that notices that it is read."""

    was_read = False

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.was_read = True
        return super().__torch_function__(func, types, args, kwargs or {})


def refuse_advantages(tokenizer, options: argparse.Namespace) -> None:
    """
    Refuse rules that read advantages, where there are none, before anything is sampled or scored.

    Raises:
        `ValueError`: naming the rule.
    """
    if rule := reader_of_advantages(tokenizer, options):
        raise ValueError(
            f"--token_credit: the rule {rule} reads the advantages of the responses, and no "
            "problem has two responses with a reward. Give several responses to a problem: with --num_samples, or "
            f"in a file, with `correct` or `reward` in each line. {_PAGE_OF_TRAINING}."
        )


def reader_of_advantages(tokenizer, options: argparse.Namespace) -> str | None:
    """
    Name of the first rule that reads advantages. No attribute of a rule says that it does: each is called with made-up
    scores, and with advantages that notice that they are read.
    """
    rules, shape = options.token_credit.rules, (4, 16)
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(shape, generator=generator)
    ids = torch.randint(len(tokenizer), shape, generator=generator)
    advantages = torch.tensor([-1.0, 1.0, -1.0, 1.0]).as_subclass(_Watched)
    for end in range(1, len(rules) + 1):
        _Watched.was_read = False
        groups = torch.arange(4) // 2
        first = Chain(rules[:end])
        _apply(first, torch.ones(shape), scores, -scores, ids, advantages, groups, tokenizer, options)
        if _Watched.was_read:
            return rules[end - 1].name
    return None


def weigh(store: ScoreStore, corpus: Corpus, tokenizer, options: argparse.Namespace) -> Weighed:
    """
    Weights of the responses on the page, which are the generation batch of the rules.

    Args:
        store ([`~analysis.score_store.ScoreStore`]): Scores of the model.
        corpus ([`Corpus`]): All responses; those to one problem are a group.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the responses.
        options (`argparse.Namespace`): Of `trl-fork analyze`.
    """
    shown = list(islice(store.read(corpus.read()), options.page_responses))
    lengths = [len(response.completion_ids) for response, _ in shown]
    mask = _padded([np.ones(length, dtype=np.float32) for length in lengths])
    everyone = group_advantages(corpus)
    advantages = torch.tensor(np.zeros(len(shown)) if everyone is None else everyone[: len(shown)]).float()
    if everyone is not None and not advantages.any() and (rule := reader_of_advantages(tokenizer, options)):
        logger.warning(
            f"--token_credit: the rule {rule} reads the advantages of the responses, and those of the page are all 0: "
            "the responses to each problem have equal rewards, so that the weights are those of a batch from which "
            "nothing is learned. Take responses of which some are right."
        )
    chain = options.token_credit
    credit, reported = _apply(
        chain,
        mask,
        _padded([scores.entropies for _, scores in shown]),
        _padded([scores.log_probs for _, scores in shown]),
        _padded([np.array(response.completion_ids, dtype=np.int64) for response, _ in shown]),
        advantages,
        torch.tensor(corpus.problems[: len(shown)]),
        tokenizer,
        options,
    )
    weights = normalise(credit.weights, *totals(credit, mask, Ranks()), "selected")
    effect = {
        "trained_on": chain.in_words,
        "num_responses": len(shown),
        "progress": options.token_credit_progress if chain.scheduled else None,
        "selected_fraction": (weights != 0).sum().item() / max(int(mask.sum()), 1),
        **credit_effect(weights, mask, advantages),
        "span_found": reported.get("span_found"),
    }
    return Weighed([row[:length].tolist() for row, length in zip(weights, lengths, strict=True)], effect)


def _apply(chain: Chain, mask, entropies, log_probs, ids, advantages, groups, tokenizer, options: argparse.Namespace):
    signals = Signals(
        mask,
        entropies=entropies,
        log_probs=log_probs,
        completion_ids=ids,
        priorities=random_priorities(options.seed, (0, 0, 0), 0, tuple(mask.shape)),
        advantages=advantages,
        groups=groups,
        progress=options.token_credit_progress,
        tokenizer=tokenizer,
    )
    credit = chain.apply(signals, pool_of(options.entropy_threshold_scope), Ranks())
    return credit, chain.metrics(signals, Ranks())


def _padded(rows: list[np.ndarray]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)
