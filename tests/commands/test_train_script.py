"""`examples/train.py` as a user runs it: real text, real parsing, real processes."""

import json
import logging
import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.conftest import build_model
from tests.data.test_math_datasets import hub  # noqa: F401
from tests.report.test_report_page import read
from tests.trainer.test_features import byte_tokenizer
from trl_fork.commands import analyze as analyze_entropy
from trl_fork.commands import evaluate
from trl_fork.commands import train as script
from trl_fork.commands.output_directory import checkpoint_choice, refuse_other_run
from trl_fork.commands.program import program


ROOT = Path(__file__).parents[2]
GSM8K = ROOT / "tests" / "files" / "gsm8k.jsonl"


@pytest.fixture
def recipe(tmp_path):
    """Settings of a two-step run on GSM8K with a tiny model that can spell but not count."""
    tokenizer = byte_tokenizer()
    build_model(tokenizer, max_position_embeddings=2048, initializer_range=0.02).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return {
        "model_name_or_path": str(tmp_path / "model"),
        "dataset_name": str(GSM8K),
        "instruction": "{question} Put your final answer within \\boxed{}.",
        "output_dir": str(tmp_path / "run"),
        "use_cpu": True,
        "bf16": False,
        "max_steps": 2,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 12,
        "logging_steps": 1,
        "save_steps": 1,
        "report_to": "none",
    }


def write(recipe, tmp_path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


def parse(*arguments):
    return script.make_parser().parse_args_and_config(arguments)


def test_trains_saves_and_resumes(recipe, tmp_path):
    # A reward of our own as well: the accuracy of a model that cannot count has no gradient.
    (tmp_path / "own_rewards.py").write_text(
        "def letters(completions, **kwargs):\n    return [float(len(set(c[0]['content']))) for c in completions]\n"
    )
    recipe["reward_funcs"] = ["accuracy_reward", "own_rewards.letters"]
    recipe["fork_report_steps"] = 1
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"),
        *(str(ROOT / "examples" / "train.py"), "--config", write(recipe, tmp_path)),
    ]
    first = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=250)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "FutureWarning" not in first.stderr  # of TRL's own calls
    run = tmp_path / "run"
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2]
    for entry in history[:2]:
        assert entry["rewards/accuracy_reward/mean"] == 0.0  # not NaN: every solution was parsed
        assert entry["forking/selected_fraction"] == pytest.approx(0.2, abs=0.02)
    assert (run / "training.png").stat().st_size > 10_000
    data, _ = read(run / "fork_report" / "step-1.html")
    assert [entry["correct"] for entry in data["responses"]] == [False] * 8
    weights = load_file(run / "model.safetensors")

    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=250)
    assert again.returncode != 0
    assert "holds another run (checkpoint-" in again.stderr and "--resume_from_checkpoint true" in again.stderr

    resumed = subprocess.run(
        [*command, "--resume_from_checkpoint", "true", "--max_steps", "3", "--learning_rate", "0.01"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=250,
    )
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3]
    assert any((weights[name] != tensor).any() for name, tensor in load_file(run / "model.safetensors").items())


