"""`examples/analyze_entropy.py` as a user runs it: its numbers recomputed from full logits of one row at a time."""

import argparse
import base64
import importlib.util
import json
import logging
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree
import zlib
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import LETTERS, build_model, build_tokenizer
from tests.report.test_report_page import read as read_page
from trl_fork.analysis import figures, score_store
from trl_fork.analysis import responses as response_files
from trl_fork.commands import analyze as script
from trl_fork.commands import corpus_credit
from trl_fork.credit import preset_names


ROOT = Path(__file__).parents[2]
NUM_ROWS = 24


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three models of one vocabulary, and responses to six problems in the format of evaluate.py."""
    path = tmp_path_factory.mktemp("files")
    tokenizer = build_tokenizer()
    for seed, name in enumerate(["reference", "checkpoint-5", "model"]):
        build_model(tokenizer, seed).save_pretrained(path / name)
        tokenizer.save_pretrained(path / name)
    rng = random.Random(0)
    rows = []
    for number in range(NUM_ROWS):
        text = "".join(rng.choices(LETTERS[:8], k=rng.randint(1, 40)))
        rows.append(
            {
                "dataset": "letters",
                "problem_id": str(number // 4),
                "sample": number % 4,
                "prompt": f"<user>{'ab9'[: 1 + number // 4 % 3]}<assistant>",
                "completion": text,
                "length": len(text) + (number % 3 > 0),
                "truncated": number % 3 == 0,
                "solution": "5",
                "correct": number % 5 > 1,
                "grading_failure": None,
            }
        )
    (path / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(score_store, "SHARD_SIZE", 5)


def arguments(files, output, *more, models=("reference", "checkpoint-5")):
    compared = ("--reference_model", str(files / models[0]), "--checkpoints", str(files / models[1])) if models else ()
    return [
        *("--model", str(files / "model"), "--completions", str(files / "completions.jsonl"), *compared),
        *("--output", str(output), "--min_token_count", "40", "--page_responses", "7", *more),
    ]


def run(files, output, *more, **settings):
    script.run(script.parse_arguments(arguments(files, output, *more, **settings)))
    return json.loads((output / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_store, "SHARD_SIZE", 5)
        return run(files, output), output


# ---------------------------------------------------------------------- the same numbers, naively


VOCABULARY = {token: i for i, token in enumerate(["<pad>", "<eos>", "<user>", "<assistant>", *LETTERS])}


def naive_rows(files):
    """(prompt ids, completion ids) read without the package."""
    rows = []
    for line in (files / "completions.jsonl").read_text().splitlines():
        row = json.loads(line)
        question = row["prompt"].removeprefix("<user>").removesuffix("<assistant>")
        prompt = [2, *(VOCABULARY[letter] for letter in question), 3]
        completion = [VOCABULARY[letter] for letter in row["completion"]] + [1] * (not row["truncated"])
        rows.append((prompt, completion, row))
    return rows


def naive_log_probs(files, seed):
    """Log-probabilities of all tokens at each completion position, row by row, from full logits."""
    model = build_model(build_tokenizer(), seed).eval()
    result = []
    for prompt, completion, _ in naive_rows(files):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        result.append(logits.double().log_softmax(-1))
    return result


def naive_entropies(files, seed):
    return [(-(row.exp() * row).sum(-1)).tolist() for row in naive_log_probs(files, seed)]


def top(keyed, fraction=0.2):
    count = math.ceil(Fraction(str(fraction)) * len(keyed))
    ordered = sorted(keyed, key=lambda key: (-keyed[key], key))
    if count < len(keyed):
        gap = keyed[ordered[count - 1]] - keyed[ordered[count]]
        assert gap > 1e-6, "rounding could decide: choose other data"
    return set(ordered[:count])


def keyed(rows):
    return {(i, t): value for i, row in enumerate(rows) for t, value in enumerate(row)}


def test_distribution_and_responses(finished, files):
    summary, _ = finished
    values = sorted(value for row in naive_entropies(files, 2) for value in row)
    n = len(values)
    found = summary["distribution"]
    assert found["num_tokens"] == n == sum(row["length"] for *_, row in naive_rows(files))
    assert found["mean"] == pytest.approx(sum(values) / n, abs=1e-5)
    assert found["fraction_below_0.01"] == sum(value < 0.01 for value in values) / n
    for name, level in (("p50", 50), ("p80", 80), ("p95", 95)):
        assert found[name] == pytest.approx(values[-(-level * n // 100) - 1], abs=1e-5)
    assert summary["responses"] == {
        "num_responses": NUM_ROWS,
        "num_problems": 6,
        "num_correct": sum(row["correct"] for *_, row in naive_rows(files)),
        "num_other_length": 0,
        "temperature": 1.0,
    }


def test_tokens(finished, files):
    summary, output = finished
    tokens = summary["tokens"]
    names = list(VOCABULARY)
    values, followers, mass, scored = {}, {}, {}, Counter()
    log_probs, entropies = naive_log_probs(files, 2), naive_entropies(files, 2)
    for i, (_, completion, _) in enumerate(naive_rows(files)):
        for t, token in enumerate(completion):
            values.setdefault(token, []).append(entropies[i][t])
            if t + 1 < len(completion):
                followers.setdefault(token, Counter())[names[completion[t + 1]]] += 1
            if i < 10:  # --page_responses 7, in files of 5
                scored[token] += 1
                for other in log_probs[i][t].topk(5).indices.tolist():
                    mass.setdefault(token, Counter())[names[other]] += log_probs[i][t][other].exp().item()
    means = {token: sum(v) / len(v) for token, v in values.items() if len(v) > 40}
    assert 1 < len(means) < len(values)
    ordered = sorted(means, key=lambda token: -means[token])
    assert [entry["token_id"] for entry in tokens["top"]] == ordered
    assert [entry["token_id"] for entry in tokens["bottom"]] == ordered[::-1]
    assert tokens["num_types"] == len(ordered)
    for entry in tokens["top"]:
        token = entry["token_id"]
        assert entry["token"] == names[token]
        assert entry["count"] == len(values[token])
        assert entry["mean_entropy"] == pytest.approx(means[token], abs=1e-5)
        assert {f["token"]: f["count"] for f in entry["followed_by"]}.items() <= followers[token].items()
        assert [f["count"] for f in entry["followed_by"]] == sorted(followers[token].values(), reverse=True)[:5]
        wanted = {name: m / scored[token] for name, m in mass[token].items() if name != names[token]}
        found = {a["token"]: a["mean_probability"] for a in entry["alternatives"]}
        assert list(found.values()) == pytest.approx(sorted(wanted.values(), reverse=True)[:5], abs=1e-5)
        assert all(found[name] == pytest.approx(wanted[name], abs=1e-5) for name in found)
        assert 0 < len(entry["examples"]) <= 3
        for example in entry["examples"]:
            i, t = example["response"], example["position"]
            completion = naive_rows(files)[i][1]
            assert completion[t] == token
            assert example["entropy"] == pytest.approx(entropies[i][t], abs=1e-5)
            assert example["before"].replace(" ", "") == "".join(names[x] for x in completion[max(0, t - 12) : t])
            assert example["after"].replace(" ", "") == "".join(names[x] for x in completion[t + 1 : t + 13])
    table = (output / "tokens.md").read_text()
    assert table.count("\n| **") == 2 * len(ordered)


def test_overlap(finished, files):
    summary, _ = finished
    entropies = {
        name: naive_entropies(files, seed) for seed, name in enumerate(["reference", "checkpoint-5", "model"])
    }

    def shared(first, second):
        a, b = top(keyed(first)), top(keyed(second))
        pairs = [(top(keyed([x])), top(keyed([y]))) for x, y in zip(first, second, strict=True)]
        by_row = sum(len(x & y) for x, y in pairs) / sum(len(x) for x, _ in pairs)
        return {"whole_set": len(a & b) / len(a), "per_response": by_row}

    assert [entry["model"] for entry in summary["overlap"]["models"]] == list(entropies)
    for entry in summary["overlap"]["models"]:
        own = entropies[entry["model"]]
        assert entry["with_reference"] == pytest.approx(shared(entropies["reference"], own))
        assert entry["with_model"] == pytest.approx(shared(entropies["model"], own))
    n = summary["distribution"]["num_tokens"]
    assert summary["overlap"]["expected_by_chance"] == pytest.approx(math.ceil(n / 5) / n)


def test_change_and_percentiles(finished, files):
    summary, _ = finished
    reference, *others = ([v for row in naive_entropies(files, seed) for v in row] for seed in range(3))
    n = len(reference)
    order = sorted(range(n), key=lambda i: reference[i])
    assert [entry["model"] for entry in summary["change"]["models"]] == ["checkpoint-5", "model"]
    for entry, after in zip(summary["change"]["models"], others, strict=True):
        assert len(entry["bins"]) == 20
        for number, found in enumerate(entry["bins"]):
            tokens = order[number * n // 20 : (number + 1) * n // 20]
            changes = [after[i] - reference[i] for i in tokens]
            assert found["num_tokens"] == len(tokens)
            assert found["reference_max"] == pytest.approx(reference[tokens[-1]], abs=1e-5)
            assert found["mean_change"] == pytest.approx(sum(changes) / len(tokens), abs=1e-5)
            assert found["fraction_increased"] == pytest.approx(sum(c > 0 for c in changes) / len(tokens))
    traces = summary["percentiles"]
    for entry, values in zip(traces["models"], [reference, *others], strict=True):
        values = sorted(values)
        for level, found in zip(traces["levels"], entry["values"], strict=True):
            rank = max(math.ceil(Fraction(str(level)) * n), 1)
            assert found == pytest.approx(values[rank - 1], abs=1e-5)


def test_position_length_and_correctness(finished, files):
    summary, _ = finished
    entropies = naive_entropies(files, 2)
    selected = top(keyed(entropies))
    correct = [row["correct"] for *_, row in naive_rows(files)]
    for name, group in (
        ("all", range(NUM_ROWS)),
        ("correct", [i for i in range(NUM_ROWS) if correct[i]]),
        ("incorrect", [i for i in range(NUM_ROWS) if not correct[i]]),
    ):
        bins = [[] for _ in range(20)]
        for i in group:
            for t in range(len(entropies[i])):
                bins[int(20 * (t + 0.5) / len(entropies[i]) + 1e-9)].append((i, t))
        found = summary["position"][name]
        assert found["num_tokens"] == [len(tokens) for tokens in bins]
        for number, tokens in enumerate(bins):
            if tokens:
                mean = sum(entropies[i][t] for i, t in tokens) / len(tokens)
                assert found["mean_entropy"][number] == pytest.approx(mean, abs=1e-5)
                share = sum(token in selected for token in tokens) / len(tokens)
                assert found["selected_fraction"][number] == pytest.approx(share)
            else:
                assert found["mean_entropy"][number] is None
        if name != "all":
            means = [sum(entropies[i]) / len(entropies[i]) for i in group]
            found = summary["correctness"][name]
            assert found["num_responses"] == len(means)
            assert found["mean_response_entropy"] == pytest.approx(sum(means) / len(means), abs=1e-5)
            assert found["mean_high_entropy_sum"] == pytest.approx(
                sum(max(entropies[i]) for i in group) / len(means), abs=1e-5
            )


def test_every_number_has_its_definition(finished):
    summary, _ = finished

    def keys(value):
        if isinstance(value, dict):
            for key, item in value.items():
                yield key
                yield from keys(item)
        elif isinstance(value, list):
            for item in value:
                yield from keys(item)

    sections = {name for name, value in summary.items() if isinstance(value, dict)} - {"definitions"}
    assert sections == set(summary["definitions"])
    for section in sections:
        missing = set(keys(summary[section])) - set(summary["definitions"][section]) - {"model", "reference"}
        assert not missing, f"{section} has numbers without definition: {missing}"


FIGURES = ["change", "distribution", "length", "overlap", "percentiles", "position"]


def test_figures(finished):
    _, output = finished
    clouds = ["tokens_bottom", "tokens_top"] if importlib.util.find_spec("wordcloud") else []
    for name in [*FIGURES, *clouds]:
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert xml.etree.ElementTree.parse(output / f"{name}.svg").getroot().tag.endswith("svg")
    assert sorted(path.stem for path in output.glob("*.svg")) == sorted([*FIGURES, *clouds])


# ---------------------------------------------------------------------- credit of tokens


def wary(signals):
    """A rule of a user's with another weight at every token, which reads advantages without saying so."""
    return (0.25 - signals.log_probs) * (2 + signals.advantages.unsqueeze(1))


