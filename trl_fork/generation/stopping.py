"""What ends a completion: end tokens, and texts."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria


class StopAtText(StoppingCriteria):
    """
    Ends a row when its completion holds one of the texts.

    `stop_strings` of transformers also matches a text that begins in the prompt: after a prompt that ends in a line
    break, it would take a first word `User:` for one on a new line.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the model.
        stop (`Sequence[str]`): The texts.
        prompt_length (`int`): Tokens of the prompts, padding included.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], prompt_length: int):
        self.tokenizer, self.stop, self.prompt_length = tokenizer, stop, prompt_length
        # A token is at least a byte. A few more are read, as decoding may change the first characters of a piece.
        self.window = max(len(text.encode()) for text in stop) + 8

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        ended = self.ended(input_ids[:, self.prompt_length :].tolist())
        return torch.tensor(ended, device=input_ids.device)

    def ended(self, completions: list[list[int]]) -> list[bool]:
        """Whether each completion, without padding, ends in one of the texts or a few characters after it."""
        tails = [completion[-self.window :] for completion in completions]
        texts = self.tokenizer.batch_decode(tails, skip_special_tokens=True)
        return [any(stop in text for stop in self.stop) for text in texts]


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((place for each in stop if (place := text.find(each)) >= 0), default=len(text))]


def split_stop(stop: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[int]]:
    """
    Stop strings, and the ids of those that are special tokens, which are not in a completion's text.

    Raises:
        `ValueError`: for an empty string, which would end every completion at once, or a value that is not a text.
    """
    stop = [stop] if isinstance(stop, str) else list(stop)
    if bad := [text for text in stop if not isinstance(text, str) or not text]:
        raise ValueError(f"stop must hold texts that are not empty, got {bad[0]!r}.")
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [text for text in stop if text not in special], [special[text] for text in stop if text in special]


def stop_token_ids(generation_config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that end a completion: those of the model and that of its tokenizer."""
    ids = generation_config.eos_token_id
    ids = {*(ids if isinstance(ids, list) else [ids]), tokenizer.eos_token_id} - {None}
    if not ids:
        raise ValueError("Neither the model nor its tokenizer has an end-of-sequence token.")
    return sorted(ids)
