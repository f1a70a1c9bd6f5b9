"""
Several processes against one, and against the naive objective: DDP, ZeRO-2, ZeRO-3, FSDP2, and two machines.

Each engine is launched once, by `accelerate launch` with the configuration users are given, and runs all of its
scenarios in that launch (`worker.py`). The tests then look at what it left: which tokens every rank
selected, losses, metrics, and the consolidated weights on disk. DeepSpeed is optional; without it its tests are
skipped.
"""

import contextlib
import copy
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from tests.conftest import (
    NUM_GENERATIONS,
    build_looped_model,
    build_model,
    build_tokenizer,
    naive_view,
    relative_difference,
)
from tests.distributed.worker import CONTRAST_INSTRUCTION, LORA, PRESETS, SAMPLED, SCENARIOS, record_of, run_scenario
from tests.oracles import (
    Rollout,
    advantages,
    balance,
    credit,
    gap_at_threshold,
    group_constants,
    informative_batch,
    log_probs_and_entropies,
    loss,
    mirror_target,
    priority,
    select,
)
from tests.trainer.test_callbacks import check_page
from tests.trainer.test_looping import naive_scores


ROOT = Path(__file__).resolve().parents[2]
LAUNCH_TIMEOUT = 900  # seconds; a quiet launch takes 10 to 100, and several times as long beside another tier
ALL = tuple(SCENARIOS)


@dataclass
class Engine:
    """A configuration, what runs on it, and what must be found to have run."""

    config: str
    distributed_type: str
    wrapper: str
    scenarios: tuple[str, ...] = ALL
    zero_stage: int | None = None
    machines: int = 1
    partitioned: bool = False
    dtensors: bool = False


ENGINES = {
    "ddp": Engine("configs/accelerate/ddp.yaml", "MULTI_CPU", "DistributedDataParallel", (*ALL, *PRESETS)),
    "ddp_two_machines": Engine(
        "configs/accelerate/ddp_two_machines.yaml",
        "MULTI_CPU",
        "DistributedDataParallel",
        scenarios=("batch", "micro_batch"),
        machines=2,
    ),
    "zero2": Engine(
        "configs/accelerate/zero2.yaml",
        "DEEPSPEED",
        "DeepSpeedEngine",
        scenarios=("batch", "micro_batch", "several_updates", "truncated_rank", "inert_rank"),
        zero_stage=2,
    ),
    "zero3": Engine(
        "tests/distributed/zero3_strict.yaml", "DEEPSPEED", "DeepSpeedEngine", zero_stage=3, partitioned=True
    ),
    "zero3_two_machines": Engine(
        "configs/accelerate/zero3_two_machines.yaml",
        "DEEPSPEED",
        "DeepSpeedEngine",
        scenarios=("from_disk", "micro_batch"),
        zero_stage=3,
        machines=2,
    ),
    "fsdp2": Engine("configs/accelerate/fsdp2.yaml", "FSDP", "FSDP", dtensors=True),
}
# Where the gradient does not depend on how rows are cut into micro-batches, one process must give the same.
SAME_ON_ONE_PROCESS = [
    name
    for name, scenario in SCENARIOS.items()
    if "gradient_accumulation_steps" not in scenario
    and (scenario.get("entropy_threshold_scope") in (None, "sequence") or name == "micro_batch_whole")
]


def engine_parameters(scenarios=ALL):
    parameters = []
    for name, engine in ENGINES.items():
        marks = [pytest.mark.distributed]
        if engine.distributed_type == "DEEPSPEED":
            missing = importlib.util.find_spec("deepspeed") is None
            marks.append(pytest.mark.skipif(missing, reason="DeepSpeed is not installed"))
        if engine.distributed_type == "FSDP":
            marks.append(pytest.mark.slow)
        for scenario in engine.scenarios:
            if scenario in scenarios:
                parameters.append(pytest.param(name, scenario, marks=marks))
    return parameters


# ---------------------------------------------------------------------- launching


