"""Forks per loop of a looped model over a corpus of responses."""

import numpy as np
from transformers import AutoConfig

from ..analysis import loops
from ..analysis.score_store import ScoreStore
from ..generation.engines import base_of_adapter
from .corpus import FRACTION, Corpus


NUM_LISTED = 50  # token types of resolved and of late forks


def refuse_without_loops(name: str) -> None:
    """
    Raise a `ValueError` unless a model has loops. Only its configuration is read.

    Args:
        name (`str`): Hub name or folder of the model, or of an adapter.
    """
    config = AutoConfig.from_pretrained(base_of_adapter(name) or name)
    num_loops = getattr(config, "total_ut_steps", None)
    if num_loops is None:
        raise ValueError(
            f"--analyses loops needs a looped model, such as ByteDance/Ouro-1.4B; {name!r} is of the type "
            f"{config.model_type!r}, which reads each token once. Leave `loops` out."
        )
    if num_loops < 2:
        raise ValueError(
            f"--analyses loops compares the loops of a model, and {name!r} has one (total_ut_steps: {num_loops}). "
            "Leave `loops` out."
        )


def analyse_loops(store: ScoreStore, corpus: Corpus, tokenizer) -> dict:
    read = [
        (np.array(response.completion_ids, dtype=np.int64), scores.loop_entropies, scores.exit_probs)
        for response, scores in store.read(corpus.read())
    ]
    ids, of_loops, of_gate = (np.concatenate(columns).T for columns in zip(*read, strict=True))

    def listed(chosen: np.ndarray) -> dict:
        table = loops.token_table(ids, of_loops, chosen, NUM_LISTED)
        return {
            "num_tokens": int(chosen.sum()),
            "fraction": float(chosen.mean()),
            "tokens": [{"token": tokenizer.decode([row["token_id"]]), **row} for row in table],
        }

    return {
        "fraction": FRACTION,
        "loops": loops.loop_summary(of_loops, corpus.lengths, FRACTION),
        **{name: listed(chosen) for name, chosen in loops.moved_forks(of_loops, FRACTION).items()},
        "exit": loops.exit_summary(of_gate, of_loops),
    }
