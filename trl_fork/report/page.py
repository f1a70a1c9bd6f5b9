"""
An HTML page of responses: their forking tokens, the entropy of each token and its alternatives.

The page is one HTML file with its style, script and data, and needs no network. Text of a model or data set reaches
the document as text nodes only, and the page's policy allows no script but its own.
"""

import base64
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np

from .._files import write_text
from ..credit import forking_count
from .policy import page_templates


_NO_TOKEN = 2**32 - 1  # marks an alternative that was not given
_LARGEST_CODE = 2**16 - 1


@dataclass
class ReportResponse:
    """
    One response of a model, token by token.

    Args:
        prompt (`str`):
            Prompt of the response.
        tokens (`list[str]`):
            Its tokens as text, each decoded by itself.
        entropies (`list[float]`):
            Entropy of the distribution that each token was drawn from, in nats.
        probabilities (`list[float]`):
            Probability that each token was drawn with.
        alternatives (`list[list[tuple[str, float]]]`, *optional*):
            The most probable tokens at each position with their probabilities, the most probable one first, the drawn
            one among them if it is there. Empty, or empty at a position, where they are not known.
        correct (`bool`, *optional*):
            Whether the response is right; `None` if it has not been graded.
        label (`str`, *optional*, defaults to `""`):
            Its name in the list of responses, such as the number of its problem.
        weights (`list[float]`, *optional*):
            Weight of at least 0 that a credit rule gives each token. All responses of a page have them, or none has.
        earlier_entropies (`list[list[float]]`, *optional*):
            Of a looped model, the entropies of all tokens after each loop but the last, the first loop first;
            `entropies` are those after the last. All responses of a page have as many of these lists.
    """

    prompt: str
    tokens: list[str]
    entropies: list[float]
    probabilities: list[float]
    alternatives: list[list[tuple[str, float]]] = field(default_factory=list)
    correct: bool | None = None
    label: str = ""
    weights: list[float] | None = None
    earlier_entropies: list[list[float]] = field(default_factory=list)