def launch(engine: Engine, directory: Path) -> None:
    """Run the engine's scenarios on two processes; raise with the end of the logs if that fails or takes too long."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", engine.config]
    command += ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    if not engine.config.startswith("tests/"):  # theirs is in the DeepSpeed JSON
        command += ["--mixed_precision", "no"]
    logs = [directory / f"log-{rank}.txt" for rank in range(engine.machines)]
    processes = []
    try:
        for rank, path in enumerate(logs):
            worker = ["--machine_rank", str(rank), "tests/distributed/worker.py", str(directory), *engine.scenarios]
            with path.open("w") as log:
                processes.append(
                    subprocess.Popen(command + worker, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
                )
        deadline = time.monotonic() + LAUNCH_TIMEOUT
        # One that fails leaves the other waiting for it.
        while any(p.poll() is None for p in processes) and not any(p.poll() for p in processes):
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        codes = [p.poll() for p in processes]
    finally:
        for process in processes:
            kill_family(process)
    if any(code != 0 for code in codes):
        tails = "\n".join(log.read_text()[-3000:] for log in logs)
        raise RuntimeError(f"exit codes {codes} (None: still running after {LAUNCH_TIMEOUT} s)\n{tails}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def kill_family(process: subprocess.Popen) -> None:
    """Not by process group: torch's launcher starts every worker in a session of its own, and would orphan it."""
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


@dataclass
class Run:
    """What a scenario left: a record per rank, and its directory."""

    records: list[dict]
    directory: Path

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        (path,) = (self.directory / "final").glob("*.safetensors")
        return load_file(path)

    @property
    def batches(self) -> list[list[Rollout]]:
        """Generation batches, rows of all ranks."""
        ranks = [record["generated"] for record in self.records]
        generated = [[Rollout(**r) for part in parts for r in part] for parts in zip(*ranks, strict=True)]
        settings = self.records[0]["settings"]
        if settings["dynamic_sampling"]:
            return [informative_batch(generated, NUM_GENERATIONS, settings["groups"])]
        return generated

    @property
    def log_history(self) -> list[dict]:
        return self.records[0]["log_history"]

    @property
    def loss(self) -> list[float]:
        return [entry["loss"] for entry in self.log_history if "loss" in entry]


def new_directory(tmp_path_factory, name: str) -> Path:
    directory = tmp_path_factory.mktemp(name)
    build_model(build_tokenizer()).save_pretrained(directory / "start")
    return directory


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """`two_processes(engine, scenario)`: its run, after a check that it was this engine that ran it."""
    directories, errors = {}, {}

    def get(name, scenario):
        if name not in directories:
            directories[name] = new_directory(tmp_path_factory, name)
            try:
                launch(ENGINES[name], directories[name])
            except RuntimeError as error:
                errors[name] = str(error)
        if name in errors:
            pytest.fail(f"launch of {name}: {errors[name]}")
        directory = directories[name] / scenario
        run = Run(json.loads((directory / "record.json").read_text()), directory)
        check_engine(ENGINES[name], run)
        return run

    return get


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """`one_process(scenario)`: the same scenario in this process."""
    runs = {}

    def get(scenario):
        if scenario not in runs:
            directory = runs.setdefault("directory", new_directory(tmp_path_factory, "one_process")) / scenario
            trainer, rollouts = run_scenario(scenario, directory, num_processes=1)
            record = record_of(trainer, rollouts, scenario in SAMPLED)
            assert record["engine"]["distributed_type"] == "NO" and record["engine"]["world_size"] == 1
            # Through JSON like the others, whose keys are text
            runs[scenario] = Run([json.loads(json.dumps(record))], directory)
        return runs[scenario]

    return get


def check_engine(engine: Engine, run: Run) -> None:
    """Several ways of asking for an engine quietly give another one, or two trainings that never meet."""
    assert len(run.records) == 2
    for rank, record in enumerate(run.records):
        found = record["engine"]
        assert found["distributed_type"] == engine.distributed_type
        assert found["wrapper"].startswith(engine.wrapper)
        assert found["num_processes"] == found["world_size"] == 2
        assert found["backend"] == "gloo"
        assert found["zero_stage"] == engine.zero_stage
        if engine.partitioned:
            assert found["num_partitioned"] == found["num_parameters"]
        if engine.dtensors:
            assert found["num_dtensors"] == found["num_parameters"]
        assert found["machine"] == str(rank if engine.machines > 1 else 0)


# ---------------------------------------------------------------------- the naive run


