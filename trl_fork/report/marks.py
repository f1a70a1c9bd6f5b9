"""Completions with their forking tokens or their weights in colour, and tokens as readable text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._visible import show_controls
from .palette import BROWN, ORANGE


if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

# From which share of the largest weight on a token looks how. In order on a light and on a dark background, where a
# paler one would be the weaker and the stronger, and in print without colour: bold, underlined, plain.
_STYLES = ((2 / 3, f"bold black on {ORANGE}"), (1 / 3, f"underline {BROWN}"), (0, BROWN))
STYLES_IN_WORDS = "filled from two thirds of the largest on, underlined from one third on"


def highlight_tokens(
    tokenizer, token_ids: list[int], selected: list[bool] | list[float], *, largest: float | None = None
) -> Text:
    """
    Render a completion with its selected tokens highlighted.

    Of weights there are three steps: tokens from two thirds of the largest weight on look like selected ones, those
    from one third on are underlined, the others with weight have another colour.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the completion.
        token_ids (`list[int]`):
            The completion. Special tokens are left out of the text.
        selected (`list[bool]` or `list[float]`):
            Tokens to highlight, such as one row of [`select_tokens`] on the [`~entropy.completion_entropies`]
            of a batch; or weights of at least 0.
        largest (`float`, *optional*):
            The weight that counts as the largest, where several completions are compared. Defaults to the largest of
            this one.

    Returns:
        [`~rich.text.Text`].
    """
    from rich.text import Text

    text = Text()
    special = set(tokenizer.all_special_ids)
    tokens = token_texts(tokenizer, token_ids)
    largest = largest or max(selected, default=0) or 1
    for token_id, token, weight in zip(token_ids, tokens, selected, strict=True):
        if token_id not in special:
            text.append(show_controls(token), style=_style(weight / largest))
    return text


def _style(share: float) -> str | None:
    # Equal weights differ by rounding, and so does a third of a weight.
    return next((style for least, style in _STYLES if share > 0 and share >= least - 1e-6), None)


def token_texts(tokenizer, token_ids: list[int]) -> list[str]:
    """
    Decode each token by itself. Part of a character is U+FFFD; a SentencePiece token keeps the space it begins with.
    """
    pieces = tokenizer.convert_ids_to_tokens(token_ids)
    texts = [tokenizer.decode([token_id]) for token_id in token_ids]
    return [
        f" {text}" if str(piece).startswith("\u2581") and not text.startswith(" ") else text
        for piece, text in zip(pieces, texts, strict=True)
    ]


def completions_table(
    tokenizer,
    prompts: list,
    completions: list,
    columns: dict[str, list],
    title: str,
    *,
    largest: float | None = None,
) -> Table:
    """
    Completions side by side with their rewards, forking tokens highlighted; see [`highlight_tokens`].

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the completions.
        prompts (`list`):
            Texts, or conversations.
        completions (`list`):
            Token ids and weights, `(list[int], list[float])`; or, without weights, a text or a conversation.
        columns (`dict[str, list]`):
            Further values of each completion, by name.
        title (`str`):
            Title of the table.
        largest (`float`, *optional*):
            The weight that counts as the largest. Defaults to the largest of each completion.

    Returns:
        [`~rich.table.Table`].
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.ROUNDED, show_lines=True, expand=True)
    table.add_column("Prompt", ratio=1)
    table.add_column("Completion", ratio=2)
    for name in columns:
        table.add_column(Text(show_controls(name)), justify="right")
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        marked = highlight_tokens(tokenizer, *completion, largest=largest) if isinstance(completion, tuple) else None
        values = [values[i] for values in columns.values()]
        table.add_row(
            Text(show_controls(_plain(prompt))),
            Text(show_controls(_plain(completion))) if marked is None else marked,
            *(Text(f"{value:.2f}" if isinstance(value, float) else show_controls(str(value))) for value in values),
        )
    return table


def _plain(message: str | list[dict]) -> str:
    if isinstance(message, str):
        return message
    return "\n\n".join(f"{part['role'].upper()}\n{part.get('content') or ''}" for part in message)