def contrasting(signals):
    return signals.contrast_log_probs


contrasting.needs = {"contrast_log_probs", "log_probs"}
HERE = "tests.commands.test_analyze_script"


def naive_advantages(files):
    """By response; the groups are those of the whole file, and not of the seven responses on the page."""
    rewards = {}
    for i, (*_, row) in enumerate(naive_rows(files)):
        rewards.setdefault(row["problem_id"], {})[i] = float(row["correct"])
    advantages = {}
    for group in rewards.values():
        mean, deviation = statistics.mean(group.values()), statistics.stdev(group.values())
        advantages |= {i: (reward - mean) / (deviation + 1e-4) for i, reward in group.items()}
    return advantages


def weights_of_page(path):
    data, responses = read_page(path)
    weights = np.frombuffer(zlib.decompress(base64.b64decode(data["weights"])), "<f4")
    return np.split(weights, np.cumsum([len(entropies) for *_, entropies in responses])[:-1])


def test_soft_weights_on_the_page(files, tmp_path, capsys):
    summary = run(files, tmp_path, "--token_credit", f"{HERE}.wary", models=None)
    advantages = naive_advantages(files)
    assert advantages[4] == pytest.approx(0.866, abs=1e-3), "of the three responses on the page alone it were 1.154"
    raw = {}
    for i, (_, completion, _) in enumerate(naive_rows(files)[:7]):
        log_probs = naive_log_probs(files, 2)[i]
        for t, token in enumerate(completion):
            raw[i, t] = (0.25 - log_probs[t][token].item()) * (2 + advantages[i])
    n, total = len(raw), sum(raw.values())
    shown = keyed(weights_of_page(tmp_path / "report.html"))
    assert shown == pytest.approx({key: weight * n / total for key, weight in raw.items()}, rel=1e-4)
    squares, found = sum(w * w for w in raw.values()), summary["credit"]
    force = {key: weight * abs(advantages[key[0]]) for key, weight in raw.items()}
    assert found == {
        "trained_on": f"the tokens that {HERE}.wary gives weight to",
        "num_responses": 7,
        "progress": None,
        "selected_fraction": 1.0,
        "effective_fraction": pytest.approx(total**2 / n / squares, rel=1e-4),
        "weight_max": pytest.approx(max(raw.values()) * n / total, rel=1e-4),
        "positive_share": pytest.approx(
            sum(value for (i, _), value in force.items() if advantages[i] > 0) / sum(force.values()), rel=1e-4
        ),
        "span_found": None,
    }
    assert set(found) == set(summary["definitions"]["credit"])
    said = f"100.0% of the tokens of 7 responses, effectively {found['effective_fraction']:.1%}"
    assert said in capsys.readouterr().out


