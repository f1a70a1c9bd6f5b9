"""`trl-fork analyze --analyses loops`: its numbers recomputed from the logits of each number of loops, row by row."""

import base64
import json
import math
import random
import re
import statistics
import xml.etree.ElementTree
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from tests.commands.test_analyze_script import VOCABULARY, keyed, top
from tests.conftest import LETTERS, build_looped_model, build_model, build_tokenizer
from tests.report.test_report_page import read as read_page
from trl_fork.analysis import score_store
from trl_fork.commands import analyze as script


NUM_ROWS, NUM_LOOPS = 14, 3


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("files")
    tokenizer = build_tokenizer()
    model = build_looped_model(tokenizer)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.model.early_exit_gate.weight, std=0.3)
    for name, saved in (
        ("looped", model),
        ("checkpoint-5", build_looped_model(tokenizer, seed=3)),
        ("one_loop", build_looped_model(tokenizer, total_ut_steps=1)),
        ("plain", build_model(tokenizer)),
    ):
        saved.save_pretrained(path / name)
        tokenizer.save_pretrained(path / name)
    rng = random.Random(0)
    rows = [
        {
            "prompt": f"<user>{'ab9'[: 1 + n % 3]}<assistant>",
            "completion": "".join(rng.choices(LETTERS[:8], k=1 + 3 * n)),
            "truncated": False,
        }
        for n in range(NUM_ROWS)
    ]
    (path / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(files, output, *more, model="looped"):
    words = ("--model", str(files / model), "--completions", str(files / "completions.jsonl"), "--output", str(output))
    script.run(script.parse_arguments([*words, *more]))
    return json.loads((output / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    output = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_store, "SHARD_SIZE", 5)
        return run(files, output, "--analyses", "distribution", "loops", "--page_responses", "6"), output


@pytest.fixture(scope="module")
def naive(files):
    """Completions, entropies `[loop][row][token]`, and expected depths `[row][token]`."""
    model = build_looped_model(build_tokenizer())
    model.load_state_dict(type(model).from_pretrained(files / "looped").state_dict())
    model.eval()
    completions, entropies, depths = [], [[] for _ in range(NUM_LOOPS)], []
    for line in (files / "completions.jsonl").read_text().splitlines():
        row = json.loads(line)
        question = row["prompt"].removeprefix("<user>").removesuffix("<assistant>")
        prompt = [2, *(VOCABULARY[letter] for letter in question), 3]
        completions.append([*(VOCABULARY[letter] for letter in row["completion"]), 1])
        ids = torch.tensor([prompt + completions[-1]])
        stays, depth = 1.0, 0.0
        for number in range(NUM_LOOPS):
            with torch.no_grad():
                log_probs = (
                    model(input_ids=ids, num_loops=number + 1).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
                )
                states = model.model(input_ids=ids, num_loops=number + 1).last_hidden_state[0, len(prompt) - 1 : -1]
                leaves = model.model.early_exit_gate(states)[:, 0].double().sigmoid()
            entropies[number].append((-(log_probs.exp() * log_probs).sum(-1)).tolist())
            depth = depth + (number + 1) * stays * (leaves if number + 1 < NUM_LOOPS else 1)
            stays = stays * (1 - leaves)
        depths.append(depth.tolist())
    return completions, entropies, depths


def test_loops(finished, naive):
    (summary, _), (_, entropies, _) = finished, naive
    last = top(keyed(entropies[-1]))
    assert summary["loops"]["fraction"] == 0.2 and len(summary["loops"]["loops"]) == NUM_LOOPS
    for number, (found, rows) in enumerate(zip(summary["loops"]["loops"], entropies, strict=True), start=1):
        values = sorted(value for row in rows for value in row)
        assert found["loop"] == number
        assert found["mean_entropy"] == pytest.approx(statistics.mean(values), abs=1e-5)
        for name, level in (("p50", 50), ("p80", 80), ("p95", 95)):
            assert found[name] == pytest.approx(values[-(-level * len(values) // 100) - 1], abs=1e-5)
        assert found["overlap_with_last"]["whole_set"] == pytest.approx(len(top(keyed(rows)) & last) / len(last))
        pairs = [(top(keyed([x])), top(keyed([y]))) for x, y in zip(rows, entropies[-1], strict=True)]
        per_response = sum(len(x & y) for x, y in pairs) / sum(len(y) for _, y in pairs)
        assert found["overlap_with_last"]["per_response"] == pytest.approx(per_response)
    assert summary["loops"]["loops"][-1]["mean_entropy"] == pytest.approx(summary["distribution"]["mean"], abs=1e-6)


def test_resolved_and_late_forks(finished, naive):
    (summary, output), (completions, entropies, _) = finished, naive
    first, last = top(keyed(entropies[0])), top(keyed(entropies[-1]))
    total = sum(map(len, completions))
    occurrences = Counter(token for row in completions for token in row)
    names = list(VOCABULARY)
    for name, places in (("resolved", first - last), ("late", last - first)):
        found = summary["loops"][name]
        assert places and found["num_tokens"] == len(places)
        assert found["fraction"] == pytest.approx(len(places) / total)
        counts = Counter(completions[i][t] for i, t in places)
        assert [(row["token_id"], row["count"]) for row in found["tokens"]] == sorted(
            counts.items(), key=lambda item: (-item[1], item[0])
        )
        for row in found["tokens"]:
            assert row["token"] == names[row["token_id"]]
            assert row["share"] == pytest.approx(row["count"] / occurrences[row["token_id"]])
            own = [(i, t) for i, t in places if completions[i][t] == row["token_id"]]
            for key, loop in (("mean_entropy_first", 0), ("mean_entropy_last", -1)):
                assert row[key] == pytest.approx(statistics.mean(entropies[loop][i][t] for i, t in own), abs=1e-5)
    table = (output / "loops.md").read_text()
    assert table.count("\n| **") == sum(len(summary["loops"][name]["tokens"]) for name in ("resolved", "late"))


def test_exit_depth(finished, naive):
    (summary, _), (_, entropies, depths) = finished, naive
    flat = [depth for row in depths for depth in row]
    found = summary["loops"]["exit"]
    assert found["mean_depth"] == pytest.approx(statistics.mean(flat), abs=1e-5)
    assert sum((n + 1) * p for n, p in enumerate(found["probabilities"])) == pytest.approx(
        found["mean_depth"], abs=1e-5
    )
    assert sum(found["probabilities"]) == pytest.approx(1, abs=1e-5)
    for name, loop in (("first_loop", 0), ("last_loop", -1)):
        expected = stats.spearmanr(flat, [value for row in entropies[loop] for value in row]).statistic
        assert found["spearman_with_entropy"][name] == pytest.approx(expected, abs=1e-4)
    assert sum(part["num_tokens"] for part in found["bins"]) == len(flat) and len(found["bins"]) == 20


def test_page_has_every_loop(finished, naive):
    (_, output), (_, entropies, _) = finished, naive
    data, responses = read_page(output / "report.html")
    assert len(responses) == 6
    loops = [np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f4") for text in data["earlier"]]
    assert len(loops) == NUM_LOOPS - 1
    for found, rows in zip(loops, entropies, strict=False):
        np.testing.assert_allclose(found, [value for row in rows[:6] for value in row], atol=1e-5)
    for (*_, found), row in zip(responses, entropies[-1], strict=False):
        np.testing.assert_allclose(found, row, atol=1e-5)
    text = (output / "report.html").read_text()
    assert re.search(r"<dt>loop 1, mean entropy \(nats\)</dt>", text)


def test_figures_and_definitions(finished):
    summary, output = finished
    for name in ("loops", "exit_depth"):
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert xml.etree.ElementTree.parse(output / f"{name}.svg").getroot().tag.endswith("svg")

    def keys(value):
        for item in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
            yield from keys(item)
        yield from value if isinstance(value, dict) else ()

    assert set(keys(summary["loops"])) <= set(summary["definitions"]["loops"])


def test_screen(files, tmp_path, capsys):
    run(files, tmp_path, "--analyses", "loops", "--page_responses", "0")
    shown = capsys.readouterr().out
    assert "After loop 1: mean entropy" in shown and "100.0% of its top 20% positions are the last loop's" in shown
    assert "Resolved by the loops:" in shown and "Expected number of loops" in shown
    assert read_page(tmp_path / "report.html")[1] == []


def test_with_a_reference_and_from_scores_of_before(files, tmp_path):
    """The reference is scored after its last loop alone; scores without loops are replaced."""
    plain = run(files, tmp_path, "--analyses", "distribution")
    assert "loops" not in plain and not read_page(tmp_path / "report.html")[0]["earlier"]
    both = run(files, tmp_path, "--analyses", "loops", "overlap", "--reference_model", str(files / "checkpoint-5"))
    assert len(both["loops"]["loops"]) == NUM_LOOPS and len(both["overlap"]["models"]) == 2
    assert len(read_page(tmp_path / "report.html")[0]["earlier"]) == NUM_LOOPS - 1
    plain = run(files, tmp_path, "--analyses", "distribution")
    assert not read_page(tmp_path / "report.html")[0]["earlier"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "plain",
            r"--analyses loops needs a looped model, such as ByteDance/Ouro-1.4B; '.*plain' is of the type 'qwen3'",
        ),
        ("one_loop", r"compares the loops of a model, and '.*one_loop' has one \(total_ut_steps: 1\)"),
    ],
)
@pytest.mark.parametrize("source", ["completions", "dataset"])
def test_a_model_without_loops_is_refused_before_anything_is_loaded(
    files, model, message, source, tmp_path, monkeypatch
):
    def never(*args, **kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr(script, "load_model", never)
    monkeypatch.setattr(script, "load_tokenizer", never)
    monkeypatch.setattr(script, "sample_responses", never)
    given = ["--completions", str(files / "completions.jsonl")] if source == "completions" else ["--dataset", "aime24"]
    words = ["--model", str(files / model), *given, "--output", str(tmp_path / "out"), "--analyses", "loops"]
    with pytest.raises(ValueError, match=message):
        script.run(script.parse_arguments(words))
    assert not (tmp_path / "out").exists()


def test_hostile_tokens_stay_text(files, tmp_path):
    """Whatever a token of the table says, the table has as many cells and lines."""
    from trl_fork.analysis.summary import loops_as_markdown

    row = {"count": 1, "share": 1.0, "mean_entropy_first": math.pi, "mean_entropy_last": 0.0}
    tokens = [{"token": text, **row} for text in ("a|b", "\n# x", "\\|", "<script>alert(1)</script>", "`", "")]
    part = {"num_tokens": 6, "fraction": 0.1, "tokens": tokens}
    lines = loops_as_markdown({"fraction": 0.2, "resolved": part, "late": {**part, "tokens": []}}).splitlines()
    cells = [re.findall(r"(?<!\\)(?:\\\\)*\|", line) for line in lines if line.startswith("| **")]
    assert [len(bars) for bars in cells] == [6] * 6
    assert not re.search(r"(?<!\\)<", "\n".join(lines)), "no text of a model becomes HTML"
