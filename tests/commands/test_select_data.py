"""`trl-fork select`: what is selected, against full logits of one row at a time."""

import json
import math
import os
import random
import shutil
from fractions import Fraction
from statistics import mean

import pytest
import torch

from tests.conftest import LETTERS, build_model, build_tokenizer
from trl_fork.commands import select as script


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("files")
    tokenizer = build_tokenizer()
    build_model(tokenizer).save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    rng = random.Random(1)
    rows = [
        {
            "prompt": "<user>" + "abc"[number % 3] + "<assistant>",
            "completion": "".join(rng.choices(LETTERS, k=rng.randint(2, 30))),
            "correct": number % 4 > 0,
            "note": f"é {number}",
        }
        for number in range(20)
    ]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def entropies(files):
    """(row, entropies of its tokens from the largest on) of every line."""
    model = build_model(build_tokenizer()).eval()
    ids = {letter: 4 + i for i, letter in enumerate(LETTERS)}
    result = []
    for line in (files / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = [2, ids[row["prompt"][6]], 3]
        completion = [ids[letter] for letter in row["completion"]]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        log_probs = logits.double().log_softmax(-1)
        result.append((row, sorted((-(log_probs.exp() * log_probs).sum(-1)).tolist(), reverse=True)))
    return result


@pytest.fixture(scope="module")
def naive(entropies):
    """(row, HES with the top 20 % of tokens, HES with 0.5 %) of every line."""
    return [(row, sum(values[: math.ceil(0.2 * len(values))]), values[0]) for row, values in entropies]


def run(files, tmp_path, *more, rows="rows.jsonl"):
    output = tmp_path / "selected.jsonl"
    arguments = ["--model", str(files / "model"), "--completions", str(files / rows), "--output", str(output)]
    script.run(script.parse_arguments([*arguments, *more]))
    selected = [json.loads(line) for line in output.read_text().splitlines()]
    return selected, json.loads((tmp_path / "selected.jsonl.json").read_text())


def best(naive, indices, count, column):
    return sorted(indices, key=lambda i: -naive[i][column])[:count]


def test_top_share_of_the_correct_ones(files, naive, tmp_path, capsys):
    selected, numbers = run(files, tmp_path, "--fraction", "0.3")
    correct = [i for i in range(20) if naive[i][0]["correct"]]
    wanted = sorted(best(naive, correct, math.ceil(Fraction("0.3") * len(correct)), 2))
    assert [row["note"] for row in selected] == [f"é {i}" for i in wanted]  # in their order, with all their fields
    for row, i in zip(selected, wanted, strict=True):
        assert row["high_entropy_sum"] == pytest.approx(naive[i][2], abs=1e-5)
    assert (numbers["num_responses"], numbers["num_candidates"], numbers["num_selected"]) == (20, 15, 5)
    wrong = [naive[i][2] for i in range(20) if not naive[i][0]["correct"]]
    assert numbers["mean_high_entropy_sum_incorrect"] == pytest.approx(sum(wrong) / 5, abs=1e-5)
    assert "pearson_with_length" in capsys.readouterr().out


def test_numbers(files, naive, tmp_path):
    selected, numbers = run(
        files, tmp_path, "--fraction", "0.5", "--top_tokens", "0.2", "--include_incorrect", "--temperature", "1"
    )
    wanted = best(naive, range(20), 10, 1)
    assert {row["note"] for row in selected} == {f"é {i}" for i in wanted}
    lengths = [len(row["completion"]) for row, *_ in naive]
    sums = [value for _, value, _ in naive]
    mean_x, mean_y = sum(sums) / 20, sum(lengths) / 20
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(sums, lengths, strict=True))
    spread = math.prod(math.sqrt(sum((v - m) ** 2 for v in vs)) for vs, m in ((sums, mean_x), (lengths, mean_y)))
    assert numbers["pearson_with_length"] == pytest.approx(covariance / spread, abs=1e-5)
    assert numbers["pearson_with_length"] > 0.8  # HES is a sum
    assert numbers["mean_length_selected"] == pytest.approx(sum(lengths[i] for i in wanted) / 10)
    longest = sorted(range(20), key=lambda i: -lengths[i])[:10]
    assert numbers["also_among_the_longest"] == pytest.approx(len(set(longest) & set(wanted)) / 10)
    assert set(numbers["definitions"]) == set(numbers) - {"settings", "definitions"}