def test_a_pattern_on_the_page_says_how_many_responses_match(files, tmp_path, capsys):
    span = json.dumps({"span": {"pattern": "a", "missing": "drop"}})
    summary = run(files, tmp_path, "--token_credit", span, "--analyses", "distribution", models=None)
    share = sum("a" in build_tokenizer().decode(row[1]) for row in naive_rows(files)[:7]) / 7
    assert 0 < share < 1 and summary["credit"]["span_found"] == pytest.approx(share)
    assert f"; {share:.1%} of the responses have a match" in capsys.readouterr().out


def test_equal_rewards_are_warned_of(files, tmp_path, caplog, monkeypatch):
    """A rule that reads advantages then gives what it would of a batch without gradient."""
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    data = tmp_path / "wrong.jsonl"
    row = {"prompt": "<user>a<assistant>", "completion": "ab", "correct": False}
    data.write_text((json.dumps(row) + "\n") * 2)
    for credit, warned in (("pepo", True), ("forking", False)):
        caplog.clear()
        options = ("--completions", str(data), "--token_credit", credit, "--analyses", "distribution")
        run(files, tmp_path / credit, *options, models=None)
        assert ("the rule proportional reads the advantages" in caplog.text) == warned


def test_a_selection_and_a_schedule_on_the_page(files, tmp_path):
    """The preset of the last tokens of each response, halfway through its 80 % of the training."""
    options = ("--token_credit", "temporal_position", "--token_credit_progress", "0.4", "--analyses", "distribution")
    summary = run(files, tmp_path, *options, models=None)
    fraction = Fraction("0.505")
    for row in weights_of_page(tmp_path / "report.html"):
        count = math.ceil(fraction * len(row))
        assert (row[-count:] > 0).all() and (row[:-count] == 0).all()
    assert summary["credit"]["progress"] == 0.4
    assert summary["credit"]["effective_fraction"] == pytest.approx(summary["credit"]["selected_fraction"])
    assert "progress of the training" in (tmp_path / "report.html").read_text()


