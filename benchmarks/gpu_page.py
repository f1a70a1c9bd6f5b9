"""
Write docs/gpu.md from the results of `gpu.py`.

    python -m benchmarks.gpu_page

Needs nothing but Python, since `gpu.py` calls it on the machine with the GPU.
"""

import json
from pathlib import Path

from .gpu_parts import BUDGET, PARTS, RESULTS
from .whole_step_table import markdown_table


GIB = 2**30
PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"
HEAD = """# On a GPU

What needs a GPU is one script of at most {budget} seconds: tests of the Triton path and of steps in bf16, and what a
whole step of Qwen3-0.6B's shape, and one without its rollout, cost against TRL's `top_entropy_quantile`, in time and
memory, on completions of the same lengths in one run. This page is written from its results by
`python -m benchmarks.gpu_page`.
"""
NOTHING = """
**It has not been run on a GPU yet.** Every part runs on a CPU with a tiny model in the test suite; that says nothing
about time or memory on a GPU, and no number of it is shown here.
"""
HOW = """
## Run it

On a machine whose `python3` has PyTorch with CUDA, transformers and accelerate, in a checkout:

```bash
make gpu
```

That writes `gpu.json` into `benchmarks/results`, after every part, and this page. Packages that are missing there are
taken from a folder of wheels and go to a folder that is deleted afterwards; nothing is downloaded, and PyTorch is left
as it is. Make the folder where there is a network, for the version of Python that the machine has, copy it with the
checkout, and name it:

```bash
make gpu-wheels WHEELS=.gpu-wheels GPU_PYTHON=3.12
make gpu WHEELS=.gpu-wheels
```

Where the machine has no git, `--commit` says what is measured; where the results are copied from there, into
`benchmarks/results`, `python -m benchmarks.gpu_page` writes the page. Some parts alone, in less time, or all of them
with a tiny model on a CPU, which is never published:

```bash
make gpu ARGS="--only step_inert memory --budget 200"
make gpu ARGS=--dry_run PYTHON=.venv/bin/python
```

The parts come in this order. A part that fails or reaches its limit does not stop the next, and what it has measured
until then is kept; where the budget is spent, the rest is skipped. The seconds expected on an H100 follow from the
first run on one, whose parts were larger: a forward pass of decoding took 33 to 44 ms there, whatever its size.

| Part | | Limit, s | Expected, s |
|---|---|---:|---:|
"""


def load(path: Path = RESULTS) -> dict | None:
    return json.loads(path.read_text()) if path.exists() else None


def render(results: dict | None) -> str:
    """The page. Without results of a GPU, a dry run's among them, it says that there are none."""
    measured = results is not None and not results["dry_run"] and results["card"] is not None
    sections = [found_on(results), *tables(results["parts"])] if measured else [NOTHING.strip()]
    how = HOW.strip() + "\n" + "\n".join(
        f"| `{part.name}` | {part.title} | {part.limit} | {part.expected} |" for part in PARTS
    )  # fmt: skip
    return "\n\n".join([HEAD.format(budget=BUDGET).strip(), *sections, how]) + "\n"


def found_on(results: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items() if version)
    environment = results["parts"]["environment"].get("numbers") or {}
    rates = ""
    if "bf16_operations_per_second" in environment:
        rates = (
            f" The card did {environment['bf16_operations_per_second'] / 1e12:,.0f} Tflop/s in a bf16 matrix product "
            f"and copied {environment['copied_bytes_per_second'] / 1e12:.1f} TB/s, read and written."
        )
    lines = [
        f"One {results['card']} ({results['card_memory'] / GIB:.0f} GiB), driver {results['driver']}, CUDA "
        f"{results['cuda']}; Python {results['python']}, {versions}; commit {results['commit'] or 'not recorded'}, "
        f"{results['date']}.{rates}",
        "",
        "| Part | Status | Seconds |",
        "|---|---|---:|",
    ]
    for part in PARTS:
        record = results["parts"].get(part.name, {"status": "not asked for", "seconds": 0.0})
        reason = f": {record['reason']}" if "reason" in record else ""
        lines.append(f"| `{part.name}` | {record['status']}{reason} | {record['seconds']:.0f} |")
    return "\n".join(lines)