def start_of(scenario: str, run: Run) -> torch.nn.Module:
    build = build_looped_model if SCENARIOS[scenario].get("looped") else build_model
    model = build(build_tokenizer())
    if SCENARIOS[scenario].get("lora"):
        model = get_peft_model(model, LoraConfig(**LORA, task_type="CAUSAL_LM"))
        set_peft_model_state_dict(model, load_file(run.directory / "start.safetensors"))
    return model


def saved_weights(model) -> dict[str, torch.Tensor]:
    return get_peft_model_state_dict(model) if hasattr(model, "peft_config") else model.state_dict()


def naive_run(model, run: Run) -> tuple[list[float], list[dict]]:
    """
    Train `model` with the naive objective on the rows of `run`, in the micro-batches that its ranks cut.

    Returns:
        The loss of each optimizer step, and the weights of the `(row, token)` pairs of each generation batch.
    """
    settings = run.records[0]["settings"]
    steps, accumulation = settings["steps"], settings["accumulation"]
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses, selections = [], []
    for g, batch in enumerate(run.batches):
        cut = cut_of(run, g)
        with torch.no_grad():
            old, scores = by_row(batch, [log_probs_and_entropies(model, r) for r in batch])
        if settings["rule"] == "random":
            place = (0, len(losses), 0)
            scores = {
                r.row: [priority(settings["seed"], place, r.row, t) for t in range(len(r.completion))] for r in batch
            }
        pools = pools_of(settings["scope"], batch, cut)
        if settings["credit"]:
            weights = naive_credit(model, settings["credit"], batch, old, settings["seed"], pools)
        else:
            weights = dict.fromkeys(select(batch, scores, settings["rho"], settings["rule"], pools), 1.0)
        if settings["rule"] != "random" and not settings["credit"]:
            gap = gap_at_threshold(batch, scores, settings["rho"], pools)
            assert gap > 1e-5, "a rounding error could exchange two tokens"
        for first in range(0, steps, accumulation):
            model.zero_grad()
            rows = {row for parts in cut[first : first + accumulation] for part in parts for row in part}
            window = [r for r in batch if r.row in rows]
            # A window of `accumulation` micro-batches is `accumulation / steps` of the generation batch.
            share = accumulation / steps
            if settings["objective"] == "trajectory_balance":
                value, surrogate = naive_balance(model, batch, window, weights, old, settings, share)
                surrogate.backward()
            elif settings["loop_credit"]:
                value = naive_loop_credit(model, window, advantages_of(batch), weights) / sum(weights.values()) / share
                value.backward()
                value = value.item()
            else:
                value = loss(
                    model, window, advantages_of(batch), weights, sum(weights.values()) * share, old_log_probs=old,
                    sequence_level=settings["level"] == "sequence",
                )  # fmt: skip
                value.backward()
                value = value.item()
            losses.append(value)
            with torch.no_grad():
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter -= settings["learning_rate"] * parameter.grad
        selections.append(weights)
    return losses, selections


def naive_balance(model, batch, window, weights, old, settings: dict, share: float):
    """Loss of a window, and a value with its gradient. The magnet is the model without its adapter."""
    with torch.no_grad(), model.disable_adapter():
        ref = {r.row: log_probs_and_entropies(model, r)[0] for r in batch}
    roles = settings["role_betas"]
    taus = {r.row: roles[r.row % len(roles)] or settings["beta"] for r in batch}
    reference, betas = mirror_target(old, ref, taus, settings["mirror_step_size"])
    constants = group_constants(batch, old, reference, advantages_of(batch), betas, False, turns=len(roles))
    found = balance(
        model, window, advantages_of(batch), constants, reference, len(batch) * share, beta=betas,
        length_normalized=False, weights=weights, old_log_probs=old,
    )  # fmt: skip
    return found[:2]


def naive_loop_credit(model, window, row_advantages, weights):
    """Loss before its division, with the gradient of the mixture of all loops by the probabilities of the exits."""
    total = 0.0
    for rollout in window:
        log_probs, _, exits = naive_scores(model, rollout)
        mixture = (exits * log_probs).sum(0)
        ratios = (mixture - mixture.detach()).exp()
        for t, ratio in enumerate(ratios):
            total = total - weights.get((rollout.row, t), 0.0) * row_advantages[rollout.row] * ratio
    return total