def corpus_of(path):
    return script.load_corpus(path, build_tokenizer(), None)


READ_ADVANTAGES = {
    *("entropy_advantage", "temporal_advantage", "pepo", "gmts", "stapo", "high_entropy_rollouts", "random_rollouts"),
}


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_shown_or_refused_by_name(preset, files, finished):
    """From the scores of the finished run."""
    options = arguments(files, finished[1], "--token_credit", preset, "--token_credit_progress", "0.5", models=None)
    try:
        options = script.parse_arguments(options)
    except SystemExit:
        with pytest.raises(argparse.ArgumentTypeError, match=rf"{preset}: the rule \w+ (needs|takes the pool) "):
            corpus_credit.credit_rules(preset)
        return
    (directory,) = (finished[1] / "scores").glob("*-model-*")
    store = score_store.ScoreStore(finished[1] / "scores", options.model)
    assert store.directory == directory, "scored already"
    weights, effect = corpus_credit.weigh(store, corpus_of(options.completions), build_tokenizer(), options)
    assert [len(row) for row in weights] == [row["length"] for *_, row in naive_rows(files)[:7]]
    values = np.concatenate([np.array(row) for row in weights])
    assert np.isfinite(values).all() and (values >= 0).all() and 0 < effect["selected_fraction"] <= 1

    if preset in READ_ADVANTAGES:
        with pytest.raises(
            ValueError, match=r"the rule \w+ reads the advantages of the responses, and no problem has"
        ):
            corpus_credit.refuse_advantages(build_tokenizer(), options)
    else:
        corpus_credit.refuse_advantages(build_tokenizer(), options)


