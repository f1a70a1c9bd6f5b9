"""The page of `trl-fork analyze`, which shows every token."""

from pathlib import Path

import numpy as np

from ..analysis.score_store import ScoreStore
from ..report.marks import token_texts
from ..report.page import ReportResponse, write_report_page
from .corpus import Corpus


def write_page(
    path: Path,
    store: ScoreStore,
    corpus: Corpus,
    tokenizer,
    count: int,
    drawn,
    summary: dict,
    weights: list[list[float]] | None = None,
) -> None:
    def responses():
        for number, (response, scores) in zip(range(count), store.read(corpus.read()), strict=False):
            loops = scores.loop_entropies if "loops" in summary else None
            yield ReportResponse(
                prompt=response.prompt,
                tokens=token_texts(tokenizer, response.completion_ids),
                entropies=scores.entropies.tolist(),
                probabilities=np.exp(scores.log_probs).tolist(),
                alternatives=[
                    [(tokenizer.decode([other]), p) for other, p in zip(ids, probabilities, strict=True)]
                    for ids, probabilities in zip(scores.top_ids.tolist(), scores.top_probs.tolist(), strict=True)
                ],
                correct=response.correct,
                label=label_of(number, response.row),
                weights=None if weights is None else weights[number],
                earlier_entropies=[] if loops is None else loops[:, :-1].T.tolist(),
            )

    numbers = summary["responses"]
    overview = {"model": summary["model"], "responses": numbers["num_responses"], "problems": numbers["num_problems"]}
    if numbers["num_correct"] is not None:
        overview["correct"] = numbers["num_correct"]
    for key, words in (
        ("num_tokens", "tokens"),
        ("mean", "mean entropy (nats)"),
        ("p80", "80th percentile (nats)"),
        ("fraction_below_0.01", "fraction below 0.01 nats"),
    ):
        if "distribution" in summary:
            overview[words] = summary["distribution"][key]
    for row in summary["loops"]["loops"] if "loops" in summary else ():
        overview[f"loop {row['loop']}, mean entropy (nats)"] = row["mean_entropy"]
        overview[f"loop {row['loop']}, forks shared with the last"] = f"{row['overlap_with_last']['whole_set']:.1%}"
    if "credit" in summary:
        overview["trained on"] = summary["credit"]["trained_on"]
        if summary["credit"]["progress"] is not None:
            overview["progress of the training"] = summary["credit"]["progress"]
    write_report_page(path, responses(), title="Where it forks", figures=drawn, summary=overview)


def label_of(number: int, row: dict) -> str:
    if "problem_id" not in row:
        return f"response {number + 1}"
    dataset = Path(str(row.get("dataset", "problem"))).stem
    return f"{dataset} {str(row['problem_id'])[:8]}, sample {row.get('sample', number) + 1}"