def test_per_problem(files, naive, tmp_path):
    selected, _ = run(files, tmp_path, "--num_selected", "2", "--pool", "problem")
    wanted = set()
    for problem in range(3):
        wanted.update(best(naive, [i for i in range(problem, 20, 3) if naive[i][0]["correct"]], 2, 2))
    assert {row["note"] for row in selected} == {f"é {i}" for i in wanted}
    assert len(selected) == 6


def test_without_grades_it_asks(files, naive, tmp_path):
    (files / "ungraded.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in row.items() if k != "correct"}) + "\n" for row, *_ in naive)
    )
    with pytest.raises(ValueError, match="does not say which responses are right"):
        run(files, tmp_path, "--fraction", "0.1", rows="ungraded.jsonl")
    selected, numbers = run(files, tmp_path, "--fraction", "0.1", "--include_incorrect", rows="ungraded.jsonl")
    assert len(selected) == 2
    assert numbers["mean_high_entropy_sum_correct"] is None and numbers["mean_high_entropy_sum_incorrect"] is None


def above(values, threshold):
    return [value for value in values if value > threshold]


# Naive scores, from the entropies of a response, largest first
SCORES = {
    (): lambda values: values[0],
    ("--score", "high_entropy_sum", "--top_tokens", "0.2"): lambda v: sum(v[: math.ceil(0.2 * len(v))]),
    ("--score", "high_entropy_sum", "--entropy_threshold", "2.9"): lambda v: sum(above(v, 2.9)),
    ("--score", "high_entropy_mean"): lambda values: values[0],
    ("--score", "high_entropy_mean", "--top_tokens", "0.2"): lambda v: mean(v[: math.ceil(0.2 * len(v))]),
    ("--score", "high_entropy_mean", "--entropy_threshold", "2.9"): lambda v: mean(above(v, 2.9) or [0]),
    ("--score", "entropy_sum"): sum,
    ("--score", "length"): len,
}


@pytest.mark.parametrize("order", ["highest", "lowest", "random", "longest"])
@pytest.mark.parametrize("score", SCORES, ids=lambda words: " ".join(words[1:]) or "default")
def test_scores_and_orders(files, entropies, tmp_path, score, order):
    values = [SCORES[score](found) for _, found in entropies]
    lengths = [len(found) for _, found in entropies]
    selected, numbers = run(files, tmp_path, "--fraction", "0.3", "--include_incorrect", *score, "--order", order)
    name = score[1] if score else "high_entropy_sum"
    rows = [int(row["note"].split()[1]) for row in selected]
    assert rows == sorted(rows) and len(rows) == 6
    ranks = {"highest": lambda i: -values[i], "lowest": lambda i: values[i], "longest": lambda i: -lengths[i]}
    if order in ranks:
        assert set(rows) == set(sorted(range(20), key=ranks[order])[:6])
    # All fields as they were, and the score that was chosen, whatever the order
    assert selected == [{**entropies[row][0], name: pytest.approx(values[row], abs=1e-5)} for row in rows]

    right = [i for i in range(20) if entropies[i][0]["correct"]]
    groups = {"correct": right, "incorrect": set(range(20)) - set(right), "selected": rows}
    for group, members in groups.items():
        assert numbers[f"mean_{name}_{group}"] == pytest.approx(mean(values[i] for i in members), abs=1e-5)
    # No number is named after a score that it is not of.
    assert all(name in key for key in numbers if "entropy" in key)
    assert numbers["settings"]["score"] == name and numbers["settings"]["order"] == order
    assert set(numbers["definitions"]) == set(numbers) - {"settings", "definitions"}
    definition = numbers["definitions"][f"mean_{name}_correct"]
    kind = {"high_entropy_mean": "of the mean of the", "length": "of the number of tokens"}.get(
        name, "of the sum of the"
    )
    tokens = {"0.2": "top 20 %", "2.9": "above 2.9 nats", "entropy_sum": "all tokens", "length": "tokens"}
    assert kind in definition and tokens.get(score[-1] if score else "", "top 0.5 %") in definition
    assert numbers["mean_length_selected"] == pytest.approx(mean(lengths[i] for i in rows))
    longest = sorted(range(20), key=lambda i: -lengths[i])[:6]
    assert numbers["also_among_the_longest"] == pytest.approx(len(set(longest) & set(rows)) / 6)
    assert numbers["longest_expected_by_chance"] == pytest.approx(6 / 20)


