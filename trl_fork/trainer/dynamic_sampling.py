"""
Training on groups of completions with a learning signal (DAPO, arXiv 2503.14476, section 3.2; paper section 5.2).

A group whose rewards are all equal has no advantage. Dynamic sampling drops it and generates for fresh prompts until
the batch is full of groups with an advantage, or the maximum number of rounds is reached.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import ProcessorMixin

from ._trl import TrainerMixin
from .context import FinalBatch, WithContext, context_of
from .groups import (
    choose_groups,
    draw_prompts,
    refill_multiple,
    refill_size,
    rows_without_signal,
    rows_without_spread,
)
from .metrics import LENGTH_METRICS, combine_rounds, reward_metrics, weighted_sum
from .reward_checks import deciding_column


@dataclass
class RefillStream:
    """
    Place of a run in its stream of fresh prompts.

    Args:
        drawn (`int`): Prompts taken from the stream so far, over all processes.
    """

    drawn: int = 0

    def state_dict(self) -> dict:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict) -> None:
        self.drawn = state["drawn"]


class DynamicSamplingMixin(WithContext, TrainerMixin):
    """
    Gives groups without a signal an advantage of exactly zero and, with `dynamic_sampling=True`, replaces them.

    Rounds of TRL's `_generate` and `_calculate_rewards` find the groups. TRL then makes its batch from them alone, so
    padding, normalisers, old log-probabilities and importance ratios are those of the final batch. Every rank has the
    rewards of all ranks and makes the same decision; completions move between ranks once, at the end. An override of
    these two methods in a subclass gets the final batch only.
    """

    def _init_dynamic_sampling(self):
        self._refills = self._resumable["refills"] = RefillStream()
        self._deciding_column = deciding_column(self.args, self.reward_func_names)

    _deciding_column: int | None = None  # column of the reward whose spread makes a group informative
    _rows_per_episode: int  # rows that stay on one rank
    _differs_from_trl: bool
    _take_extra_logs: Callable[..., dict[str, list]]
    _rewards: torch.Tensor | None = None  # (rows of all processes, reward functions), of the latest batch

    def _generate_and_score_completions(self, inputs):
        mode = "train" if self.model.training else "eval"
        with self._keeping_rewards() as kept:
            if mode == "train" and self.args.dynamic_sampling:
                output = self._generate_informative_groups(inputs)
            else:
                output = super()._generate_and_score_completions(inputs)
        self._rewards = rewards = kept[-1]
        self._warn_of_infinite_rewards(rewards)
        if self._differs_from_trl:
            size = self.num_generations if mode == "train" else self.num_generations_eval
            if self.multi_objective_aggregation == "sum_then_normalize":
                total = weighted_sum(rewards, self.reward_weights)
                rows = rows_without_signal(total, size, scale=self.scale_rewards == "group")
            else:
                rows = rows_without_spread(rewards, size)
            first = self.accelerator.process_index * len(inputs)
            advantages = output["advantages"]
            advantages[rows[first : first + len(inputs)]] = 0.0
            # TRL writes the largest float for an infinite advantage.
            advantages[advantages.abs() >= torch.finfo(advantages.dtype).max] = 0.0
        return output

    def _warn_of_infinite_rewards(self, rewards):
        infinite = rewards.isinf().any(0).tolist()
        if any(infinite) and self.accelerator.is_main_process:
            names = [name for name, found in zip(self.reward_func_names, infinite, strict=True) if found]
            self._warn_once(
                "infinite reward",
                f"Step {self.state.global_step}: an infinite reward of {names}. Its group has no finite advantage and "
                "is not trained on; neither is any later one of this kind. Return a large finite number, or None for "
                "a completion that cannot be scored.",
            )

    @contextmanager
    def _keeping_rewards(self):
        """Collects the result of `_calculate_rewards`, including the override of a subclass."""
        kept: list[torch.Tensor] = []
        calculate, own = self._calculate_rewards, vars(self).get("_calculate_rewards")

        def keep(*args):
            kept.append(calculate(*args))
            return kept[-1]

        vars(self)["_calculate_rewards"] = keep
        try:
            yield kept
        finally:
            del self._calculate_rewards
            if own is not None:  # somebody's patch of this object
                vars(self)["_calculate_rewards"] = own

    def _generate(self, prompts):
        final = context_of(self).final_batch
        if final is None or final.rows_given:
            return super()._generate(prompts)
        rows, final.rows_given = final.rows, True
        for name in {name for row in rows for name in row["logged"]}:
            self._pending_extra_logs[name] = [row["logged"].get(name) for row in rows]
        prompt_ids, completion_ids, tool_mask, completions, logprobs = (
            [row[key] for row in rows] for key in _GENERATED
        )
        # The rows' examples hold what a rollout function added in their round.
        return (
            prompt_ids,
            completion_ids,
            None if tool_mask[0] is None else tool_mask,
            completions,
            None if logprobs[0] is None else logprobs,
            {},
            None,
            [],
        )

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        final = context_of(self).final_batch
        if final is None or final.rewards_given:
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        final.rewards_given = True
        return final.rewards

    def _generate_informative_groups(self, inputs):
        num_ranks, size = self.accelerator.num_processes, self.num_generations
        wanted = len(inputs) * num_ranks // size
        multiple = refill_multiple(num_ranks, len(inputs), size, self._rows_per_episode)
        lengths: dict[str, list] = {name: [] for name in LENGTH_METRICS}
        rounds, rewards_of_rounds, informative = [], [], []
        while True:
            rows, round_rewards = self._generate_round(inputs)
            rounds.append(rows)
            rewards_of_rounds.append(round_rewards)
            for name, values in lengths.items():
                values.append(self._metrics["train"][name].pop())
            total = weighted_sum(round_rewards, self.reward_weights)
            # A group is kept for its advantage, whichever reward decides.
            empty = rows_without_signal(total, size, scale=self.scale_rewards == "group")
            if self._deciding_column is not None:
                empty |= rows_without_spread(round_rewards[:, self._deciding_column], size)
            informative += (~empty[::size]).tolist()
            if sum(informative) >= wanted or len(rounds) == self.args.dynamic_sampling_max_rounds:
                break
            inputs = self._refill(refill_size(sum(informative), len(informative), wanted, multiple))
        rewards = torch.cat(rewards_of_rounds)
        groups = choose_groups(informative, wanted)
        chosen = torch.tensor(groups, device=rewards.device)
        final = FinalBatch(
            rows=self._exchange(rounds, [group * size + i for group in groups for i in range(size)]),
            rewards=rewards.view(len(informative), size, -1)[chosen].flatten(0, 1),
        )
        for name, value in combine_rounds(lengths, [len(rows) for rows in rounds]).items():
            self._metrics["train"][name].append(value)
        self._report_sampling(len(rounds), informative, wanted)
        with self._within(final_batch=final):
            output = super()._generate_and_score_completions([row["input"] for row in final.rows])
        if not (final.rows_given and final.rewards_given):
            raise NotImplementedError(
                f"{type(self).__name__} overrides _generate or _calculate_rewards without calling super(): dynamic "
                "sampling would train on completions that it has not checked. Pass a rollout_func or reward "
                "functions instead, or set dynamic_sampling=False."
            )
        # TRL has just logged the final batch; these metrics are over everything that was generated.
        for name, value in reward_metrics(rewards, self.reward_weights, self.reward_func_names, size).items():
            self._metrics["train"][name][-1] = value
        return output

    def _generate_round(self, inputs):
        """Generate one round: rows of this rank, ready to be sent to another, and the rewards of all ranks."""
        prompts = [example["prompt"] for example in inputs]
        with self._within(rollout_examples=inputs):
            generated = super()._generate(prompts)
        prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, _, _ = generated
        for name, values in extra_fields.items():  # as TRL hands them to the reward functions
            for i, example in enumerate(inputs):
                if not isinstance(values, list):
                    example[name] = values
                elif i < len(values):
                    example[name] = values[i]
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids)
        # Columns that reward functions log for the table of completions stay with their rows.
        logged = self._take_extra_logs(len(inputs))
        values_of_rows = (prompt_ids, completion_ids, tool_mask, completions, logprobs)
        rows = [
            {
                "input": example,
                "logged": {name: values[i] for name, values in logged.items()},
                **{
                    key: None if values is None else values[i]
                    for key, values in zip(_GENERATED, values_of_rows, strict=True)
                },
            }
            for i, example in enumerate(inputs)
        ]
        return rows, rewards

    def _refill(self, num_groups: int) -> list[dict]:
        """Examples of this rank for `num_groups` fresh prompts over all ranks."""
        dataset, size = self._refill_dataset, self.num_generations
        prompts = draw_prompts(len(dataset), self.args.seed, self._refills.drawn, num_groups)
        self._refills.drawn += num_groups
        num_rows = num_groups * size // self.accelerator.num_processes
        first = self.accelerator.process_index * num_rows
        # One dictionary per row, so that what a rollout function adds to one does not reach the others.
        return [dict(dataset[prompts[row // size]]) for row in range(first, first + num_rows)]

    @property
    def _refill_dataset(self):
        # As the dataloader serves them
        return self._remove_unused_columns(self.train_dataset, description="training")

    def _exchange(self, rounds: list[list[dict]], chosen: list[int]) -> list[dict]:
        """
        This rank's share of the final batch.

        Args:
            rounds: Rows of this rank, round by round.
            chosen: Rows of the final batch, numbered through all rounds over all ranks.
        """
        num_ranks, this_rank = self.accelerator.num_processes, self.accelerator.process_index
        share = len(chosen) // num_ranks
        moves = []  # (rank that has it, rank that gets it, round, row there) of each row of the final batch
        for place, row in enumerate(chosen):
            number = 0
            while row >= len(rounds[number]) * num_ranks:
                row -= len(rounds[number]) * num_ranks
                number += 1
            moves.append((row // len(rounds[number]), place // share, number, row % len(rounds[number])))
        sent = {
            place: rounds[number][row]
            for place, (source, target, number, row) in enumerate(moves)
            if source == this_rank != target
        }
        received: dict[int, dict] = {}
        if any(source != target for source, target, _, _ in moves):
            for others in gather_object([sent]):
                received |= others
        first = this_rank * share
        return [
            received[place] if moves[place][0] != this_rank else rounds[moves[place][2]][moves[place][3]]
            for place in range(first, first + share)
        ]

    def _report_sampling(self, rounds: int, informative: list[bool], wanted: int) -> None:
        found = sum(informative)
        metrics = self._metrics["train"]
        metrics["dynamic_sampling/rounds"].append(float(rounds))
        metrics["dynamic_sampling/informative_group_fraction"].append(found / len(informative))
        metrics["dynamic_sampling/surplus_groups"].append(float(max(found - wanted, 0)))
        if found < wanted and self.accelerator.is_main_process:
            self._warn_once(
                "topped up",
                f"dynamic_sampling: step {self.state.global_step} found {found} informative groups of {wanted} in "
                f"{rounds} rounds ({len(informative)} groups). The batch is topped up with groups that have no "
                "advantage, and so are later ones that fall short; dynamic_sampling/informative_group_fraction shows "
                "how rare informative groups are. Raise dynamic_sampling_max_rounds, or take prompts that the model "
                "solves sometimes, but not always.",
            )


# Values per completion that `GRPOTrainer._generate` returns, in its order.
_GENERATED = ("prompt_ids", "completion_ids", "tool_mask", "completion", "logprobs")


def check_dynamic_sampling(args, train_dataset, processing_class, tools, environment_factory) -> None:
    """
    Refuse data and settings that dynamic sampling does not support, before a model is loaded.

    Raises:
        `ValueError`: for a data set without random access.
        `NotImplementedError`: for tools, environments and image-text models.
    """
    if not args.dynamic_sampling:
        return
    if not isinstance(train_dataset, Dataset):
        raise ValueError(
            f"dynamic_sampling=True needs a map-style train_dataset, got {type(train_dataset).__name__}: refills are "
            "drawn from it out of order, and their place in a stream could not be restored at resume. Load it "
            "without streaming, or set dynamic_sampling=False."
        )
    for name, value in (("tools", tools), ("environment_factory", environment_factory)):
        if value:
            raise NotImplementedError(
                f"dynamic_sampling=True does not work with {name} yet: TRL prepares them once per batch, and several "
                "rounds of generation make one. Call them in a rollout_func, or set dynamic_sampling=False."
            )
    images = {"image", "images"} & set(train_dataset.column_names)
    if images or isinstance(processing_class, ProcessorMixin):
        raise NotImplementedError(
            "dynamic_sampling=True does not work with image-text models yet: image tensors are not one row per "
            "completion. Set dynamic_sampling=False."
        )