def test_rules_that_a_file_cannot_serve_are_refused(files, tmp_path, capsys):
    data = tmp_path / "ungraded.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"<user>{x}<assistant>", "completion": "ab"}) + "\n" for x in "abc"))
    for credit in (f"{HERE}.wary", json.dumps({"top_fraction": {"score": "gradient_magnitude"}})):
        with pytest.raises(ValueError, match=r"the rule \S+ reads the advantages of the responses"):
            run(files, tmp_path / "out", "--completions", str(data), "--token_credit", credit, models=None)
        sampled = ("--dataset", "aime24", "--num_samples", "1", "--output", str(tmp_path / "out"))
        with pytest.raises(ValueError, match=r"no problem has two responses with a reward"):
            script.run(script.parse_arguments(["--model", str(files / "model"), *sampled, "--token_credit", credit]))
        assert not list((tmp_path / "out").iterdir()), "before anything is sampled or scored"
    for words, message in (
        (
            [f"{HERE}.contrasting"],
            f"the rule {HERE}.contrasting needs contrast_log_probs, the log-probabilities after",
        ),
        (['{"random": {"pool": "local"}}'], "the rule random takes the pool 'local', which exists only at the loss"),
        (["forkin"], "there is no preset 'forkin'. Did you mean 'forking'?"),
        (["forking", "--token_credit_progress", "20"], r"--token_credit_progress must be in [0, 1], got 20.0"),
        (["forking", "--page_responses", "0"], "--token_credit weighs the responses of report.html"),
    ):
        with pytest.raises(SystemExit):
            script.parse_arguments(arguments(files, tmp_path, "--token_credit", *words, models=None))
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"reward": 0.5, "correct": True}, {"reward": 1.5, "correct": True}], [-0.70701, 0.70701]),
        ([{"reward": 0.5, "correct": True}, {"correct": False}], [0.70701, -0.70701]),  # rewards of some rows only
        ([{"reward": 0.7}] * 3, [0, 0, 0]),
        ([{"correct": True}, {}, {"correct": False}, {"id": "alone", "correct": True}], [0.70701, 0, -0.70701, 0]),
        ([{"correct": True}, {}, {"id": "alone", "correct": True}], None),
    ],
    ids=["rewards", "some rewards", "equal rewards", "some graded", "no two of a problem"],
)  # fmt: skip
def test_advantages_of_a_file(rows, expected, tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": "a", "completion": "b", **row}) + "\n" for row in rows)
    )
    found = corpus_credit.group_advantages(corpus_of(tmp_path / "rows.jsonl"))
    assert (None if found is None else found.tolist()) == (expected and pytest.approx(expected, abs=1e-4))