def test_a_random_selection(files, naive, tmp_path):
    def draw(*more):
        return {row["note"] for row in run(files, tmp_path, "--order", "random", *more)[0]}

    six = draw("--num_selected", "6")
    assert six == draw("--num_selected", "6", "--seed", "0") == draw("--num_selected", "6", "--score", "length")
    matched = ("--num_selected", "6", "--match_length")
    assert draw(*matched) == draw(*matched, "--score", "length") != six
    assert six < draw("--num_selected", "9") and six != draw("--num_selected", "6", "--seed", "1")
    right = {row["note"] for row, *_ in naive if row["correct"]}
    # The draw of a response is the same among all and among the correct ones.
    assert six <= right and draw("--num_selected", "12", "--include_incorrect") & right <= draw("--num_selected", "12")


@pytest.mark.parametrize("order", ["highest", "lowest", "random"])
def test_matched_lengths(files, entropies, tmp_path, order):
    lengths = [len(found) for _, found in entropies]
    selected, numbers = run(
        files, tmp_path, "--num_selected", "4", "--include_incorrect", "--match_length", "--order", order
    )
    rows = [int(row["note"].split()[1]) for row in selected]
    # Quarters by the number of shorter responses; each gives its best.
    quarter = [4 * sum(other < length for other in lengths) // 20 for length in lengths]
    assert [quarter.count(number) for number in range(4)] == [5, 6, 5, 4]
    assert sorted(quarter[row] for row in rows) == [0, 1, 2, 3]
    if order != "random":
        sign = -1 if order == "highest" else 1
        best = [
            min((sign * found[0], i) for i, (_, found) in enumerate(entropies) if quarter[i] == q) for q in range(4)
        ]
        assert set(rows) == {i for _, i in best}
    longest = sorted(range(20), key=lambda i: (-lengths[i], i))[:4]
    by_chance = mean(sum(quarter[i] == q for i in longest) / quarter.count(q) for q in range(4))
    assert numbers["longest_expected_by_chance"] == pytest.approx(by_chance)


def test_matched_lengths_of_small_pools(files, tmp_path):
    """Of 15 correct responses each problem has five: 20 % of them are one, 30 % are two."""
    more = ["--pool", "problem", "--match_length"]
    with pytest.raises(ValueError, match=r"none of the 3 pools gives more than a single response.*--pool global"):
        run(files, tmp_path, "--fraction", "0.2", *more)
    assert not (tmp_path / "selected.jsonl").exists()
    for fraction, size in (("0.3", 6), ("1", 15)):
        selected, numbers = run(files, tmp_path, "--fraction", fraction, *more)
        assert (len(selected), numbers["num_unmatched"]) == (size, 0)
    assert set(numbers["definitions"]) == set(numbers) - {"settings", "definitions"}


def test_a_tie_is_counted(files, entropies, tmp_path):
    """No token is above 9 nats: every score is 0, and the first lines are selected."""
    selected, numbers = run(files, tmp_path, "--num_selected", "5", "--include_incorrect", "--entropy_threshold", "9")
    assert [row["note"] for row in selected] == [f"é {i}" for i in range(5)]
    assert numbers["num_tied_at_the_cut"] == 15
    assert numbers["spearman_with_length"] is None
    assert numbers["settings"]["top_tokens"] is None and numbers["settings"]["entropy_threshold"] == 9


def test_a_file_is_scored_once(files, naive, tmp_path):
    """Whatever is selected of it, and wherever to: the weights are gone, and the file of them looks the same."""
    shutil.copytree(files / "model", tmp_path / "model")
    shutil.copy(files / "rows.jsonl", tmp_path / "rows.jsonl")
    first, _ = run(tmp_path, tmp_path, "--fraction", "0.3")
    weights = tmp_path / "model" / "model.safetensors"
    was = weights.stat()
    weights.write_bytes(bytes(was.st_size))
    os.utime(weights, ns=(was.st_atime_ns, was.st_mtime_ns))
    (tmp_path / "elsewhere").mkdir()
    for more in ([], ["--order", "random"], ["--score", "entropy_sum"], ["--pool", "problem", "--match_length"]):
        again, _ = run(tmp_path, tmp_path / "elsewhere", "--fraction", "0.3", *more)
        assert more or again == first
    with pytest.raises(Exception, match=r"(?i)safetensor|header"):  # another temperature has other scores
        run(tmp_path, tmp_path, "--fraction", "0.3", "--temperature", "2")


def test_the_folder_of_the_scores(files, tmp_path):
    run(files, tmp_path, "--fraction", "0.3", "--scores_dir", str(tmp_path / "kept" / "scores"))
    assert list((tmp_path / "kept" / "scores").glob("*/scores-000000.npz"))
    with pytest.raises(ValueError, match=r"folder of the scores, .*rows.jsonl/x, cannot be made .*--scores_dir"):
        run(files, tmp_path, "--fraction", "0.3", "--scores_dir", str(files / "rows.jsonl" / "x"))


def test_lengths_need_no_weights(files, tmp_path):
    build_tokenizer().save_pretrained(tmp_path / "model")
    shutil.copy(files / "rows.jsonl", tmp_path / "rows.jsonl")
    selected, _ = run(tmp_path, tmp_path, "--fraction", "0.3", "--score", "length", "--order", "longest")
    assert all(row["length"] == len(row["completion"]) for row in selected)
    assert not (tmp_path / "rows.jsonl.scores").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give one of --fraction and --num_selected"),
        (["--fraction", "0.1", "--num_selected", "2"], "give one of --fraction and --num_selected"),
        (["--fraction", "20"], r"--fraction must be in (0, 1], got 20.0"),
        (["--num_selected", "0"], "--num_selected must be at least 1, got 0"),
        (["--fraction", "0.1", "--top_tokens", "0"], "--top_tokens must be in (0, 1], got 0.0"),
        (
            ["--fraction", "0.1", "--order", "shortest"],
            "--order must be one of ['highest', 'lowest', 'random', 'longest']",
        ),
        (["--fraction", "0.1", "--score", "loss"], "got 'loss'"),
        (
            ["--fraction", "0.1", "--order", "random", "--seed", "-1"],
            "--seed must be at least 0 and below 2**63, got -1",
        ),
        (
            ["--fraction", "0.1", "--seed", str(2**63)],
            "--seed must be at least 0 and below 2**63, got 9223372036854775808",
        ),
        (
            ["--fraction", "0.1", "--entropy_threshold", "0.672", "--top_tokens", "0.005"],
            "--entropy_threshold 0.672 and --top_tokens 0.005 both say which tokens are summed: give one",
        ),
        *(
            (["--fraction", "0.1", "--score", score, option, "0.5"], f"{option} 0.5 has no effect on --score {score}")
            for score in ("entropy_sum", "length")
            for option in ("--entropy_threshold", "--top_tokens")
        ),
        *(
            (["--fraction", "0.1", "--entropy_threshold", value], "must be a number of nats that is not negative")
            for value in ("-0.1", "nan", "inf")
        ),
        (["--fraction", "0.1", "--match_length", "--order", "longest"], "--order longest changes them: give one"),
        *(
            (
                ["--fraction", "0.1", "--match_length", "--score", "length", "--order", order],
                "by --score length changes",
            )
            for order in ("highest", "lowest")
        ),
        (["--num_selected", "1", "--match_length"], "a single response of a pool has no distribution of lengths"),
        (["--fraction", "2", "--seed", "-1"], "2 settings cannot be taken"),
    ],
)
def test_bad_arguments(files, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit):
        run(files, tmp_path, *more)
    assert message in capsys.readouterr().err


def test_the_file_itself_is_not_overwritten(files):
    path = str(files / "rows.jsonl")
    arguments = ["--model", str(files / "model"), "--completions", path, "--output", path, "--fraction", "1"]
    with pytest.raises(ValueError, match="are the same file"):
        script.run(script.parse_arguments(arguments))
