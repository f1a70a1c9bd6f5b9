"""`trl-fork train --team`: where a team comes from, and what is refused before a model is loaded."""

import json

import pytest

from tests.conftest import build_model
from tests.trainer.test_features import byte_tokenizer
from trl_fork.commands import train as script
from trl_fork.commands.training_inputs import load_team_of, needs_solution, of_episodes
from trl_fork.teams import joint_reward, load_team


RUN = """
dataset_name: {folder}/data.jsonl
model_name_or_path: {folder}/model
output_dir: {folder}/run
prompt_template: "{{question}}"
reward_funcs: [accuracy_reward]
num_generations: 4
per_device_train_batch_size: 8
max_completion_length: 8
max_steps: 1
logging_steps: 1
use_cpu: true
bf16: false
report_to: none
save_strategy: "no"
dataloader_pin_memory: false
fork_report_steps: 1
log_completions: true
"""


def arguments_of(tmp_path, more: str = "", *words):
    (tmp_path / "run.yaml").write_text(RUN.format(folder=tmp_path) + more)
    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps({"question": f"{n}+1?", "answer": str(n + 1), "hint": f"odd{n}"}) + "\n" for n in range(8))
    )
    return script.make_parser().parse_args_and_config(["--config", str(tmp_path / "run.yaml"), *words])


TEAM = """
team:
  - name: solver
    prompt: "{prompt} {hint}"
    temperature: 1
  - {name: checker, prompt: "{messages[solver]}", message: "([0-9])"}
"""


def test_a_team_of_a_recipe_a_file_and_the_package(tmp_path):
    (tmp_path / "team.yaml").write_text(TEAM)
    roles = load_team(tmp_path / "team.yaml").roles
    assert [role.name for role in roles] == ["solver", "checker"] and roles[1].message == "([0-9])"
    for more, words in ((TEAM, []), ("", ["--team", str(tmp_path / "team.yaml")])):
        arguments, *_ = arguments_of(tmp_path, more, *words, "--team_rounds", "2")
        team = load_team_of(arguments)
        assert team.roles == roles and team.rounds == 2
    arguments, *_ = arguments_of(tmp_path, TEAM, "--team", "solver_checker")
    assert load_team_of(arguments).roles == load_team("solver_checker").roles, "the command line wins"
    assert load_team_of(arguments_of(tmp_path)[0]) is None


@pytest.mark.parametrize(
    ("more", "words", "message"),
    [
        ("team: [{name: a, promt: x}]", [], r"team: role 0 \(a\) has a key 'promt', .* Did you mean 'prompt'"),
        ("team: [{prompt: x}]", [], "team: role 0 needs a key 'name'"),
        ("team: {name: a}", [], "team: .*must be a list of roles"),
        ("", ["--team", "solver"], "There is no team 'solver'. Did you mean solver_checker"),
        ("", ["--team_rounds", "2"], "team_rounds=2 has no effect without a team"),
        (TEAM, ["--team_rounds", "0"], "team_rounds must be at least 1, got 0: every role speaks in each"),
        (TEAM, ["--num_generations", "2"], "num_generations=2 is one episode of 2 rows"),
        (TEAM.replace("hint", "hnt"), [], r"Role 'solver': prompt has the field \{hnt\}, .*'hint' is near"),
    ],
)
def test_refused_before_a_model_is_loaded(more, words, message, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "model")  # no weights
    build_model(tokenizer).config.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        script.run(*arguments_of(tmp_path, more, *words))


def test_rewards_are_of_episodes_and_say_what_they_need():
    def graded(completions, solution, **kwargs):
        return []

    rewards = of_episodes([graded, joint_reward(graded, "a")])
    assert [reward.role for reward in rewards] == [None, "a"]
    assert needs_solution([graded]) and needs_solution([joint_reward(graded)])
    assert not needs_solution([joint_reward(lambda completions, **kwargs: [])])


def test_a_team_trains(tmp_path):
    """With the page of forking tokens and the table of completions."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    build_model(tokenizer, max_position_embeddings=2048, initializer_range=0.02).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert script.run(*arguments_of(tmp_path, TEAM)) == []
    (entry, *_) = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert entry["team/checker/mean_length"] > 0 and "rewards/accuracy_reward/mean" in entry
    assert (tmp_path / "run" / "fork_report" / "latest.html").exists()
