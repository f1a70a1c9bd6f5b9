"""The parts of `gpu.py`: commands, with limits and what they should take. Needs nothing but Python."""

from dataclasses import dataclass
from pathlib import Path


RESULTS = Path(__file__).parent / "results" / "gpu.json"
BUDGET = 480  # seconds


@dataclass(frozen=True)
class Part:
    """
    A command of `gpu.py`.

    Args:
        name (`str`): In `--only` and the results.
        title (`str`): In the page.
        limit (`int`): Seconds after which it is killed.
        expected (`int`): Seconds it should take on an H100.
        command (`str`): Arguments of `python`; `{output}` stands for the file it writes.
        dry (`str`): Appended in a dry run, where the last word wins.
        report (`str`): `"json"`, or `"junit"`, pytest's.
    """

    name: str
    title: str
    limit: int
    expected: int
    command: str
    dry: str = ""
    report: str = "json"


_STEP = "-m benchmarks.step --shape qwen3-0.6b --output {output}"
_LONG_TAIL = f"{_STEP} --groups 10 --micro_batch 8 --max_length 2048"
_TINY = "--shape tiny --groups 2 --micro_batch 8 --max_length 24 --repeats 1 --steps 1"
# From a run on an H100: ten seconds of imports; a step of TRL's of 5.7 s in `step_inert` and 3.5 s in `memory`, ours
# of 1.0 and 0.7 s; one forward pass of decoding in 33 to 44 ms, once per token, twice in each turn of `whole_step`.
PARTS = (
    Part(
        "environment",
        "the card, its rates, and the versions",
        60,
        10,
        "-m benchmarks.gpu_environment --output {output} --wheels {wheels} --target {target}",
    ),
    Part(
        "tests",
        "`pytest -m gpu`",
        120,
        80,
        "-m pytest tests/benchmarks/test_gpu.py tests/benchmarks/test_gpu_rows.py "
        "-m gpu -q -rfE -W default --disable-warnings -p no:cacheprovider "
        "--timeout 60 --durations 5 --junitxml {output}",
        report="junit",
    ),
    Part(
        "whole_step",
        "a whole step of Qwen3-0.6B's shape: generation, scoring, training",
        155,
        130,
        "-m benchmarks.whole_step --shape qwen3-0.6b --groups 32 --micro_batch 16 --max_length 128 --repeats 1 "
        "--workload 'long tail, 40 % inert' --output {output} "
        "--arm ours 'without compact_generation' 'without padding_free' 'TRL, continuous batching'",
        "--shape tiny --groups 2 --micro_batch 8 --max_length 16",
    ),
    Part(
        "decoding",
        "a step of decoding, by cache and attention",
        50,
        30,
        "-m benchmarks.decoding_step --shape qwen3-0.6b --rows 16 128 --output {output}",
        "--shape tiny --rows 2 --steps 4",
    ),
    Part(
        "step_inert",
        "a step without its rollout, long tail, 40 % of the groups inert",
        105,
        90,
        f"{_LONG_TAIL} --workload 'long tail, 40 % inert' --repeats 1 --steps 1 "
        "--variant ours 'without cut padding' 'without sparse head' 'ours, nothing left out'",
        _TINY,
    ),
    Part(
        "step",
        "the same, no group inert",
        70,
        40,
        f"{_LONG_TAIL} --workload 'long tail' --repeats 1 --steps 2 --variant ours --skip_gradient_error",
        _TINY,
    ),
    Part(
        "memory",
        "peak memory, rows of up to 8,192 tokens",
        60,
        31,
        f"{_STEP} --groups 1 --micro_batch 4 --max_length 8192 --workload 'long tail' --repeats 1 --variant ours "
        "--skip_gradient_error",
        _TINY,
    ),
    Part(
        "lora",
        "the step with inert groups, LoRA",
        70,
        45,
        f"{_STEP} --lora --groups 6 --micro_batch 8 --max_length 2048 --workload 'long tail, 40 % inert' --repeats 1 "
        "--steps 2 --time_limit 45 --variant ours",
        _TINY,
    ),
)