def test_awkward_names_and_tokens(tmp_path):
    tokens = [{"token": t, "mean_entropy": 1.0} for t in ("$", "$_$", "\\\\$", "\n", " ", "", "<script>", "|", "\x00")]
    svg = figures.save_figure(figures.plot_token_cloud(tokens, "a $_$ b", largest="high"), tmp_path, "cloud")
    xml.etree.ElementTree.fromstring(svg)
    row = {"percentiles": [0, 5], "mean_change": 0.0, "fraction_increased": 0.0, "fraction_decreased": 0.0}
    figure = figures.plot_change([row], "$_$", "<b>&amp;$x$")
    xml.etree.ElementTree.fromstring(figures.save_figure(figure, tmp_path, "change"))
    shares = {"whole_set": 1.0, "per_response": 1.0}
    models = [{"model": name, "with_reference": shares, "with_model": shares} for name in ("$_$", "_a_")]
    figure = figures.plot_overlap({"fraction": 0.2, "models": models})
    xml.etree.ElementTree.fromstring(figures.save_figure(figure, tmp_path, "overlap"))
    table = script.tokens_as_markdown(
        {
            "min_count": 0,
            "num_types": 1,
            "top": [
                {
                    "token": "|\n",
                    "mean_entropy": 1.0,
                    "count": 1,
                    "alternatives": [{"token": "|", "mean_probability": 1.0}],
                    "followed_by": [],
                    "examples": [{"before": "a\n|", "after": "|"}],
                }
            ],
            "bottom": [],
        }
    )
    (line,) = [line for line in table.splitlines() if line.startswith("| **")]
    assert line.replace("\\|", "").count("|") == 7  # six columns


def test_few_token_types_or_none(files, tmp_path, capsys):
    """A short file, as in a first try: missing analyses are named, and no token is in both lists of the console."""
    (path := tmp_path / "few.jsonl").write_text(
        json.dumps({"prompt": "<user>a<assistant>", "completion": "aaaabbbcc"})
    )
    for num_types in range(4):
        output, least = tmp_path / str(num_types), 4 - num_types
        options = ("--completions", str(path), "--analyses", "tokens", "--min_token_count", str(least))
        summary = run(files, output, *options, models=None)
        assert summary["tokens"]["num_types"] == num_types
        printed, table = capsys.readouterr().out, (output / "tokens.md").read_text()
        lists = [line.split(": ")[1].split("  ") for line in printed.splitlines() if " mean entropy: " in line]
        tokens = [token for tokens in lists for token in tokens]
        assert len(tokens) == len(set(tokens)) == min(num_types, 2), printed
        if num_types:
            assert f"There are {num_types} of them, so that both tables list all." in table
            continue
        for text in (printed, table):
            assert f"No token type is sampled more often than {least} times, so that none is listed: lower" in text
        assert "|---" not in table


def test_without_wordcloud_the_tables_remain(files, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "trl_fork.analysis.figures.find_spec", lambda name: None if name == "wordcloud" else find_spec(name)
    )
    run(files, tmp_path, "--analyses", "tokens", models=None)
    assert not list(tmp_path.glob("tokens_*"))
    assert (tmp_path / "tokens.md").exists()


# ---------------------------------------------------------------------- runs


def test_one_model_alone(files, tmp_path):
    summary = run(files, tmp_path, "--max_responses", "3", models=None)
    assert summary["responses"]["num_responses"] == 3
    assert not {"overlap", "change", "percentiles"} & set(summary)
    assert len(list((tmp_path / "scores").iterdir())) == 1


def test_killed_run_continues(files, tmp_path, finished, monkeypatch):
    """Killed within the second model; what was scored is not scored again, and the numbers are those of one run."""
    loads = []
    load_model, save = script.load_model, score_store.ScoreStore._save
    monkeypatch.setattr(script, "load_model", lambda name, options: loads.append(name) or load_model(name, options))

    def save_until_killed(self, *args):
        save(self, *args)
        if len(list((tmp_path / "scores").glob("*/*.npz"))) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(score_store.ScoreStore, "_save", save_until_killed)
    with pytest.raises(KeyboardInterrupt):
        run(files, tmp_path)
    monkeypatch.setattr(score_store.ScoreStore, "_save", save)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "scores").glob("*/*.npz")}
    assert run(files, tmp_path) == finished[0]
    assert [Path(name).name for name in loads] == ["reference", "checkpoint-5", "checkpoint-5", "model"]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    loads.clear()
    assert run(files, tmp_path) == finished[0]
    assert not loads


