"""Log-probabilities of the completions after a negative prompt (GCPO, arXiv 2605.29198)."""

from collections.abc import Callable

import torch
from datasets import Dataset, IterableDataset

from ..credit import Chain
from ..data.columns import place
from ..data.contrast import CONTRAST_COLUMN, contrast_prompt_of, pattern_of
from ._trl import TrainerMixin, pad
from .checks import named_datasets
from .context import WithContext
from .credit_checks import check_contrast_instruction


# Of a batch: (batch, seq) float, log-probabilities of the completion tokens after the negative prompt.
CONTRAST_LOG_PROBS = "contrast_log_probs"


def is_contrasted(chain: Chain | None) -> bool:
    """Whether a rule of a chain needs the log-probabilities after a negative prompt."""
    return chain is not None and CONTRAST_LOG_PROBS in chain.needs


class ContrastMixin(WithContext, TrainerMixin):
    """
    Adds `contrast_log_probs` to a batch whose credit rules need them: by the policy as it is, without dropout, with
    the tokens and masks of the completions as TRL made them.

    In the order of the trainer's bases it comes after dynamic sampling, so that the examples it sees are those of the
    final batch, in their order on this process.
    """

    _check_rows: Callable[..., None]
    _planned_chunks: tuple[int, int | None]

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.token_credit is not None and is_contrasted(self.token_credit.chain):
            output[CONTRAST_LOG_PROBS] = self._score_after_negative_prompts(inputs, output)
        return output

    def _score_after_negative_prompts(self, inputs, output):
        where = f"step {self.state.global_step}"
        special_tokens = pattern_of(self._tokenizer.all_special_tokens)
        prompts = [
            contrast_prompt_of(example, self.args.contrast_instruction, f"{where}, a row of the batch", special_tokens)
            for example in inputs
        ]
        prompt_ids = [list(ids) for ids in self._tokenize_prompts(prompts)[0]]  # as TRL makes those of the prompts
        planned = self._planned_chunks  # those of the batch, which may be scored after its negative prompts
        self._look_at_widths(prompt_ids, output)
        multiple, device = self.pad_to_multiple_of, output["completion_ids"].device
        ids, mask = (
            pad(
                [torch.tensor(row) for row in rows], padding_value=value, padding_side="left",
                pad_to_multiple_of=multiple,
            ).to(device)
            for rows, value in (
                (prompt_ids, self._tokenizer.pad_token_id),
                ([[1] * len(row) for row in prompt_ids], 0),
            )
        )  # fmt: skip
        chunk = self.args.per_device_train_batch_size if self.model.training else self.args.per_device_eval_batch_size
        with torch.no_grad():
            log_probs, _, _ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([ids, output["completion_ids"]], dim=1),
                torch.cat([mask, output["completion_mask"]], dim=1),
                output["completion_ids"].size(1),
                batch_size=chunk,
            )
        self._planned_chunks = planned
        return log_probs

    def _look_at_widths(self, prompt_ids, output):
        """The checks of a batch that is wider than those before, as negative prompts are longer than prompts."""
        # A completion that is masked as a whole, being cut off, counts as one token.
        lengths = output["completion_mask"].sum(1).clamp(min=1).tolist()
        completion_ids = [ids[:length].tolist() for ids, length in zip(output["completion_ids"], lengths, strict=True)]
        self._check_rows(prompt_ids, completion_ids)
        longest = max(len(prompt) + len(ids) for prompt, ids in zip(prompt_ids, completion_ids, strict=True))
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and longest > limit:
            self._warn_once(
                "negative prompt too long",
                f"Step {self.state.global_step}: a negative prompt and its completion have {longest} tokens, and the "
                f"model {limit} positions (max_position_embeddings). Beyond these its scores mean little, and a model "
                "with learned positions fails. Shorten contrast_instruction or the prompts, or lower "
                "max_completion_length.",
            )


def check_contrast(args, chain: Chain | None, given: dict) -> None:
    """
    Check negative prompts and the rules that need them against each other, before a model is loaded.

    Args:
        args ([`ForkingGRPOConfig`]): Configuration of the run.
        chain ([`~credit.Chain`], *optional*): Its credit rules.
        given (`dict`): Arguments of the trainer by name.

    Raises:
        `ValueError`: for a `contrast_instruction` that no rule reads; without it, for a data set without the column
            `contrast_prompt`; for a row whose negative prompt is missing, or cannot be made; for
            `remove_unused_columns` beside the column.
        `NotImplementedError`: for tools, environments and images.
    """
    check_contrast_instruction(args, chain)
    if not is_contrasted(chain):
        return
    assert chain is not None
    names = [rule.name for rule in chain.rules if CONTRAST_LOG_PROBS in rule.needs]
    for argument, reason in (
        ("tools", "their results come after a prompt that was not given"),
        ("environment_factory", "it makes its prompts itself"),
    ):
        if given.get(argument):
            raise NotImplementedError(
                f"{argument} does not go with the credit rules {names}, which need contrast_log_probs, the "
                f"log-probabilities of the completion after a negative prompt: {reason}. Leave {argument} out, or "
                "take other rules."
            )
    tokenizer = getattr(given.get("processing_class"), "tokenizer", given.get("processing_class"))
    for name, dataset in named_datasets(given.get("train_dataset"), given.get("eval_dataset")):
        check_negative_prompts(name, dataset, args, tokenizer)


def check_negative_prompts(name: str, dataset, args, tokenizer) -> None:
    """
    Check that every row of a data set has a negative prompt. Of a stream only the columns are looked at, if known.

    Args:
        name (`str`): The data set's name in errors.
        dataset: The data set.
        args ([`ForkingGRPOConfig`]): Configuration of the run.
        tokenizer (`transformers.PreTrainedTokenizerBase`, *optional*): That of the run, if it is loaded.

    Raises:
        `ValueError`, `NotImplementedError`: as [`check_contrast`].
    """
    if not isinstance(dataset, (Dataset, IterableDataset)) or dataset.column_names is None:
        return
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":  # a transform may make any column
        return
    columns = dataset.column_names
    if images := sorted({"image", "images"} & {*columns}):
        raise NotImplementedError(
            f"{name} has the columns {images}, and negative prompts with images are not supported. Leave them out."
        )
    if CONTRAST_COLUMN in columns and args.remove_unused_columns:
        raise ValueError(
            f"remove_unused_columns is set, and would take {CONTRAST_COLUMN!r} out of {name}, which a credit rule "
            "needs. Set remove_unused_columns to false."
        )
    if CONTRAST_COLUMN not in columns and args.contrast_instruction is None:
        contrast_prompt_of({}, None, f"{name} (columns {columns})")
    if not isinstance(dataset, Dataset):
        return
    special_tokens = None if tokenizer is None else pattern_of(tokenizer.all_special_tokens)
    needed = [column for column in ("prompt", CONTRAST_COLUMN) if column in columns]
    for number, row in enumerate(dataset.select_columns(needed)):
        where = place(needed[-1], number)
        contrast_prompt_of(row, args.contrast_instruction, f"{name}: {where}", special_tokens)