def test_lora_and_what_comes_after(recipe, tmp_path, capsys):
    """An adapter of a run shorter than `logging_steps`, then the commands that it ends with."""
    recipe |= {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear", "logging_steps": 10}
    path = write(recipe, tmp_path)
    script.run(*parse("--config", path))
    run = tmp_path / "run"
    assert (run / "adapter_model.safetensors").exists()
    assert not (run / "model.safetensors").exists()
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [2]
    assert "'What is 12 * 34? Put your final answer within \\\\boxed{}.'" in (run / "README.md").read_text()

    printed = capsys.readouterr().out
    commands = [shlex.split(line) for line in printed.splitlines() if " --model " in line]
    start = program()
    assert [words[: len(start) + 1] for words in commands] == [[*start, "evaluate"], [*start, "analyze"]]
    first, second = (words[len(start) + 1 :] for words in commands)
    evaluate.run(evaluate.parse_arguments([*first, "--limit", "2", "--num_samples", "1"]))
    lines = (run / "evaluation" / "completions.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert all(" Put your final answer within \\boxed{}.<|im_end|>" in json.loads(line)["prompt"] for line in lines)
    analyze_entropy.run(analyze_entropy.parse_arguments(second))
    assert (run / "entropy" / "report.html").exists()

    (more,) = re.findall(r"the same command with (.*)", printed)
    script.run(*parse("--config", path, *more.split()))
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == 4


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("instruction", [None, "{question} Go."])
def test_benchmarks_are_asked_as_in_training(instruction, recipe, tmp_path):
    arguments, args, _ = parse("--config", write({**recipe, "instruction": instruction}, tmp_path))
    (row,) = script.load_data(arguments, args, "aime25", "test", evaluation=True)
    assert row["prompt"][0]["content"] == (instruction or "{question}").replace("{question}", "p")


def test_next_steps_of_a_run_without_checkpoints(recipe, tmp_path):
    recipe |= {"dataset_name": "dapo-math-17k", "save_strategy": "no"}
    text = script.next_steps(*parse("--config", write(recipe, tmp_path))[:2], "base", 5)
    assert "--dataset math500" in text and "resume" not in text


def test_one_process_that_sees_several_gpus(recipe, tmp_path):
    """GPUs as transformers counts them, if accelerate has not started one process for each."""
    arguments, args, model_config = parse("--config", write(recipe, tmp_path))
    args._n_gpu = 2
    with pytest.raises(
        ValueError, match=r"2 GPUs are visible to this one process, .* --num_processes 2 or an --accel"
    ):
        script.run(arguments, args, model_config)


def test_command_line_wins(recipe, tmp_path):
    path = write(recipe, tmp_path)
    for words in (("--config", path), (f"--config={path}",)):
        _, args, _ = parse(*words, "--top_entropy_quantile", "0.5", "--max-steps", "7")
        assert (args.top_entropy_quantile, args.max_steps, args.output_dir) == (0.5, 7, recipe["output_dir"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learing_rate", "1e-5"], "there is no option --learing_rate; did you mean --learning_rate?"),
        (["--learing-rate=1e-5"], "there is no option --learing-rate; did you mean --learning_rate?"),
        (["--learn", "1e-4"], "there is no option --learn; did you mean --learning_rate?"),  # no abbreviations
        (["--xyzzy"], "there is no option --xyzzy\n"),
        (["--bf16", "false", "true"], "'true' belongs to no option"),
        (["--config", "gone.yaml"], "--config: there is no file 'gone.yaml'"),
        (["--config"], "--config: there is no file ''"),
        (["--config", "quickstart"], "; the recipe of this name is --recipe quickstart"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_unknown_options(words, message, recipe, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(*([] if "--config" in words else ["--config", write(recipe, tmp_path)]), *words)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 2  # no page of usage


def test_refused_values_and_a_machine_without_a_gpu(recipe, tmp_path, capsys, monkeypatch):
    # Also where the tests run beside a GPU
    monkeypatch.setattr("trl_fork.trainer.setting_checks.is_torch_bf16_gpu_available", lambda: False)
    del recipe["use_cpu"], recipe["bf16"]
    path = write(recipe, tmp_path)
    for words, message in (
        ([], "there is none here. To train on the CPU set use_cpu to true and bf16 to false (--use_cpu true --bf16"),
        (["--top_entropy_quantile", "20"], "top_entropy_quantile must be in (0, 1], got 20"),
    ):
        with pytest.raises(SystemExit):
            parse("--config", path, *words)
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 2
    assert parse("--config", path, "--use_cpu", "true", "--bf16", "false")
    assert parse("--config", path, "--use_cpu", "true")


def test_unknown_key_of_the_yaml_file(recipe, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse("--config", write({**recipe, "top_entropy_quantil": 0.1}, tmp_path))
    message = "'top_entropy_quantil', which is no option; did you mean top_entropy_quantile?"
    assert message in capsys.readouterr().err


def test_help_shows_our_options_first(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    order = [
        "--config",
        "--dataset_name",
        "--top_entropy_quantile",
        "--learning_rate",
        "--lora_alpha",
        "--beta ",
        "--eval_steps",
    ]
    assert order == sorted(order, key=lambda option: text.index(f"\n  {option}"))
    actions = script.make_parser()._actions
    assert all(text.count(f"\n  --{action.dest} ") == 1 for action in actions if action.dest != "help")


@pytest.fixture
def own_rewards(tmp_path, monkeypatch):
    """A module of rewards in the working directory."""
    (tmp_path / "rewards_of_a_user.py").write_text(
        "import math\n"
        "def letters(completions, **kwargs):\n"
        "    return [float(len(set(str(c)))) for c in completions]\n"
        "def infinite(completions, trainer_state, **kwargs):\n"
        "    return [math.inf if trainer_state.global_step else math.nan] * len(completions)\n"
        "def takes_answer(completions, answer, level, **kwargs):\n"
        "    return [float(len(a)) + level_ for a, level_ in zip(answer, level)]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "rewards_of_a_user"


def test_nothing_after_training_costs_the_model(recipe, own_rewards, tmp_path, monkeypatch, caplog, capsys):
    """Rewards that are not finite, and everything fails that can."""

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    class Tracker(TrainerCallback):
        on_train_end = fail

    for name in ("plot_training", "next_steps"):
        monkeypatch.setattr(script, name, fail)
    monkeypatch.setattr(script, "LastLogCallback", Tracker)
    monkeypatch.setattr(script.ForkingGRPOTrainer, "save_state", fail)
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    recipe |= {"reward_funcs": [f"{own_rewards}.infinite"], "save_strategy": "no", "gradient_accumulation_steps": 1}
    with pytest.raises(SystemExit) as raised:
        script.main(["--config", write(recipe, tmp_path)])
    lost = "finishing the training|writing trainer_state.json|drawing training.png"
    assert re.search(r"its model saved in .*/run\. The exit status is 1", str(raised.value.code))
    assert re.findall(rf"({lost}) \(OSError: no space left on device\)", str(raised.value.code)) == lost.split("|")
    assert len(load_file(tmp_path / "run" / "model.safetensors")) > 5
    assert (tmp_path / "run" / "tokenizer_config.json").exists()
    for what in ("writing trainer_state.json", "drawing training.png", "printing what comes next"):
        assert f"The model is saved, but {what} failed (OSError: no space left on device)" in caplog.text
    assert "what came after the last step failed" in caplog.text
    assert f"Model is in {tmp_path / 'run'}." in capsys.readouterr().out


@pytest.mark.parametrize("answer", [None, "a commit"])
def test_a_push_that_the_hub_did_not_take_is_no_success(answer, recipe, tmp_path, monkeypatch, capsys):
    """The trainer has reported it by then (test_hub.py), and gives `None`."""

    class Unpublished(script.ForkingGRPOTrainer):
        def save_state(self):
            super().save_state()
            self.args.push_to_hub = True  # not before: there is no Hub to make a repository on

        def push_to_hub(self, **settings):
            return answer

    monkeypatch.setattr(script, "ForkingGRPOTrainer", Unpublished)
    words = ["--config", write(recipe | {"max_steps": 1, "save_strategy": "no"}, tmp_path)]
    if answer:
        script.main(words)
        assert "Pushed to https://huggingface.co/" in capsys.readouterr().out
        return
    with pytest.raises(SystemExit, match=r"failed in part: publishing it \(what remains to be done is said above\)"):
        script.main(words)


def test_a_picture_of_rewards_that_are_not_finite(recipe, own_rewards, tmp_path, capsys):
    recipe |= {"reward_funcs": [f"{own_rewards}.infinite"], "save_strategy": "no", "gradient_accumulation_steps": 1}
    script.run(*parse("--config", write(recipe, tmp_path)))
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [entry["reward"] for entry in history if "reward" in entry][-1] == math.inf
    assert (tmp_path / "run" / "training.png").stat().st_size > 10_000
    assert "Model, trainer_state.json and training.png are in" in capsys.readouterr().out


def test_a_data_set_with_prompts_alone(recipe, own_rewards, tmp_path):
    Dataset.from_list([{"prompt": f"{n}?"} for n in range(4)]).to_json(tmp_path / "prompts.jsonl")
    recipe |= {"dataset_name": str(tmp_path / "prompts.jsonl"), "save_strategy": "no", "max_steps": 1}
    with pytest.raises(
        ValueError, match=r"solution_column: the data set has none of the columns .*it has \['prompt'\]"
    ):
        script.run(*parse("--config", write(recipe, tmp_path)))
    script.run(*parse("--config", write(recipe | {"reward_funcs": [f"{own_rewards}.letters"]}, tmp_path)))
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_answers_that_no_reward_needs_may_be_missing_anywhere(recipe, own_rewards, tmp_path):
    rows = [{"prompt": f"{n}?", "reward_model": None if n == 2 else {"ground_truth": "1"}} for n in range(4)]
    Dataset.from_list(rows).to_json(tmp_path / "nested.jsonl")
    recipe |= {"dataset_name": str(tmp_path / "nested.jsonl"), "save_strategy": "no", "max_steps": 1}
    with pytest.raises(ValueError, match=r"row 2, column 'reward_model.ground_truth': the answer is None"):
        script.run(*parse("--config", write(recipe, tmp_path)))
    script.run(*parse("--config", write(recipe | {"reward_funcs": [f"{own_rewards}.letters"]}, tmp_path)))
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_reward_that_takes_the_columns_of_the_data(recipe, own_rewards, tmp_path):
    rows = [{"question": f"{n}?", "answer": "x" * 5, "level": 2.0} for n in range(4)]
    Dataset.from_list(rows).to_json(tmp_path / "data.jsonl")
    recipe |= {"dataset_name": str(tmp_path / "data.jsonl"), "save_strategy": "no", "max_steps": 1}
    recipe["reward_funcs"] = [f"{own_rewards}.takes_answer", "accuracy_reward"]
    script.run(*parse("--config", write(recipe, tmp_path)))
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert history[0]["rewards/takes_answer/mean"] == 7.0


def test_negative_prompts_have_their_instruction_after_the_question(recipe, own_rewards, tmp_path, monkeypatch):
    """Within the template, for the evaluation too, and before the run with what is missing."""
    seen = {}

    class Seen(script.ForkingGRPOTrainer):
        def train(self, *args, **kwargs):
            seen.update(train=self.train_dataset, eval=self.eval_dataset)
            return super().train(*args, **kwargs)

    monkeypatch.setattr(script, "ForkingGRPOTrainer", Seen)
    Dataset.from_list([{"question": f"{n}?", "answer": "2"} for n in range(3)]).to_json(tmp_path / "held_out.jsonl")
    recipe |= {"prompt_template": "Q: {question}\nA:", "instruction": None, "save_strategy": "no", "max_steps": 1}
    recipe |= {"eval_dataset_name": str(tmp_path / "held_out.jsonl"), "eval_strategy": "steps", "eval_steps": 1}
    recipe |= {"token_credit": "tests.credit.own_rules.contrasted", "reward_funcs": [f"{own_rewards}.letters"]}
    recipe |= {"per_device_eval_batch_size": 4}
    with pytest.raises(ValueError, match=r"train_dataset \(columns .*needs contrast_log_probs.* Set contrast_ins"):
        script.run(*parse("--config", write(recipe, tmp_path)))
    script.run(*parse("--config", write(recipe, tmp_path), "--contrast_instruction", "Answer wrongly."))
    for data in seen.values():
        for row in data:
            assert row["prompt"] == f"Q: {row['question']}\nA:"
            assert row["contrast_prompt"] == f"Q: {row['question']}\n\nAnswer wrongly.\nA:"
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert 0 < history[0]["credit/effective_fraction"] < 1
    assert any("eval_credit/effective_fraction" in entry for entry in history)


def test_forecasts_are_rewarded_by_name(recipe, tmp_path, capsys):
    """`brier_reward` takes the column `target`, and needs no solution."""
    rows = [{"prompt": f"{n}?", "target": target} for n, target in enumerate([0, 1.0, 0.25, None])]
    Dataset.from_list(rows).to_json(tmp_path / "games.jsonl")
    recipe |= {"dataset_name": str(tmp_path / "games.jsonl"), "save_strategy": "no", "max_steps": 1}
    del recipe["instruction"]
    recipe["reward_funcs"] = "brier_reward"
    with pytest.raises(ValueError, match=r"train_dataset: row 3, column 'target': None is no target"):
        script.run(*parse("--config", write(recipe, tmp_path)))
    Dataset.from_list(rows[:3]).to_json(tmp_path / "games.jsonl")
    script.run(*parse("--config", write(recipe, tmp_path)))
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    said = capsys.readouterr().out
    assert "on data with answers" in said and "--dataset DATA " in said  # `evaluate` cannot grade these rows
    # Random bytes hardly ever state a probability.
    assert 0 <= history[0]["rewards/brier_reward/mean"] <= history[0]["forecast/stated"] < 1


HELD_OUT = (
    r"Name other problems in eval_dataset_name \(a data set, a file, or a benchmark such as 'math500'\) or their "
    r"split in dataset_test_split, or set eval_strategy to 'no'"
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"eval_strategy is 'steps', but '.*gsm8k.jsonl' \(split 'test'\) is what the model is trained on"),
        (
            {"eval_strategy": "no", "eval_on_start": True},
            "eval_on_start is set, but .* is what the model is trained on",
        ),
        ({"eval_dataset_name": "./gsm8k.jsonl"}, "'./gsm8k.jsonl' .* is what the model is trained on"),
        ({"dataset_name": "single"}, "'single' .* is what the model is trained on"),
        ({"dataset_name": "splits", "dataset_test_split": "train"}, "'splits' .split 'train'. is what the model"),
        (
            {"dataset_name": "splits", "eval_dataset_name": "../data/splits", "dataset_test_split": "train"},
            "is what the",
        ),
        ({"dataset_name": "splits", "eval_dataset_name": "splits/train"}, "'splits/train' .split 'test'. is what the"),
        (
            {"dataset_name": "splits", "dataset_test_split": "held"},
            "no evaluation set: .* has no split 'held'; it has",
        ),
        (
            {"dataset_name": "splits", "eval_dataset_name": "gone.jsonl"},
            "no evaluation set: eval_dataset_name: The data set 'gone.jsonl' is not there",
        ),
        (
            {"eval_dataset_name": "unanswered.jsonl"},
            "no evaluation set: solution_column: the data set has none",
        ),
    ],
    ids=str,
)
def test_evaluation_needs_problems_that_are_not_trained_on(change, message, recipe, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    shutil.copy(GSM8K, "gsm8k.jsonl")
    data = Dataset.from_list([json.loads(line) for line in GSM8K.read_text().splitlines()])
    data.save_to_disk("single")
    DatasetDict(train=data, test=data.select([0])).save_to_disk("splits")
    data.remove_columns("answer").to_json("unanswered.jsonl")
    recipe |= {"dataset_name": str(tmp_path / "data" / "gsm8k.jsonl"), "eval_strategy": "steps", "eval_steps": 1}
    with pytest.raises(ValueError, match=f"{message}.*{HELD_OUT}"):
        script.run(*parse("--config", write(recipe | change, tmp_path)))
    assert not (tmp_path / "run").exists()


def test_evaluation_on_other_problems(recipe, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("trl_fork"), "propagate", True)
    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    Dataset.from_list([{"Problem": rows[0]["question"], "Answer": "1"}, {"Problem": "2?", "Answer": "2"}]).to_json(
        tmp_path / "held_out.jsonl"
    )
    recipe |= {"eval_dataset_name": str(tmp_path / "held_out.jsonl"), "eval_strategy": "steps", "eval_steps": 1}
    recipe |= {"max_steps": 1, "save_strategy": "no", "per_device_eval_batch_size": 8, "dataset_config": "default"}
    script.run(*parse("--config", write(recipe, tmp_path)))
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [entry["eval_rewards/accuracy_reward/mean"] for entry in history if "eval_reward" in entry] == [0.0]
    assert "eval_dataset: 1 of its 2 prompts are in the training data too" in caplog.text


@pytest.mark.parametrize("word", ["false", "False", "no", "0", "none", "", "off"])
def test_what_says_no_does_not_continue_a_run(word, recipe, tmp_path):
    (tmp_path / "run" / "checkpoint-5").mkdir(parents=True)
    for change, words in (({}, ["--resume_from_checkpoint", word]), ({"resume_from_checkpoint": word}, [])):
        with pytest.raises(ValueError, match=r"holds another run \(checkpoint-5\)\. Continue it with --resume_from"):
            script.run(*parse("--config", write(recipe | change, tmp_path), *words))


def test_checkpoints_to_continue_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("run/checkpoint-5", "other/checkpoint-7", "run2"):
        Path(path).mkdir(parents=True)
    assert [checkpoint_choice(word) for word in (True, "true", "Yes", "1", "on")] == [True] * 5
    assert [checkpoint_choice(word) for word in (False, None, "No", " ")] == [False] * 4
    assert checkpoint_choice("run/checkpoint-5") == "run/checkpoint-5"
    with pytest.raises(
        ValueError, match=r"resume_from_checkpoint: there is no folder 'run/checkpoint-6' \(looked from /"
    ):
        checkpoint_choice("run/checkpoint-6")
    refuse_other_run("run", True)
    refuse_other_run("run", "./run/checkpoint-5")
    refuse_other_run("run2", "other/checkpoint-7")  # a new directory may go on from anywhere
    with pytest.raises(
        ValueError, match=r"holds another run \(checkpoint-5\), which the checkpoint 'other/checkpoint-7'"
    ):
        refuse_other_run("run", "other/checkpoint-7")
    Path("run2/trainer_state.json").touch()
    with pytest.raises(ValueError, match=r"holds another run \(trainer_state.json\)\. Choose another output_dir\.$"):
        refuse_other_run("run2", False)  # it has no checkpoint to continue from


def test_prompts_that_need_a_chat_template(recipe, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    recipe |= {"max_steps": 1, "save_strategy": "no"}
    for streaming in (False, True):
        settings = recipe | {"dataset_streaming": streaming}
        with pytest.raises(ValueError, match=r"no chat_template .* set prompt_template, .*--prompt_template"):
            script.run(*parse("--config", write(settings, tmp_path)))
    settings = recipe | {"instruction": None, "prompt_template": "paper"}
    script.run(*parse("--config", write(settings, tmp_path)))
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_prompts_in_chat_format_are_trained_on_as_they_are(recipe, own_rewards, tmp_path):
    prompt = "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    Dataset.from_list([{"prompt": prompt, "answer": "2"}] * 4).to_json(tmp_path / "chat.jsonl")
    recipe |= {"dataset_name": str(tmp_path / "chat.jsonl"), "max_steps": 1, "save_strategy": "no"}
    recipe |= {"log_completions": True, "report_to": "none", "reward_funcs": [f"{own_rewards}.letters"]}
    with pytest.raises(ValueError, match="instruction would wrap it a second time"):
        script.run(*parse("--config", write(recipe, tmp_path)))
    script.run(*parse("--config", write(recipe | {"instruction": None}, tmp_path)))
    (file,) = (tmp_path / "run" / "completions").glob("*.parquet")
    assert set(Dataset.from_parquet(str(file))["prompt"]) == {prompt}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_name": None}, "dataset_name is not set"),
        ({"model_name_or_path": None}, "model_name_or_path is not set"),
        ({"model_name_or_path": "./no_such_dir"}, r"There is no folder './no_such_dir' \(looked from /"),
        ({"model_name_or_path": "adapter"}, "model_name_or_path: 'adapter' holds an adapter, not a model"),
        ({"dataset_name": "empty.jsonl"}, "dataset_name: The data set 'empty.jsonl' is an empty file"),
        ({"prompt_column": "problem"}, r"no column 'problem'; it has \['question', 'answer'\]"),
        ({"reward_funcs": ["acuracy_reward"]}, "unknown reward function 'acuracy_reward'"),
        ({"contrast_instruction": "No."}, "contrast_instruction='No.' is set, but .*such as the preset 'gcpo'"),
        ({"per_device_train_batch_size": 400}, "has 16 rows, but one generation batch takes 200 prompts"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_input_stops_before_training(change, message, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").touch()
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")
    arguments = parse("--config", write({**recipe, **change}, tmp_path))
    with pytest.raises(ValueError, match=message):
        script.run(*arguments)
    assert not list((tmp_path / "run").glob("checkpoint-*"))