def naive_credit(model, chain: dict, batch: list[Rollout], log_probs: dict, seed: int, pools: list[list[int]]) -> dict:
    """Weights of the scenarios that name their rules, at the first step."""
    rules = {
        "top_fraction": {"score": "position", "fraction": 0.4, "per_row": True},
        "random": {"score": "priority", "fraction": 0.7},
        "tests.credit.own_rules.surprisal": {"weight": "surprisal"},
        "tests.credit.own_rules.contrasted": {"weight": "contrasted"},
    }
    scores = {
        "priority": {r.row: [priority(seed, (0, 0, 0), r.row, t) for t in range(len(r.completion))] for r in batch},
        "surprisal": {row: (-values).tolist() for row, values in log_probs.items()},
    }
    if "tests.credit.own_rules.contrasted" in chain:
        addition = build_tokenizer()(f"\n\n{CONTRAST_INSTRUCTION}")["input_ids"]
        negative = [replace(r, prompt=r.prompt + addition) for r in batch]
        with torch.no_grad():
            contrast = {r.row: log_probs_and_entropies(model, r)[0] for r in negative}
        scores["contrasted"] = {
            row: (contrast[row] - values).clamp(-2, 2).exp().tolist() for row, values in log_probs.items()
        }
    return credit(batch, [rules[name] for name in chain], scores, pools)


def by_row(batch: list[Rollout], pairs) -> tuple[dict, dict]:
    first, second = zip(*pairs, strict=True)
    rows = [r.row for r in batch]
    return dict(zip(rows, first, strict=True)), dict(zip(rows, second, strict=True))


def advantages_of(batch: list[Rollout]) -> dict[int, float]:
    return dict(zip([r.row for r in batch], advantages(batch), strict=True))


def rows_with_gradient(batch: list[Rollout], selected: set[tuple[int, int]]) -> set[int]:
    """Rows with an advantage and a selected token. The others may be left out, as many as all ranks can spare."""
    return {row for row, _ in selected} & {row for row, advantage in advantages_of(batch).items() if advantage}


def cut_of(run: Run, generation: int) -> list[list[list[int]]]:
    """Rows of each rank in each micro-step on a generation batch."""
    steps = run.records[0]["settings"]["steps"]
    places = range(generation * steps, (generation + 1) * steps)
    return [[record["micro_batches"][k]["rows"] for record in run.records] for k in places]


def pools_of(scope: str, batch: list[Rollout], cut) -> list[list[int]]:
    if scope == "batch":
        return [[r.row for r in batch]]
    if scope == "sequence":
        return [[r.row] for r in batch]
    if scope == "micro_batch":  # one pool over the ranks
        return [[row for part in parts for row in part] for parts in cut]
    return [part for parts in cut for part in parts]


def selected_by(run: Run, generation: int) -> dict[int, dict[int, float]]:
    """Weights above 0 of every row that reached the loss, `{row: {token: weight}}`, over all ranks."""
    steps = run.records[0]["settings"]["steps"]
    found = {}
    for record in run.records:
        for micro_batch in record["micro_batches"][generation * steps : (generation + 1) * steps]:
            for row, weights in micro_batch["weights"].items():
                assert int(row) not in found, "a row was trained on twice"
                found[int(row)] = {t: weight for t, weight in enumerate(weights) if weight > 0}
    return found


def weight_difference(start: dict, actual: dict, expected: dict) -> float:
    """Distance of two sets of weights, relative to that of `expected` from `start`."""
    assert actual.keys() == expected.keys() == start.keys()
    actual, expected = (
        torch.cat([(weights[name] - start[name]).flatten() for name in sorted(start)])
        for weights in (actual, expected)
    )
    assert (actual - expected).abs().max() < 1e-5
    return relative_difference(actual, expected)


# ---------------------------------------------------------------------- tests


