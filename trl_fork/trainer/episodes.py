"""Rollout functions whose rows belong together: what they see of the data, checks of their numbers, and metrics."""

from functools import partial, wraps

import torch
from transformers import ProcessorMixin

from ..credit import Chain
from ..ranks import Ranks
from ._trl import TrainerMixin
from .checks import named_datasets
from .context import WithContext, context_of
from .contrast import is_contrasted


class EpisodesMixin(WithContext, TrainerMixin):
    """
    Shows a rollout function the rows of the data set, and logs lengths by role where it returns a column `role`.

    In the order of the trainer's bases it comes before dynamic sampling, whose rounds are one batch for the log.
    """

    _ranks: Ranks
    _rows_per_episode = 1  # rows that a rollout function plays together, in the order of their turns

    @property
    def rollout_examples(self) -> list[dict] | None:
        """
        Rows of the data set whose prompts the rollout function has been given, in their order. Do not modify them.

        `None` outside a rollout. In dynamic sampling they are those of the round.
        """
        return context_of(self).rollout_examples

    def _init_episodes(self, rows_per_episode: int) -> None:
        self._rows_per_episode = rows_per_episode
        self._role_counts: dict[str, list[int]] = {}  # rows, tokens and cut completions of this process
        if rows_per_episode > 1 and isinstance(
            self.processing_class, ProcessorMixin
        ):  # not known before it was loaded
            _refuse_images()

    def _generate_and_score_completions(self, inputs):
        self._role_counts = {}
        with self._within(rollout_examples=inputs):
            output = super()._generate_and_score_completions(inputs)
        self._report_roles("train" if self.model.training else "eval")
        return output

    def _count_roles(self, output) -> None:
        """Add the completions of one rollout to those of the batch, and a column to the table of completions."""
        roles = output.get("role")
        if self._rows_per_episode == 1 or not isinstance(roles, list):
            return
        self._log_completion_extra("role", roles)
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        for role, ids in zip(roles, output["completion_ids"], strict=True):
            counts = self._role_counts.setdefault(str(role), [0, 0, 0])
            for place, value in enumerate((1, len(ids), int(ids[-1] not in ends))):
                counts[place] += value

    def _report_roles(self, mode: str) -> None:
        """Log means over all processes, each of which has rows of every role."""
        names = list(self._role_counts)
        counts = torch.tensor([self._role_counts[name] for name in names], device=self.accelerator.device)
        for name, (rows, tokens, clipped) in zip(names, self._ranks.sum(counts).tolist(), strict=True):
            self._metrics[mode][f"team/{name}/mean_length"].append(tokens / rows)
            self._metrics[mode][f"team/{name}/clipped_ratio"].append(clipped / rows)


def counted_rollouts(rollout_func):
    """A rollout function whose completions are counted by role."""

    @wraps(rollout_func)
    def counted(prompts, trainer):
        output = rollout_func(prompts, trainer)
        trainer._count_roles(output)
        return output

    return counted


def check_episodes(args, given: dict, chain: Chain | None) -> int:
    """
    Check a run against its rollout function, before a model is loaded.

    A rollout function may have two attributes: `rows_per_episode` (`int`), the rows that it plays together, which then
    stay on one process; and `check_run(args, reward_funcs, train_dataset, eval_dataset)`, which raises for what it
    cannot work with.

    Args:
        args ([`ForkingGRPOConfig`]): Configuration of the run.
        given (`dict`): Arguments of the trainer by name.
        chain ([`~credit.Chain`], *optional*): The credit rules.

    Returns:
        `int`: rows per episode; 1 without the attribute.

    Raises:
        `ValueError`: for numbers of rows that cut an episode, or leave a group one episode.
        `NotImplementedError`: for tools, environments, images and negative prompts.
    """
    rollout_func = given.get("rollout_func")
    size = attribute_of(rollout_func, "rows_per_episode")
    if size is not None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(
                f"rows_per_episode of the rollout function must be a whole number of at least 1, got {size!r}: it is "
                "the number of adjacent rows that are the turns of one episode. Leave it out where each row is one."
            )
        _check_sizes(args, given, size)
        _check_features(given, chain)
    if (check := attribute_of(rollout_func, "check_run")) is not None:
        check(args, given.get("reward_funcs"), given.get("train_dataset"), given.get("eval_dataset"))
    return size or 1


def attribute_of(rollout_func, name: str):
    """
    An attribute of a rollout function, or of the one that it calls: a partial has none of it, and a wrapper made by
    `functools.wraps` lacks those of the other one's class.
    """
    while rollout_func is not None:
        if (value := getattr(rollout_func, name, None)) is not None:
            return value
        inner = rollout_func.func if isinstance(rollout_func, partial) else None
        rollout_func = inner or getattr(rollout_func, "__wrapped__", None)
    return None


def _check_sizes(args, given: dict, size: int) -> None:
    rule = f"a multiple of {size}, the rows (turns) of an episode by rows_per_episode of the rollout function"
    rows = args.per_device_train_batch_size * args.steps_per_generation
    checked = [
        ("num_generations", args.num_generations, "a group holds whole episodes"),
        (
            f"per_device_train_batch_size x steps_per_generation = {args.per_device_train_batch_size} x "
            f"{args.steps_per_generation}",
            rows,
            "an episode stays on one process",
        ),
    ]
    if given.get("eval_dataset") is not None:
        evaluated = args.num_generations_eval or args.num_generations
        checked += [
            ("num_generations_eval", evaluated, "a group holds whole episodes"),
            ("per_device_eval_batch_size", args.per_device_eval_batch_size, "an episode stays on one process"),
        ]
    for name, value, reason in checked:
        if value % size:
            near = [number for number in (value // size * size, (value // size + 1) * size) if number]
            raise ValueError(f"{name} must be {rule}, got {value}: {reason}. Make it {' or '.join(map(str, near))}.")
    if args.num_generations < 2 * size:
        raise ValueError(
            f"num_generations={args.num_generations} is one episode of {size} rows per prompt, and the advantage of "
            f"an episode is its return minus the mean of its group: there would be nothing to compare. Set it to at "
            f"least {2 * size}, two episodes."
        )


def _check_features(given: dict, chain: Chain | None) -> None:
    for name in ("tools", "environment_factory"):
        if given.get(name):
            raise NotImplementedError(
                f"{name} does not go with a rollout function that plays episodes (rows_per_episode): TRL would call "
                f"tools on the completion of each row afterwards. Call them in the rollout function, or leave {name} "
                "out."
            )
    if is_contrasted(chain):
        raise NotImplementedError(
            "Credit rules that read contrast_log_probs do not go with a rollout function that plays episodes "
            "(rows_per_episode): a negative prompt stands for the data set's prompt, and each turn has a prompt of "
            "its own. Take other rules."
        )
    for name, dataset in named_datasets(given.get("train_dataset"), given.get("eval_dataset")):
        if images := sorted({"image", "images"} & {*(getattr(dataset, "column_names", None) or ())}):
            _refuse_images(f"{name} has the columns {images}. ")
    if isinstance(given.get("processing_class"), ProcessorMixin):
        _refuse_images()


def _refuse_images(what: str = ""):
    raise NotImplementedError(
        f"{what}A rollout function that plays episodes (rows_per_episode) has not been tested with image-text models. "
        "Pass a tokenizer (--text_only true of `trl-fork train`) and data without images."
    )
