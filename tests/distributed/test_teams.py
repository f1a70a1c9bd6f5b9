"""A team on two processes under DDP: each episode on one of them, and the update of one process."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import build_model, build_tokenizer, relative_difference, weight_change
from tests.distributed.team_worker import INERT, train
from tests.distributed.test_distributed import ROOT, free_port, kill_family


pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("teams")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/ddp.yaml"]
    command += ["--num_processes", "2", "--main_process_port", str(free_port()), "--mixed_precision", "no"]
    process = subprocess.Popen(
        [*command, "tests/distributed/team_worker.py", str(directory)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=400)
    finally:
        kill_family(process)
    assert process.returncode == 0, output[-3000:]
    return directory


def records_of(directory, name):
    return json.loads((directory / f"{name}.json").read_text())


def check_episodes(rollouts):
    """In each rollout of a process, the rows are the turns of whole episodes."""
    for roles, turns, transcripts in rollouts:
        assert len(roles) % 2 == 0
        assert roles == ["left", "right"] * (len(roles) // 2) and turns == [0, 1] * (len(roles) // 2)
        assert transcripts[::2] == transcripts[1::2]


def test_a_batch_is_that_of_one_process(two_processes, tmp_path):
    records = records_of(two_processes, "batch")
    trainer, team = train("batch", tmp_path, num_processes=1)
    for record in records:
        check_episodes(record["played"])
        assert len(record["batch"]["advantages"]) == 12, "a group of eight rows is on both processes"
    played = [
        [first + second for first, second in zip(*rollouts, strict=True)]
        for rollouts in zip(*(record["played"] for record in records), strict=True)
    ]
    assert played == team.played
    advantages = [value for record in records for value in record["batch"]["advantages"]]
    assert advantages == pytest.approx(trainer.batch["advantages"], abs=1e-6) and any(advantages)
    for name, value in trainer.state.log_history[0].items():
        if name.startswith(("team/", "reward")):
            assert all(record["log"][name] == pytest.approx(value) for record in records), name
    start, weights = build_model(build_tokenizer()), load_file(two_processes / "batch.safetensors")
    two = build_model(build_tokenizer())
    with torch.no_grad():
        for name, parameter in two.named_parameters():
            parameter.copy_(weights[name])
    assert relative_difference(weight_change(start, two), weight_change(start, trainer.model)) < 1e-4


def test_dynamic_sampling_moves_and_refills_whole_episodes(two_processes):
    records, tokenizer = records_of(two_processes, "dynamic_sampling"), build_tokenizer()
    rounds = [[len(roles) for roles, *_ in record["played"]] for record in records]
    assert rounds[0] == rounds[1] and len(rounds[0]) > 1
    prompts, advantages = [], []
    for record in records:
        check_episodes(record["played"])
        texts = [
            "".join(tokenizer.convert_ids_to_tokens(ids)).replace("<pad>", "") for ids in record["batch"]["prompt_ids"]
        ]
        assert [text[0] for text in texts] == ["l", "r"] * 6
        prompts += [text[1:3] for text in texts]
        advantages += record["batch"]["advantages"]
    assert advantages[::2] == advantages[1::2]
    for group in range(3):
        rows = slice(8 * group, 8 * group + 8)
        assert len(set(prompts[rows])) == 1 and prompts[rows][0][1] not in INERT
        assert any(advantages[rows]) and sum(advantages[rows]) == pytest.approx(0, abs=1e-5)
