"""Options in files and on the command line: what YAML makes of a value, and what became of an option."""

import re

import pytest
import yaml
from transformers import TrainingArguments

from trl_fork.commands import train as script
from trl_fork.commands.options import OptionParser
from trl_fork.commands.renamed_options import OTHER_NAMES, REMOVED, RENAMED


# The keys of Open-R1's recipe for Qwen2.5-1.5B-Instruct on Math, and of its configuration class, with values as there.
OPEN_R1 = """
model_name_or_path: Qwen/Qwen2.5-1.5B-Instruct
model_revision: main
torch_dtype: bfloat16
attn_implementation: flash_attention_2
dataset_name: open-r1/OpenR1-Math-220k
dataset_prompt_column: problem
system_prompt: "You are a helpful AI Assistant."
chat_template: "{{ messages }}"
bf16: true
use_vllm: true
vllm_device: auto
vllm_gpu_memory_utilization: 0.7
do_eval: false
gradient_accumulation_steps: 4
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: false
hub_model_id: Qwen2.5-1.5B-Open-R1-GRPO
hub_model_revision: main
push_to_hub_revision: true
overwrite_hub_revision: true
hub_strategy: every_save
learning_rate: 2.0e-05
log_completions: true
log_level: info
logging_first_step: true
logging_steps: 1
logging_strategy: steps
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs:
  min_lr_rate: 0.1
max_prompt_length: 512
max_completion_length: 1024
max_steps: -1
num_generations: 16
num_train_epochs: 1
output_dir: data/Qwen2.5-1.5B-Open-R1-GRPO
overwrite_output_dir: true
per_device_eval_batch_size: 16
per_device_train_batch_size: 16
push_to_hub: true
report_to:
- wandb
reward_funcs:
- accuracy_reward
reward_weights:
- 1.0
save_strategy: "epoch"
save_total_limit: 1
seed: 42
warmup_ratio: 0.1
benchmarks: [math_500]
callbacks: [push_to_hub_revision]
wandb_project: open-r1
wandb_entity: me
cosine_max_len: 1000
max_completion_len: 1024
soft_punish_cache: 256
"""
OLD_NAMES = {
    *("torch_dtype", "dataset_prompt_column", "system_prompt", "chat_template", "vllm_device", "hub_model_revision"),
    *("push_to_hub_revision", "overwrite_hub_revision", "max_prompt_length", "overwrite_output_dir", "warmup_ratio"),
    *("benchmarks", "callbacks", "wandb_project", "wandb_entity", "cosine_max_len", "max_completion_len"),
    *("soft_punish_cache",),
}


@pytest.fixture
def parse(tmp_path):
    def parse(text: str, *words: str):
        path = tmp_path / "run.yaml"
        path.write_text(f"output_dir: {tmp_path / 'run'}\nuse_cpu: true\nbf16: false\n{text}\n")
        return script.make_parser().parse_args_and_config(["--config", str(path), *words])

    return parse