def tables(parts: dict) -> list[str]:
    """A section for each part that has measured something."""
    makers = {
        "tests": tests_table,
        "step_inert": step_table,
        "step": step_table,
        "whole_step": whole_step_table,
        "decoding": decoding_table,
        "memory": step_table,
        "lora": step_table,
    }
    found = []
    for part in PARTS:
        record = parts.get(part.name, {})
        if part.name in makers and record.get("numbers"):
            title = part.title[0].upper() + part.title[1:]
            cut = "" if record["status"] == "ok" else f"\n\nThis part ended with `{record['status']}`: what it left."
            note = f"\n\n{record['note']}" if "note" in record else ""  # by whoever publishes the results
            found.append(f"## {title}{cut}\n\n{makers[part.name](record['numbers'])}{note}")
    return found


def tests_table(numbers: dict) -> str:
    failed = f" Failed: {', '.join(f'`{name}`' for name in numbers['failed'])}." if numbers["failed"] else ""
    recorded = "".join(f"\n- {name}: {value}" for name, value in numbers.get("recorded", {}).items())
    counts = f"{numbers['passed']} passed, {len(numbers['failed'])} failed, {numbers['skipped']} skipped.{failed}"
    return f"{counts}\n{recorded}" if recorded else counts


def step_table(numbers: dict) -> str:
    options, rows = numbers["options"], numbers["rows"]
    if not rows:
        return "Nothing was measured."
    baseline = rows[0]
    lines = [
        f"{baseline['num_tokens']:,} completion tokens in {8 * options['groups']} rows of at most "
        f"{options['max_length']:,}, micro-batches of {options['micro_batch']}, {options['shape']}, bf16, gradient "
        "checkpointing. Medians; beside the times faster than TRL in the same round, their extremes and the number of "
        "rounds. Peak memory is beyond the weights, and in brackets with them.",
        "",
        "| | Seconds | Times TRL | Peak, GiB | Of TRL's | Tokens/s | Fill | Head rows fwd / bwd | Gradient error |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        low, high = row["ratio_range"]
        cells = [
            row["variant"],
            f"{row['seconds']:.2f}",
            f"{row['ratio']:.2f} ({low:.2f} to {high:.2f}, {row['rounds']})",
            *memory_cells(row, baseline),
            f"{row['tokens_per_second']:,.0f}",
            f"{row['fill']:.0%}" if "fill" in row else "",
            f"{row['head_forward']:,} / {row['head_backward']:,}" if "head_forward" in row else "",
            f"{row['error']:.1e}" if row.get("error") is not None else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def memory_cells(row: dict, baseline: dict) -> list[str]:
    if row.get("memory") is None:
        return ["", ""]
    with_weights = row.get("memory_with_weights")
    total = f" ({with_weights / GIB:.2f})" if with_weights is not None else ""
    return [f"{row['memory'] / GIB:.2f}{total}", f"{row['memory'] / baseline['memory']:.0%}"]


def whole_step_table(numbers: dict) -> str:
    if not numbers["rows"]:
        return "Nothing was measured."
    return markdown_table(numbers["rows"], numbers["options"], numbers["device"])


def decoding_table(numbers: dict) -> str:
    lines = [
        "Milliseconds of a forward pass over one token of every row: at lengths that are new, at the same lengths "
        "again, and with a row less at every step. `python -m benchmarks.decoding_step --help` says more.",
        "",
        "| Rows | Cache | First | Again | First, fewer | Again, fewer | Kernels |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in numbers["rows"]:
        cudnn = {True: ", with cuDNN", False: ", without cuDNN", None: ""}[row.get("cudnn")]
        reason = f" ({row['reason']})" if "reason" in row else ""
        cells = [
            str(row["rows"]),
            row["cache"] + cudnn + reason,
            *(f"{row[name]:.1f}" if name in row else "" for name in ("first", "again", "first_fewer", "again_fewer")),
            "" if row.get("launches") is None else f"{row['launches']:,}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write() -> None:
    PAGE.write_text(render(load(RESULTS)))


if __name__ == "__main__":
    write()