@pytest.mark.slow
def test_kill_of_a_real_process(files, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "analyze_entropy.py"), *arguments(files, tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out" / "scores").glob("*/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list((tmp_path / "out" / "scores").glob("*/*.npz"))
    finished = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "80th percentile" in finished.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["responses"]["num_responses"] == NUM_ROWS


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(files, tmp_path):
    """Peak memory with 4 and with 12 responses and a large vocabulary: the logits of the others would take 1.4 GB."""
    tokenizer = build_tokenizer()
    sizes = {"vocab_size": 151936, "hidden_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 512}
    build_model(tokenizer, **sizes).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    peaks = []
    for count in (4, 12):
        data = tmp_path / f"{count}.jsonl"
        line = json.dumps({"prompt": "<user>ab<assistant>", "completion": "abcdefgh" * 37})
        data.write_text(f"{line}\n" * count)
        code = (
            "import resource, runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__');"
            "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        command = [
            *(sys.executable, "-c", code, str(ROOT / "examples" / "analyze_entropy.py")),
            *("--model", str(tmp_path / "model"), "--completions", str(data), "--output", str(tmp_path / str(count))),
            *("--page_responses", "4", "--analyses", "distribution", "tokens", "position"),
            *("--max_batch_tokens", "1200"),
        ]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert finished.returncode == 0, finished.stderr[-3000:]
        peaks.append(int(finished.stdout.split("peak")[1]) / 1024)
    assert peaks[1] - peaks[0] < 300, f"peaks in MiB: {peaks}"


def test_decoding_temperatures(files, tmp_path, monkeypatch):
    """All pairs are sampled and graded, once; the table is the mean of what the file holds."""
    more = ["--analyses", "distribution", "temperature", "--temperatures", "0", "1", "2", "--num_samples", "2"]
    more += ["--max_new_tokens", "4", "--batch_size", "5"]
    summary = run(files, tmp_path, *more, models=None)
    result = summary["decoding_temperature"]
    assert result["threshold"] == summary["distribution"]["p80"]
    (path,) = tmp_path.glob("decoding_temperature-*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 5 * 6 * 2
    pairs = [(cell["forking_temperature"], cell["other_temperature"]) for cell in result["cells"]]
    assert sorted(pairs) == [(0, 1), (1, 0), (1, 1), (1, 2), (2, 1)]
    for pair, cell in zip(pairs, result["cells"], strict=True):
        own = [row for row in rows if (row["forking_temperature"], row["other_temperature"]) == pair]
        assert cell["accuracy"] == sum(row["correct"] for row in own) / 12
        assert cell["mean_length"] == pytest.approx(sum(row["length"] for row in own) / 12)
    assert (tmp_path / "decoding_temperature.svg").exists()

    # Cut off in the middle of a line: the rest is sampled again, and is the same.
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:23]) + lines[23][:9])
    assert run(files, tmp_path, *more, models=None) == summary
    assert sorted(path.read_text().splitlines()) == sorted(line.strip() for line in lines)
    monkeypatch.setattr(script, "load_model", None)
    assert run(files, tmp_path, *more, models=None) == summary


def test_samples_as_evaluate_does(files, tmp_path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"question": f"a{i}", "answer": str(i)}) + "\n" for i in range(3)))
    arguments = ["--model", str(files / "model"), "--dataset", str(problems), "--output", str(tmp_path / "out")]
    arguments += ["--num_samples", "2", "--max_new_tokens", "8", "--min_token_count", "0"]
    script.run(script.parse_arguments(arguments))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["responses"]["num_responses"] == 6
    assert summary["completions"] == str(tmp_path / "out" / "completions.jsonl")


# ---------------------------------------------------------------------- input


def read(tmp_path, *rows):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(response_files.read_responses(tmp_path / "rows.jsonl", build_tokenizer()))