def field(outputs, name):
    return next(getattr(output, name) for output in outputs if hasattr(output, name))


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("eval_strategy: no", "eval_strategy", "no"),
        ("eval_strategy: No", "eval_strategy", "no"),
        ("eval_strategy: off", "eval_strategy", "no"),
        ("eval_strategy: false", "eval_strategy", "no"),
        ('eval_strategy: "off"', "eval_strategy", "no"),
        ('eval_strategy: "no"', "eval_strategy", "no"),
        ('eval_strategy: "No"', "eval_strategy", "no"),
        ("eval_strategy: null", "eval_strategy", "no"),
        ("logging_strategy:", "logging_strategy", "no"),
        ("save_strategy: no", "save_strategy", "no"),
        ("logging_strategy: off", "logging_strategy", "no"),
        ("report_to: none", "report_to", []),
        ("report_to: no", "report_to", []),
        ("report_to: null", "report_to", []),
        ("report_to: [no]", "report_to", []),
        ('report_to: "off"', "report_to", []),
        ("report_to: []", "report_to", []),
        ("report_to: [tensorboard]", "report_to", ["tensorboard"]),
        ("lr_scheduler_type: constant_with_warmup", "lr_scheduler_type", "constant_with_warmup"),
        ("learning_rate: 1e-5", "learning_rate", 1e-5),
        ("learning_rate: 1e-05", "learning_rate", 1e-5),
        ('learning_rate: "0.00001"', "learning_rate", 1e-5),
        ("learning_rate: 1", "learning_rate", 1.0),
        ("warmup_steps: 1e-1", "warmup_steps", 0.1),
        ("max_steps: 1e3", "max_steps", 1000),
        ("max_steps: 1.0e3", "max_steps", 1000),
        ("max_steps: 1_000", "max_steps", 1000),
        ('max_steps: "7"', "max_steps", 7),
        ("logging_steps: 0.5", "logging_steps", 0.5),
        ("epsilon_high: null", "epsilon_high", None),
        ("epsilon_high: none", "epsilon_high", None),
        ("fsdp: [full_shard, auto_wrap]", "fsdp", True),
        ("debug: [underflow_overflow]", "debug", ["underflow_overflow"]),
        ("min_p: null", "min_p", None),
        ("run_name: 2026-11-27", "run_name", "2026-11-27"),
        ("log_completions: on", "log_completions", True),
        ('log_completions: "off"', "log_completions", False),
        ('log_completions: "yes"', "log_completions", True),
        ("log_completions: 1", "log_completions", True),
        ("skip_inert_compute: off", "skip_inert_compute", False),
        ("deduplicate: no", "deduplicate", False),
        ("reward_funcs: think_format_reward", "reward_funcs", ["think_format_reward"]),
        ("reward_weights: 1e0", "reward_weights", [1.0]),
        ('reward_weights: ["0.5", 1e-1]', "reward_weights", [0.5, 0.1]),
        ("lora_target_modules: all-linear", "lora_target_modules", "all-linear"),
        ("lora_target_modules: [q_proj, v_proj]", "lora_target_modules", ["q_proj", "v_proj"]),
        ("dataset_config: 2024", "dataset_config", "2024"),
        ("model_revision: 12e4567", "model_revision", "12e4567"),
        ("scale_rewards: no", "scale_rewards", "none"),
        (
            "lr_scheduler_kwargs: {min_lr: 1e-7, a: [1e-2, b]}",
            "lr_scheduler_kwargs",
            {"min_lr": 1e-7, "a": [0.01, "b"]},
        ),
        ("lr_scheduler_kwargs: '{\"min_lr\": 1e-7}'", "lr_scheduler_kwargs", {"min_lr": 1e-7}),
        ("model_init_kwargs: none", "model_init_kwargs", None),
        ("chat_template_kwargs: {enable_thinking: no}", "chat_template_kwargs", {"enable_thinking": False}),
    ],
    ids=str,
)
def test_values_of_yaml(text, name, value, parse):
    found = field(parse(text), name)
    assert found == value
    assert type(found) is type(value) or hasattr(found, "value")  # the strategies of transformers are texts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("save_strategy: yes", r"save_strategy must be one of \['no', .*\], got True \(to YAML, yes, no, on and off"),
        ("eval_strategy: stps", r"eval_strategy must be one of \['no', 'steps', 'epoch'\], got 'stps'"),
        ("lr_scheduler_type: no", r"lr_scheduler_type must be one of .*, got False \(to YAML"),
        ("optim: off", r"optim must be one of .*, got False"),
        ("token_selection: no", r"token_selection must be one of \['high_entropy', .*, got False"),
        ("learning_rate: fast", "learning_rate must be a number, got 'fast'"),
        ("learning_rate: on", r"learning_rate must be a number, got True \(to YAML"),
        ("max_steps: 7.5", "max_steps must be a whole number, got 7.5"),
        ("max_steps: true", "max_steps must be a whole number, got True"),
        ("num_generations: [4]", r"num_generations must be a whole number, got \[4\]"),
        ("max_steps: .inf", "max_steps must be a whole number, got inf"),
        ("log_completions: maybe", "log_completions: Truthy value expected: got maybe"),
        ("num_train_epochs: none", "num_train_epochs: could not convert string to float: 'none'"),
        ("deduplicate: 1.5", "deduplicate must be true or false, got 1.5"),
        ("log_completions: 2", "log_completions must be true or false, got 2"),
        ("reward_weights: [1.0, high]", "reward_weights must be a number, got 'high'"),
        ("report_to: yes", r"report_to must be a text, got True \(to YAML"),
        ("model_init_kwargs: eager", "model_init_kwargs: 'eager' is no JSON .*; write such as"),
        ("lr_scheduler_kwargs: \"{'min_lr': 1e-7}\"", "lr_scheduler_kwargs: .* is no JSON"),
        ("generation_kwargs: [a]", r"generation_kwargs must be a mapping of names to values, got \['a'\]"),
        ("generation_kwargs: '[1]'", r"generation_kwargs: '\[1\]' is no JSON object"),
        ('scale_rewards: "false"', r"scale_rewards must be one of \['group', 'batch', 'none'\].* got 'false'"),
        ("learning_rate: null", "learning_rate must be a number, got null; leave it out for its default, 1e-06"),
        ("max_steps:", "max_steps must be a number, got null; leave it out for its default, -1"),
        ("dataset_name: [a, b]", r"dataset_name must be a text, got \['a', 'b'\]"),
        ("run_name: {a: 1}", r"run_name must be a text, got \{'a': 1\}"),
        (
            "reward_funcs: {accuracy_reward: 1.0}",
            r"reward_funcs must be a list of texts, got \{'accuracy_reward': 1.0\}",
        ),
        ("on: 3", "has a key that is no text"),
        ("run_name: no", "run_name must be a text, got False"),
        ("num_generations: null", "num_generations must be a whole number of at least 2, got None"),
        ("use_vllm: null", "use_vllm must not be null; leave it out for its default, False"),
        ("vllm_mode:", "vllm_mode must not be null; leave it out for its default, colocate"),
        ("num_processes: 2", r"'num_processes', which is no option of a run; .* trl-fork train --num_processes"),
        ("accelerate_config: zero3", "'accelerate_config', which is no option of a run; it is for its launch"),
        ("recipe: quickstart", "has a key 'recipe', which is no option"),
        ("lora_rank: 8", r"'lora_rank', which is no option; did you mean lora_r\?"),
        ("gradient_clipping: 1.0", r"'gradient_clipping', which is no option; did you mean max_grad_norm\?"),
        ("a: [", "is no YAML"),
    ],
    ids=lambda value: value if ":" in value else None,
)
def test_values_that_an_option_cannot_have(text, message, parse, capsys):
    with pytest.raises(SystemExit):
        parse(text)
    assert re.search(message, capsys.readouterr().err)


