"""The summary of `trl-fork analyze` as figures, a table of tokens and lines on the screen."""

import re
from pathlib import Path

import numpy as np

from . import figures, loop_figures, statistics


def draw(
    summary: dict, entropies: np.ndarray, lengths: np.ndarray, correct: list[bool | None], directory: Path
) -> list[tuple[str, str]]:
    """Write the figures; returns (title, SVG) of each, for the page."""
    drawn: list[tuple[str, str]] = []

    def add(title: str, name: str, figure) -> None:
        drawn.append((title, figures.save_figure(figure, directory, name)))

    if "distribution" in summary:
        add("Distribution of entropies", "distribution", figures.plot_distribution(summary["distribution"]))
    if "tokens" in summary:
        for end, level, title in (
            ("top", "high", "Tokens of highest mean entropy (size: mean entropy)"),
            ("bottom", "low", "Tokens of lowest mean entropy (size: rank)"),
        ):
            shown = summary["tokens"][end][: _half_of_types(summary["tokens"])]
            cloud = figures.plot_token_cloud(shown, title, largest=level)
            if cloud is not None:
                add(title, f"tokens_{end}", cloud)
    if "position" in summary:
        add("Entropy along a response", "position", figures.plot_position(summary["position"]))
        means = statistics.response_means(entropies, lengths)
        add("Length, entropy, correctness", "length", figures.plot_length(lengths, means, correct))
    if "overlap" in summary:
        add("Overlap of forking positions", "overlap", figures.plot_overlap(summary["overlap"]))
    if "change" in summary:
        reference, last = summary["change"]["reference"], summary["change"]["models"][-1]
        add("Change of entropy", "change", figures.plot_change(last["bins"], reference, last["model"]))
        add("Percentiles over checkpoints", "percentiles", figures.plot_percentiles(summary["percentiles"]))
    if "loops" in summary:
        add("Entropy and forks after each loop", "loops", loop_figures.plot_loops(summary["loops"]))
        add("Expected number of loops by entropy", "exit_depth", loop_figures.plot_exit_depth(summary["loops"]))
    if "decoding_temperature" in summary:
        cells = summary["decoding_temperature"]["cells"]
        add("Decoding temperatures", "decoding_temperature", figures.plot_decoding_temperature(cells))
    return drawn


