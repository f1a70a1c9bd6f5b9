"""Completions with their forking tokens in colour, and tokens as readable text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .palette import ORANGE


if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_HIGHLIGHT = f"bold black on {ORANGE}"  # bold where there is no colour


def highlight_tokens(tokenizer, token_ids: list[int], selected: list[bool]) -> Text:
    """
    Render a completion with its selected tokens highlighted.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the completion.
        token_ids (`list[int]`):
            The completion. Special tokens are left out of the text.
        selected (`list[bool]`):
            Tokens to highlight, such as one row of [`select_tokens`] on the [`~entropy.completion_entropies`]
            of a batch.

    Returns:
        [`~rich.text.Text`].
    """
    from rich.text import Text

    text = Text()
    special = set(tokenizer.all_special_ids)
    tokens = token_texts(tokenizer, token_ids)
    for token_id, token, is_selected in zip(token_ids, tokens, selected, strict=True):
        if token_id not in special:
            text.append(token, style=_HIGHLIGHT if is_selected else None)
    return text


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


def completions_table(tokenizer, prompts: list, completions: list, columns: dict[str, list], title: str) -> Table:
    """
    Completions side by side with their rewards, forking tokens highlighted.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the completions.
        prompts (`list`):
            Texts, or conversations.
        completions (`list`):
            Token ids and marks of those to highlight, `(list[int], list[bool])`; or, without marks, a text or a
            conversation.
        columns (`dict[str, list]`):
            Further values of each completion, by name.
        title (`str`):
            Title of the table.

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
        table.add_column(name, justify="right")
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        marked = highlight_tokens(tokenizer, *completion) if isinstance(completion, tuple) else None
        values = [values[i] for values in columns.values()]
        table.add_row(
            Text(_plain(prompt)),
            Text(_plain(completion)) if marked is None else marked,
            *(Text(f"{value:.2f}" if isinstance(value, float) else str(value)) for value in values),
        )
    return table


def _plain(message: str | list[dict]) -> str:
    if isinstance(message, str):
        return message
    return "\n\n".join(f"{part['role'].upper()}\n{part.get('content') or ''}" for part in message)