def test_any_prompt_and_completion(tmp_path):
    eos, user, assistant, a, b = 1, 2, 3, VOCABULARY["a"], VOCABULARY["b"]
    found = read(
        tmp_path,
        {"prompt": "<user>a<assistant>", "completion": "ab", "truncated": False, "correct": True},
        {"prompt": "<user>a<assistant>", "completion": "ab", "truncated": True, "correct": False},
        {"question": [{"role": "user", "content": "a"}], "response": [{"role": "assistant", "content": "ab"}]},
        {"prompt_ids": [user, a], "completion_ids": [b, eos], "completion": "other text", "dataset": "d", "id": 3},
        {"problem": "b", "text": ""},
    )
    assert [response.prompt_ids for response in found] == [[user, a, assistant]] * 3 + [[user, a], [b]]
    assert [response.completion_ids for response in found] == [[a, b, eos], [a, b], [a, b], [b, eos], []]
    assert [response.correct for response in found] == [True, False, None, None, None]
    assert found[0].problem == found[1].problem == "<user>a<assistant>"
    assert found[3].problem == "d/3"


def test_half_a_last_line_is_left_out_and_damage_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    whole = json.dumps({"prompt": "a", "completion": "b"})
    path.write_text(f"{whole}\n{whole[:9]}")
    assert len(list(response_files.read_responses(path, build_tokenizer()))) == 1
    path.write_text(f"{whole}\n{whole[:9]}\n{whole}\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2, is no JSON"):
        list(response_files.read_responses(path, build_tokenizer()))
    with pytest.raises(ValueError, match=r"line 1 has the fields \['answer', 'prompt'\], but needs a prompt"):
        read(tmp_path, {"prompt": "a", "answer": "b"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--analyses", "overlap"], "--analyses overlap compares models: give --reference_model or --checkpoints"),
        (["--temperature", "0"], "--temperature must be positive, got 0.0"),
        (["--completions", "nowhere.jsonl"], "there is no file 'nowhere.jsonl'"),
        (["--dataset", "aime24"], "not allowed with argument"),
        (["--min_count", "1"], "there is no option --min_count; did you mean --min_token_count?"),
    ],
)
def test_bad_arguments(files, tmp_path, capsys, change, message):
    with pytest.raises(SystemExit):
        script.parse_arguments(arguments(files, tmp_path, *change, models=None))
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--model", "--reference_model", "--checkpoints"])
def test_a_wrong_path_stops_before_anything_is_read(files, tmp_path, option):
    options = script.parse_arguments(arguments(files, tmp_path / "out", option, "./no_such_dir"))
    with pytest.raises(ValueError, match=r"There is no folder './no_such_dir'"):
        script.run(options)
    assert not (tmp_path / "out").exists()


def test_a_misspelled_option_is_not_called_missing(capsys):
    with pytest.raises(SystemExit):
        script.parse_arguments(["--modle", "m", "--completions", "c", "--output", "o"])
    assert "there is no option --modle; did you mean --model?" in capsys.readouterr().err


def test_checkpoints_are_put_in_order(files, tmp_path):
    def parsed(*checkpoints):
        options = script.parse_arguments(arguments(files, tmp_path, "--checkpoints", *checkpoints, models=None))
        return [options.reference_model, *options.checkpoints]

    # As the shell sorts checkpoint-*
    assert parsed("run/checkpoint-100", "run/checkpoint-20/", "run/checkpoint-3") == [
        *("run/checkpoint-3", "run/checkpoint-20/", "run/checkpoint-100")
    ]
    assert parsed("z", "a", "run/checkpoint-1") == ["z", "a", "run/checkpoint-1"]


def test_other_vocabulary_is_refused(files, tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["new"])
    build_model(tokenizer).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="has another vocabulary than the model"):
        run(files, tmp_path / "out", "--reference_model", str(tmp_path / "other"), models=None)


def test_checkpoints_need_no_tokenizer_but_the_model_does(files, tmp_path):
    build_model(build_tokenizer(), 1).save_pretrained(tmp_path / "bare")
    bare = str(tmp_path / "bare")
    arguments = ["--analyses", "overlap", "--max_responses", "2", "--reference_model", bare]
    assert run(files, tmp_path / "out", *arguments, models=None)["overlap"]["models"][0]["model"] == "bare"
    with pytest.raises(ValueError, match=r"bare' has no tokenizer \(tokenizer_config\.json\)"):
        run(files, tmp_path / "out", "--model", bare, models=None)


def test_nothing_to_analyse(files, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"has no completion tokens to analyse \(0 responses\)"):
        run(files, tmp_path, "--completions", str(tmp_path / "empty.jsonl"), models=None)