def _half_of_types(tokens: dict) -> int:
    """Number of entries to show of either list; with few types the two overlap."""
    return max(1, tokens["num_types"] // 2)


def _no_types(tokens: dict) -> str:
    return (
        f"No token type is sampled more often than {tokens['min_count']} times, so that none is listed: lower "
        "--min_token_count, or sample more responses."
    )


def _cell(text: str) -> str:
    """A text in a table of Markdown, where it neither ends a cell nor begins an HTML tag."""
    return re.sub(r"([\\|<])", r"\\\1", figures.visible(text).replace("\u2423", " "))


def loops_as_markdown(loops: dict) -> str:
    """The tables of resolved and late forks."""
    lines = []
    for name, title, words in (
        ("resolved", "Resolved forks", "after the first loop and not after the last"),
        ("late", "Late forks", "after the last loop and not after the first"),
    ):
        found = loops[name]
        lines += [
            f"## {title}\n",
            f"{found['num_tokens']:,} tokens ({found['fraction']:.1%}) are among the {loops['fraction']:.0%} of "
            f"largest entropy {words}. Entropies in nats, means over these tokens.\n",
            "| token | count | of its occurrences | entropy, first loop | entropy, last loop |",
            "|---|---|---|---|---|",
        ]
        for row in found["tokens"]:
            entropies = f"{row['mean_entropy_first']:.4f} | {row['mean_entropy_last']:.4f}"
            lines.append(f"| **{_cell(row['token'])}** | {row['count']:,} | {row['share']:.1%} | {entropies} |")
        lines.append("")
    return "\n".join(lines)


def tokens_as_markdown(tokens: dict) -> str:
    """The tables of analysis B."""
    cell = _cell
    if not tokens["num_types"]:
        return _no_types(tokens) + "\n"
    lines = [f"Token types sampled more often than {tokens['min_count']} times. Entropies in nats.\n"]
    if len(tokens["top"]) == tokens["num_types"]:
        lines += [f"There are {tokens['num_types']} of them, so that both tables list all.\n"]
    for end, title in (("top", "Highest mean entropy"), ("bottom", "Lowest mean entropy")):
        lines += [f"## {title}\n", "| token | mean entropy | count | alternatives | followed by | example |"]
        lines += ["|---|---|---|---|---|---|"]
        for entry in tokens[end]:
            example = entry["examples"][0]
            columns = [
                f"**{cell(entry['token'])}**",
                f"{entry['mean_entropy']:.4f}",
                f"{entry['count']:,}",
                ", ".join(f"{cell(a['token'])} {a['mean_probability']:.0%}" for a in entry["alternatives"]),
                ", ".join(f"{cell(f['token'])} ({f['count']:,})" for f in entry["followed_by"]),
                f"{cell(example['before'])}**{cell(entry['token'])}**{cell(example['after'])}",
            ]
            lines.append("| " + " | ".join(columns) + " |")
        lines.append("")
    return "\n".join(lines)


def print_summary(summary: dict, output: Path, fraction: float) -> None:
    """The lines on the screen; `fraction` is rho."""
    responses = summary["responses"]
    print(f"\n{responses['num_responses']:,} responses to {responses['num_problems']:,} problems")
    if responses["num_other_length"]:
        print(f"  {responses['num_other_length']:,} of them, tokenized again, have other tokens than were sampled")
    if "distribution" in summary:
        d = summary["distribution"]
        print(f"Entropy of {d['num_tokens']:,} tokens, in nats: mean {d['mean']:.3f}, 80th percentile {d['p80']:.3f}")
        print(f"  {d['fraction_below_0.01']:.1%} of the tokens are below 0.01 (the paper's Qwen3-8B: 50.6 %)")
    if "tokens" in summary:
        tokens = summary["tokens"]
        for end, level in (("top", "highest"), ("bottom", "lowest"))[: tokens["num_types"]]:
            shown = tokens[end][: min(12, _half_of_types(tokens))]
            words = "  ".join(figures.visible(entry["token"]) for entry in shown)
            print(f"Tokens of {level} mean entropy: {words}")
        if not tokens["num_types"]:
            print(_no_types(tokens))
    if "overlap" in summary:
        last = summary["overlap"]["models"][-1]["with_reference"]
        print(
            f"Top {fraction:.0%} positions in common with the reference: {last['whole_set']:.1%} over the whole set, "
            f"{last['per_response']:.1%} response by response"
        )
    if "change" in summary:
        bins = summary["change"]["models"][-1]["bins"]
        print(
            f"Mean change of entropy: {bins[0]['mean_change']:+.4f} nats in the lowest 5 % of the reference, "
            f"{bins[-1]['mean_change']:+.4f} in the highest"
        )
    if "loops" in summary:
        found = summary["loops"]
        for row in found["loops"]:
            print(
                f"After loop {row['loop']}: mean entropy {row['mean_entropy']:.3f} nats, 80th percentile "
                f"{row['p80']:.3f}; {row['overlap_with_last']['whole_set']:.1%} of its top {fraction:.0%} positions "
                "are the last loop's"
            )
        for name, words in (("resolved", "Resolved by the loops"), ("late", "Forks of the last loop only")):
            shown = "  ".join(figures.visible(entry["token"]) for entry in found[name]["tokens"][:12])
            print(f"{words}: {found[name]['fraction']:.1%} of the tokens, most often {shown or 'none'}")
        correlation = found["exit"]["spearman_with_entropy"]["last_loop"]
        if correlation is not None:
            print(
                f"Expected number of loops {found['exit']['mean_depth']:.2f}, its rank correlation with the entropy "
                f"{correlation:.2f}"
            )
    if "scope" in summary:
        shares = summary["scope"]["selected_fraction_of_responses"]
        print(
            f"With one threshold for all, a response has between {shares['p0']:.1%} and {shares['p100']:.1%} of its "
            f"tokens in the top {fraction:.0%} (median {shares['p50']:.1%})"
        )
    if "correctness" in summary:
        means = ((name, summary["correctness"][name]["mean_entropy"]) for name in ("correct", "incorrect"))
        groups = [f"{name} responses {mean:.3f}" for name, mean in means if mean is not None]
        print(f"Mean entropy of {', of '.join(groups)}")
    if "credit" in summary:
        c = summary["credit"]
        # The weights of rules that are not counted may all be 0, and there is no effective fraction then.
        effect = "" if c["effective_fraction"] is None else f", effectively {c['effective_fraction']:.1%}"
        found = "" if c["span_found"] is None else f"; {c['span_found']:.1%} of the responses have a match"
        print(
            f"Trained on {c['trained_on']}: {c['selected_fraction']:.1%} of the tokens of {c['num_responses']:,} "
            f"responses{effect}{found}"
        )
    if "decoding_temperature" in summary:
        for cell in summary["decoding_temperature"]["cells"]:
            temperatures = f"forking {cell['forking_temperature']:g}, other {cell['other_temperature']:g}"
            print(f"Temperature {temperatures}: accuracy {cell['accuracy']:.1%}, {cell['mean_length']:.0f} tokens")
    print(f"Everything is in {output}.")