@pytest.mark.parametrize(("engine", "scenario"), engine_parameters())
def test_equals_naive_objective(engine, scenario, two_processes):
    """Selected tokens, their weights, losses and saved weights, with the cut into micro-batches that was used."""
    run = two_processes(engine, scenario)
    model = start_of(scenario, run)
    start = copy.deepcopy(saved_weights(model))
    losses, selections = naive_run(model, run)
    for generation, (batch, weights) in enumerate(zip(run.batches, selections, strict=True)):
        found = selected_by(run, generation)
        assert rows_with_gradient(batch, set(weights)) <= set(found), "rows without may be left out, others not"
        assert {(row, t) for row in found for t in found[row]} == {key for key in weights if key[0] in found}
        balanced = run.records[0]["settings"]["objective"] == "trajectory_balance"  # its weights are not normalised
        scale = 1 if balanced else sum(sum(r.valid) for r in batch) / sum(weights.values())
        given = {(row, t): weight for row, tokens in found.items() for t, weight in tokens.items()}
        assert given == pytest.approx({key: weights[key] * scale for key in given}, rel=1e-5)
    assert run.loss == pytest.approx(losses, abs=1e-5)
    assert weight_difference(start, run.weights, saved_weights(model)) < 1e-5


@pytest.mark.parametrize(("engine", "scenario"), engine_parameters(("report", "report_micro_batch")))
def test_one_page_shows_the_batch_of_all_processes(engine, scenario, two_processes):
    run = two_processes(engine, scenario)
    pages = sorted((run.directory / "run" / "fork_report").iterdir())
    assert [page.name for page in pages] == ["latest.html", "step-0.html"]
    start = build_model(build_tokenizer())
    (batch,) = run.batches
    data, rows = check_page(pages[1], batch, start, build_tokenizer())
    assert rows == [0, 5, 10], "of the 16 rows of the main process"
    entropies, _ = naive_view(start, batch)
    forks = select(batch, entropies, 0.2, "high_entropy", [list(entropies)])
    assert data["threshold"] == pytest.approx(min(entropies[row][t] for row, t in forks), abs=1e-4)


@pytest.mark.parametrize(("engine", "scenario"), engine_parameters(SAME_ON_ONE_PROCESS))
def test_equals_one_process(engine, scenario, two_processes, one_process):
    """The same rows, selection, loss, metrics and weights as on one process with micro-batches of twice the size."""
    two, one = two_processes(engine, scenario), one_process(scenario)
    assert two.batches == one.batches
    for generation in range(len(one.batches)):
        pairs = [
            {(row, t) for row, tokens in selected_by(run, generation).items() for t in tokens} for run in (two, one)
        ]
        rows = [rows_with_gradient(one.batches[generation], selected) for selected in pairs]
        assert rows[0] == rows[1]
        assert {pair for pair in pairs[0] if pair[0] in rows[0]} == {pair for pair in pairs[1] if pair[0] in rows[1]}
    assert two.loss == pytest.approx(one.loss, abs=1e-5)
    # What a random selection logs is averaged over micro-batches, and depends on the cut.
    prefixes = ("eval_loss", "reward", "eval_reward")
    prefixes += tuple(f"{mode}balance/{name}" for mode in ("", "eval_") for name in ("residual_abs", "log_partition"))
    prefixes += ("random" not in scenario) * ("forking/", "eval_forking/")
    for found, expected in zip(two.log_history, one.log_history, strict=True):
        names = [name for name in expected if name.startswith(prefixes)]
        assert [found[name] for name in names] == pytest.approx([expected[name] for name in names], rel=1e-4)
    assert weight_difference(saved_weights(start_of(scenario, one)), two.weights, one.weights) < 1e-5


@pytest.mark.parametrize(("engine", "scenario"), engine_parameters(("batch", "from_disk")))
def test_completions_are_those_of_one_process(engine, scenario, two_processes, one_process):
    """Also where parameters are in parts, and processes need different numbers of forward passes."""
    ranks = [record["samples"] for record in two_processes(engine, scenario).records]
    assert len({max(map(len, samples)) for samples in ranks}) == 2
    assert [*ranks[0], *ranks[1]] == one_process(scenario).records[0]["samples"]


@pytest.mark.distributed
@pytest.mark.parametrize("scenario", PRESETS)
def test_presets_train_as_on_one_process(scenario, two_processes, one_process):
    two, one = two_processes("ddp", scenario), one_process(scenario)
    assert two.batches == one.batches and len(one.loss) == 2
    assert two.loss == pytest.approx(one.loss, abs=1e-5)
    for found, expected in zip(two.log_history, one.log_history, strict=True):
        names = [name for name in expected if name.startswith("credit/")]
        assert [found[name] for name in names] == pytest.approx([expected[name] for name in names], rel=1e-4)
    start = saved_weights(build_model(build_tokenizer()))
    assert weight_difference(start, two.weights, one.weights) < 1e-5