def write_report_page(
    path: str | Path,
    responses: Iterable[ReportResponse],
    *,
    title: str,
    figures: Sequence[tuple[str, str]] = (),
    summary: dict | None = None,
    fraction: float = 0.2,
    threshold: float | None = None,
) -> None:
    """
    Write responses to an HTML file in which their forking tokens can be seen.

    Every token's background is its entropy; those at or above a threshold are outlined, and a slider moves it. Under
    the pointer or the keyboard's focus a token shows its entropy, its probability and its alternatives.

    If the responses have weights, the outlines are those of the tokens with weight, and a switch leads back to the
    threshold. Where weights differ, an outline is the stronger and wider, the larger the token's share of the
    largest weight on the page; the number is shown with the entropy.

    If they have entropies of earlier loops, a second slider leads through the loops: colours, outlines and numbers are
    those after the loop, and the same number of tokens is outlined after each. A token shows its entropies after all.

    With five alternatives and a weight a token takes up to 40 bytes. The file replaces an older file in one step, so
    that a browser never reads half of one.

    Args:
        path (`str` or `Path`):
            Path of the page; missing folders are made.
        responses (`Iterable` of [`ReportResponse`]):
            Responses to show. They are taken one by one, so a generator need not hold them all.
        title (`str`):
            Heading of the page.
        figures (`Sequence[tuple[str, str]]`, *optional*):
            Titles and SVG documents, shown below the responses.
        summary (`dict`, *optional*):
            Numbers or words shown below the title; a dictionary in it is shown with its name before each key.
        fraction (`float`, *optional*, defaults to `0.2`):
            Fraction in (0, 1] of all tokens on the page, those of highest entropy, that is outlined at first.
        threshold (`float`, *optional*):
            Entropy in nats from which on tokens are outlined at first, in place of `fraction`, such as that of the
            training batch.

    Raises:
        `ValueError`: naming the response, if its lists differ in length, or hold an invalid entropy, probability or
            weight, if only some of the responses have weights, or if their numbers of loops differ.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}: pass 0.2 to outline the top 20 %.")
    vocabulary: dict[str, int] = {}
    entropies, weights = [np.empty(0, "<f4")], [np.empty(0, "<f4")]
    earlier: list[np.ndarray] = []  # (loops, length) of each response
    entries: list[dict] = []
    for number, response in enumerate(responses, start=1):
        try:
            values, distributions = _encode(response, vocabulary)
            if entries and (response.weights is None) != (len(weights) == 1):
                raise ValueError(
                    "weights must be given for all responses or for none, and those before it have "
                    f"{'none' if len(weights) == 1 else 'weights'}."
                )
            if response.weights is not None:
                weights.append(_nonnegative("weights", response.weights, len(values)))
            loops = [
                _nonnegative("earlier_entropies of each loop", row, len(values), ", in nats")
                for row in response.earlier_entropies
            ]
            if earlier and len(loops) != len(earlier[-1]):
                raise ValueError(
                    f"earlier_entropies must be of as many loops in all responses: got {len(loops)} after "
                    f"{len(earlier[-1])}."
                )
            earlier.append(np.reshape(loops, (len(loops), len(values))).astype("<f4"))
        except ValueError as error:
            raise ValueError(f"Response {number} ({response.label!r}): {error}") from error
        entropies.append(values)
        entries.append(
            {
                "label": response.label,
                "prompt": response.prompt,
                "correct": None if response.correct is None else bool(response.correct),
                "length": len(values),
                "alternatives": max(map(len, response.alternatives), default=0),
                "data": distributions,
            }
        )
    all_entropies = np.concatenate(entropies)
    if threshold is None and len(all_entropies):
        place = len(all_entropies) - forking_count(len(all_entropies), fraction)
        threshold = float(np.partition(all_entropies, place)[place])
    data = {
        "threshold": threshold,
        "vocabulary": list(vocabulary),
        "entropies": _pack(all_entropies.tobytes()),
        "weights": None if len(weights) == 1 else _pack(np.concatenate(weights).tobytes()),
        "earlier": [_pack(row.tobytes()) for row in np.concatenate(earlier, axis=1)] if earlier else [],
        "responses": entries,
    }
    # Surrogates in a title or a summary have no bytes; `tojson` has escaped those in the data.
    write_text(path, _fill_template(title, _rows(summary or {}), figures, data), errors="replace")


def _encode(response: ReportResponse, vocabulary: dict[str, int]) -> tuple[np.ndarray, str]:
    """
    Entropies of a response, `(length,)`, and its tokens and probabilities as text; new tokens join `vocabulary`.

    Little-endian, column by column, so that like stands beside like: tokens (uint32), the most probable tokens, the
    second most probable ones and so on (uint32), and in the same order the probabilities (uint16, thousandths of a nat
    of `-log p`). `report.js` reads it.
    """
    length = len(response.tokens)
    alternatives = response.alternatives or [[]] * length
    entropies = _nonnegative("entropies", response.entropies, length, ", in nats")
    for name, values in (("probabilities", response.probabilities), ("alternatives", alternatives)):
        _check_length(name, values, length)
    columns = max(map(len, alternatives), default=0)
    tokens = np.full((1 + columns, length), _NO_TOKEN, "<u4")
    probabilities = np.zeros((1 + columns, length))
    for position, drawn in enumerate(zip(response.tokens, response.probabilities, strict=True)):
        for column, (token, probability) in enumerate([drawn, *alternatives[position]]):
            tokens[column, position] = vocabulary.setdefault(token, len(vocabulary))
            probabilities[column, position] = probability
    if not ((probabilities >= 0) & (probabilities <= 1 + 1e-5)).all():
        raise ValueError("probabilities must be in [0, 1].")
    with np.errstate(divide="ignore"):
        codes = (-1000 * np.log(np.minimum(probabilities, 1))).clip(0, _LARGEST_CODE).round().astype("<u2")
    return entropies, _pack(tokens.tobytes() + codes.tobytes())


def _nonnegative(name: str, values: list[float], length: int, unit: str = "") -> np.ndarray:
    _check_length(name, values, length)
    array = np.asarray(values, dtype="<f4").reshape(length)
    if not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError(f"{name} must be finite and not negative{unit}.")
    return array


def _check_length(name: str, values: Sequence, length: int) -> None:
    if len(values) != length:
        raise ValueError(f"{name} must be one per token: got {len(values)} for {length} tokens.")


def _pack(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 6)).decode()


def _rows(summary: dict, prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in summary.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{prefix}{key}, ")
        else:
            rows.append((f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value)))
    return rows


def _fill_template(title: str, summary: list[tuple[str, str]], figures, data: dict) -> str:
    folder = files(__package__) / "templates"
    style, script = ((folder / name).read_text("utf-8") for name in ("report.css", "report.js"))
    environment = page_templates(keep_trailing_newline=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.get_template("report.html").render(
        title=title,
        style=style,
        script=script,
        summary=summary,
        figures=[(name, base64.b64encode(svg.encode()).decode()) for name, svg in figures],
        data=data,
    )