def test_dictionaries_on_the_command_line(parse, capsys):
    assert field(parse("", "--lr_scheduler_kwargs", '{"min_lr": 1e-7}'), "lr_scheduler_kwargs") == {"min_lr": 1e-7}
    with pytest.raises(SystemExit):
        parse("", "--lr_scheduler_kwargs", "{'min_lr': 1e-7}")
    assert "argument --lr_scheduler_kwargs: \"{'min_lr': 1e-7}\" is no JSON" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "value"), [("no", []), ("off", []), ("None", []), ("tensorboard", ["tensorboard"])])
def test_trackers_on_the_command_line(word, value, parse):
    assert field(parse("", "--report_to", word), "report_to") == value


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lora_rank", "lora_r"),
        ("epochs", "num_train_epochs"),
        ("lr", "learning_rate"),
        ("grad_accumulation", "gradient_accumulation_steps"),
        ("group_size", "num_generations"),
        ("max_new_tokens", "max_completion_length"),
        ("quantile", "top_entropy_quantile"),
        ("learning_rte", "learning_rate"),
        ("lora", "lora_r or --lora_alpha or --lora_dropout"),
    ],
)
def test_what_others_call_an_option(name, meant, parse, capsys):
    with pytest.raises(SystemExit):
        parse("", f"--{name}", "1")
    assert f"there is no option --{name}; did you mean --{meant}?" in capsys.readouterr().err


def test_a_number_that_must_not_be_none(parse, capsys):
    with pytest.raises(SystemExit):
        parse("", "--num_generations", "none")
    assert "num_generations must be a whole number of at least 2, got None" in capsys.readouterr().err