@pytest.mark.distributed
def test_scenarios_are_what_they_are_named_for(two_processes):
    """Else the comparisons above would say less than they seem to."""

    def rows(scenario, rank):
        (batch,) = two_processes("ddp", scenario).records[rank]["generated"]
        return [Rollout(**r) for r in batch]

    for scenario in ("batch", "micro_batch", "straddling_group", "balance"):
        assert max(len(r.completion) for r in rows(scenario, 0)) < max(len(r.completion) for r in rows(scenario, 1))
    for scenario in ("straddling_group", "balance"):
        assert rows(scenario, 0)[-1].group == rows(scenario, 1)[0].group
    for suffix in ("", "_micro_batch"):
        assert not any(any(r.valid) for r in rows("truncated_rank" + suffix, 1))
        assert all(all(r.valid) for r in rows("truncated_rank" + suffix, 0))
        assert {r.reward for r in rows("inert_rank" + suffix, 1)} == {0.7}

    def first_round(scenario, rank):
        return [r["reward"] for r in two_processes("ddp", scenario).records[rank]["generated"][0]]

    assert len(set(first_round("dynamic_sampling", 0))) > 1
    assert set(first_round("dynamic_sampling", 1)) == {0.7}
    for scenario, lowest, highest in (
        ("dynamic_sampling", 1.0, 1.0),
        ("dynamic_sampling_straddling", 1.0, 1.0),
        ("dynamic_sampling_topped_up", 0.25, 0.75),
    ):
        run = two_processes("ddp", scenario)
        (batch,) = run.batches
        with_spread = sum(len({r.reward for r in batch[i : i + 8]}) > 1 for i in range(0, len(batch), 8))
        assert lowest <= with_spread / (len(batch) // 8) <= highest
        assert run.log_history[0]["dynamic_sampling/rounds"] == len(run.records[0]["generated"]) > 1
        assert len({r.reward for r in rows("inert_rank" + suffix, 0)}) > 1

    # Ranks that never met would have selected other tokens.
    for scenario in ("batch", "micro_batch"):
        run = two_processes("ddp", scenario)
        (batch,) = run.batches
        entropies, _ = naive_view(start_of(scenario, run), batch)
        alone = select(batch, entropies, 0.2, "high_entropy", pools_of("local", batch, cut_of(run, 0)))
        found = selected_by(run, 0)
        assert {(row, t) for row in found for t in found[row]} != alone


@pytest.mark.distributed
def test_processes_have_the_same_to_do(two_processes):
    """The rows of the first process are short; some of the second's are trained on by the first."""
    for scenario in ("batch", "sequence_level"):
        run = two_processes("ddp", scenario)
        (batch,) = run.batches
        sizes = {r.row: len(r.prompt) + len(r.completion) for r in batch}
        generated = [sum(sizes[r["row"]] for r in record["generated"][0]) for record in run.records]
        assert generated[1] > 1.5 * generated[0]
        cut = cut_of(run, 0)
        trained = [sum(sizes[row] for parts in cut for row in parts[rank]) for rank in (0, 1)]
        assert max(trained) < 1.15 * min(trained)
        assert any(row >= len(batch) // 2 for parts in cut for row in parts[0])
        counts = [list(map(len, parts)) for parts in cut]
        assert all((a > 0) == (b > 0) for a, b in counts), "as many passes on each process"
        assert counts[0] == [0, 0] and counts[-1][0] > 0, "the last micro-batch synchronises"
        if scenario == "sequence_level":
            assert all(a == b for a, b in counts)


@pytest.mark.distributed
def test_processes_may_call_tools_a_different_number_of_times(tmp_path):
    """TRL generates once per tool turn of a process: nothing of ours may wait for the others there."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/ddp.yaml"]
    command += ["--num_processes", "2", "--main_process_port", str(free_port()), "--mixed_precision", "no"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, "tests/distributed/tool_worker.py", str(tmp_path)],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=400)
    finally:
        kill_family(process)
    assert process.returncode == 0, output[-3000:]
    assert "calls: 0.25" in output
