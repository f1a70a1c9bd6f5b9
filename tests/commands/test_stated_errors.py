"""Mistakes in rewards, rules and adapters that only a run can find: one message without a traceback."""

import re
import subprocess
import sys

import pytest

from tests.commands.test_train_script import parse, recipe, write  # noqa: F401
from trl_fork.commands import dispatch
from trl_fork.commands.model_checks import adapter_of


OWN = """
import json

def letters(completions, **kwargs):
    return [float(len(c[0]["content"])) for c in completions]

def words(completions, **kwargs):
    return ["good"] * len(completions)

async def nothing(completions, **kwargs):
    pass

def short(completions, **kwargs):
    return [1.0, 2.0]

def reads(text):
    return json.loads(text)

def breaks(completions, **kwargs):
    return [reads("{") for _ in completions]

def negative(signals):
    return -signals.entropies

def narrow(signals):
    return signals.entropies[:, :2]

def misspelt(signals):
    return signals.entropy

def no_method(signals, pool):
    return pool.topp(signals.entropies, signals.mask, 0.2)
"""


@pytest.fixture
def refused(recipe, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Run `trl-fork train` with changed settings; it must refuse them. Returns what it prints at the end, by lines."""
    (tmp_path / "mistakes.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def refused(**changes) -> list[str]:
        recipe.update({"reward_funcs": ["mistakes.letters"], "save_strategy": "no"}, **changes)
        assert dispatch.main(["train", "--config", write(recipe, tmp_path)]) == 1
        printed = capsys.readouterr().err
        assert "Traceback" not in printed
        return printed[printed.index("trl-fork train: error: ") :].splitlines()

    return refused


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("words", "and returned 'good', of type str, for completion 0 (counted from 0)."),
        ("nothing", "and returned nothing. Does it end without a return?"),
        ("short", "and returned a list of 2."),
    ],
)
def test_what_a_reward_has_returned(function, message, refused):
    rule = f"The reward function '{function}' must return a list of 8, one float or None per completion, "
    assert refused(reward_funcs=[f"mistakes.{function}"]) == [f"trl-fork train: error: {rule}{message}"]


def test_an_error_in_a_reward_comes_with_the_lines_of_the_user_alone(refused):
    first, *lines = refused(reward_funcs=["mistakes.letters", "mistakes.breaks"])
    assert first.startswith("trl-fork train: error: The reward function 'breaks' failed (JSONDecodeError: Expecting")
    files = [line for line in lines if line.startswith("  File ")]
    assert [re.search(r"/(\w+)\.py\", line \d+, in (\S+)", line).groups() for line in files] == [
        ("mistakes", "breaks"),
        *([("mistakes", "<listcomp>")] if len(files) == 3 else []),  # a frame of its own before Python 3.12
        ("mistakes", "reads"),
    ]
    assert "    return json.loads(text)" in lines


@pytest.mark.parametrize(
    ("rule", "message", "line"),
    [
        ("negative", r"rule mistakes.negative gives \d+ negative weights .* clamp the weights at 0\.$", None),
        ("narrow", r"rule mistakes.narrow failed \(ValueError: it must return .* \(8, 12\), got \(8, 2\)\)\.", None),
        ("misspelt", "'Signals' object has no attribute 'entropy'; did you mean 'entropies'?", "signals.entropy"),
        ("no_method", "object has no attribute 'topp'; did you mean 'top'?", "pool.topp("),
    ],
)
def test_a_rule_that_cannot_be_trained_with(rule, message, line, refused):
    first, *lines = refused(token_credit=f"mistakes.{rule}")
    assert first.startswith("trl-fork train: error: Step 0: token_credit: rule mistakes.")
    assert re.search(message.replace("?", r"\?") if line else message, first)
    assert any(line in shown for shown in lines) if line else not lines
    assert not any("trl_fork/" in shown for shown in lines)


@pytest.mark.slow
def test_a_launch_says_it_once_and_has_no_traceback_either(recipe, tmp_path):  # noqa: F811
    (tmp_path / "mistakes.py").write_text(OWN)
    path = write(recipe | {"reward_funcs": ["mistakes.words"]}, tmp_path)
    words = ["--num_processes", "1", "--cpu", "--config", path]
    done = subprocess.run(
        [sys.executable, "-m", "trl_fork", "train", *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    *_, reason, last = done.stderr.splitlines()
    assert reason.startswith("trl-fork train: error: The reward function 'words' must return a list of 8")
    assert last.startswith("trl-fork train: error: process 0 of the launch ended with the status 1;")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"lora_target_modules": ["foo"]},
            r"lora_target_modules \(target_modules of peft_config\) must name modules of the model, got \['foo'\], "
            r"which match none: the linear modules of this Qwen3ForCausalLM are \['down_proj', 'gate_proj', 'k_proj', "
            r"'o_proj', 'q_proj', 'up_proj', 'v_proj'\], and 'all-linear' stands for all of them\.$",
        ),
        # PEFT passes over these
        ({"lora_target_modules": ["q_proj", "vproj"]}, r"got \['vproj'\], .*; did you mean 'v_proj'\?$"),
        (
            {"lora_target_modules": ["q_proj"], "lora_modules_to_save": ["embed_token"]},
            r"lora_modules_to_save .* got \['embed_token'\], .*; did you mean 'embed_tokens'\?$",
        ),
        ({"lora_target_parameters": ["down_prj.weight"]}, r"lora_target_parameters .* must name parameters of"),
        # What PEFT and TRL refuse themselves
        ({"lora_target_modules": ["q_proj", "norm"]}, r"lora_target_modules=\['norm', 'q_proj'\] .*: Target module"),
        ({"lora_target_modules": ["lm_head"]}, "Applying a PEFT adapter to `lm_head` is not supported"),
    ],
    ids=str,
)
def test_names_of_an_adapter_that_the_model_has_not(settings, message, refused):
    (line,) = refused(use_peft=True, **settings)
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("q_proj", {"q_proj"}),  # a text would be a pattern of whole names to PEFT
        ("self_attn.q_proj", {"self_attn.q_proj"}),
        ("all-linear", "all-linear"),
        (r".*layers\.0\..*q_proj", r".*layers\.0\..*q_proj"),
        ("q_proj v_proj", {"q_proj", "v_proj"}),
    ],
)
def test_one_name_of_a_target_is_a_name(given, wanted):
    words = ["--use_cpu", "true", "--bf16", "false", "--use_peft", "--lora_target_modules", *given.split()]
    *_, model_config = parse(*words)
    assert adapter_of(model_config).target_modules == wanted