def test_a_file_that_is_no_mapping(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("- a")
    with pytest.raises(SystemExit):
        script.make_parser().parse_args_and_config(["--config", str(tmp_path / "a.yaml")])
    assert "must contain a YAML mapping" in capsys.readouterr().err


def test_everything_that_is_wrong_is_named_at_once(parse, capsys):
    with pytest.raises(SystemExit):
        parse("torch_dtype: auto\nmax_steps: many\nlearing_rate: 1", "--no_cuda", "--beat", "0.1", "--bf16", "false")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("error: 5 settings cannot be taken:")
    assert [line.strip() for line in lines[1:6]] == [
        "the YAML file has a key 'torch_dtype', which is no option; it is called dtype now",
        "the YAML file: max_steps must be a whole number, got 'many'",
        "the YAML file has a key 'learing_rate', which is no option; did you mean learning_rate?",
        "there is no option --no_cuda; it is called use_cpu now",
        "there is no option --beat; did you mean --beta?",
    ]


def test_values_of_a_command_line_are_named_with_those_of_the_file(parse, capsys):
    words = [
        "--loss_denominator",
        "seleced",
        "--optim",
        "adamw_trch",
        "--seed",
        "one",
        "--beta",
        "0.1",
        "--lr_schedulr",
    ]
    with pytest.raises(SystemExit):
        parse("token_selection: highentropy\nobjective: foo", *words)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("error: 6 settings cannot be taken:")
    selections = ["high_entropy", "low_entropy", "random"]
    objectives = ["policy_gradient", "trajectory_balance"]
    assert [re.sub(r"\['adamw_torch', .*\]", "[...]", line.strip()) for line in lines[1:7]] == [
        f"the YAML file: token_selection must be one of {selections}, got 'highentropy'; did you mean 'high_entropy'?",
        f"the YAML file: objective must be one of {objectives}, got 'foo'",
        "there is no option --lr_schedulr; did you mean --lr_scheduler_type?",
        "--loss_denominator must be one of ['selected', 'all'], got 'seleced'; did you mean 'selected'?",
        "--optim must be one of [...], got 'adamw_trch'; did you mean 'adamw_torch'?",
        "argument --seed: invalid int value: 'one'",
    ]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        # What argparse sees after the values that it would have ended at
        (
            ["--token_selection", "highentropy", "--beta"],
            ["'high_entropy'?", "argument --beta: expected one argument"],
        ),
        (["--token_selection", "highentropy", "extra"], ["'high_entropy'?", "'extra' belongs to no option"]),
        (["--importance_sampling_level", "tokn"], ["got 'tokn'; did you mean 'token'?"]),  # a text to TRL
        (["--loss_type", "dapoo"], ["got 'dapoo'; did you mean 'dapo'?"]),  # TRL would notice at the first loss
        (["--token_selection", "random", "--loss_denominator", "all"], []),
    ],
)
def test_values_with_fixed_choices(words, found, parse, capsys):
    if not found:
        assert field(parse("", *words), "loss_denominator") == "all"
        return
    with pytest.raises(SystemExit):
        parse("", *words)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("All options")]
    shown = lines[-len(found) :]
    assert all(line.endswith(end) for line, end in zip(shown, found, strict=True)), lines
    assert len(lines) == len(found) + (len(found) > 1)


def test_a_required_option_that_is_misspelled_is_not_missing(capsys):
    parser = OptionParser(description="Test.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int)
    for words, expected in (
        (
            ["--modle", "x", "--rounds", "y"],
            ["there is no option --modle; did you mean --model?", "invalid int value"],
        ),
        (["--rounds", "y"], ["invalid int value", "the following arguments are required: --model"]),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(words)
        lines = capsys.readouterr().err.splitlines()[1:-1]
        assert len(lines) == 2 and all(text in line for text, line in zip(expected, lines, strict=True)), lines


def test_one_start_names_all_of_an_open_r1_recipe(tmp_path, capsys):
    path = tmp_path / "open_r1.yaml"
    path.write_text(OPEN_R1)
    with pytest.raises(SystemExit):
        script.make_parser().parse_args_and_config(["--config", str(path)])
    error = capsys.readouterr().err
    assert set(re.findall(r"has a key '(\w+)'", error)) == OLD_NAMES
    assert "did you mean" not in error  # there is something better to say of each

    # What it says to do is enough: the recipe starts.
    recipe = {name: value for name, value in yaml.safe_load(OPEN_R1).items() if name not in OLD_NAMES}
    recipe |= {"dtype": "bfloat16", "prompt_column": "problem", "hub_revision": "main", "warmup_steps": 0.1}
    recipe |= {"use_cpu": True, "output_dir": str(tmp_path / "run")}
    path.write_text(yaml.safe_dump(recipe))
    assert script.make_parser().parse_args_and_config(["--config", str(path)])


def test_no_name_is_stale():
    names = {action.dest for action in script.make_parser()._actions}
    assert not {*RENAMED, *REMOVED, *OTHER_NAMES} & names
    assert {*RENAMED.values(), *OTHER_NAMES.values()} <= names
    assert not {*RENAMED, *REMOVED} & set(OTHER_NAMES)
    mentioned = [name for text in REMOVED.values() for name in re.findall(r"`(\w+)`", text)]
    assert set(mentioned) <= names


def test_options_that_transformers_has_dropped_are_known():
    """The options of transformers 4.57 that no longer exist."""
    old = {
        *("adafactor", "fp16_backend", "fp16_opt_level", "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"),
        *("half_precision_backend", "include_inputs_for_metrics", "include_tokens_per_second", "jit_mode_eval"),
        *("mp_parameters", "no_cuda", "overwrite_output_dir", "past_index", "per_gpu_eval_batch_size", "warmup_ratio"),
        *("per_gpu_train_batch_size", "push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token"),
        *("ray_scope", "save_safetensors", "torchdynamo", "tpu_metrics_debug", "tpu_num_cores", "logging_dir"),
        *("use_legacy_prediction_loop", "use_mps_device", "group_by_length"),
    }
    now = TrainingArguments.__dataclass_fields__
    assert old - set(now) <= {*RENAMED, *REMOVED}
