"""
`make gpu` without a GPU: limits, the budget, what is kept and what is published; `docs/gpu.md` is of the results.

Processes are real. What a GPU would show is in `test_gpu.py`.
"""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from benchmarks import gpu, gpu_environment, gpu_page
from tests.snippets import ROOT


WRITE = "-c \"import sys; open(sys.argv[1], 'w').write('{{\\\"rows\\\": 1}}'); print('done')\" {output}"
# Starts a process of its own, writes both numbers and what it has measured so far, and hangs.
HANG = (
    "-c \"import os, subprocess, sys, time; child = subprocess.Popen(['sleep', '600']); "
    "open(sys.argv[1], 'w').write('[%d, %d]' % (os.getpid(), child.pid)); time.sleep(600)\" {output}"
)


def part(name, command, limit=20):
    return gpu.Part(name, name, limit, 1, command)


def run_parts(parts, tmp_path, budget=60, keep=lambda records: None):
    return gpu.run_parts(parts, budget, keep, environment=dict(os.environ), folder=tmp_path, dry_run=False)


def is_gone(pid):
    """A zombie, which the init process of a container may leave, has ended too."""
    for _ in range(50):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


def test_a_part_that_fails_or_hangs_costs_only_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    kept = []
    parts = [
        part("first", WRITE),
        part("fails", '-c "print(1); raise RuntimeError(2)"'),
        part("leaves nothing", "-c pass"),
        part("hangs", HANG, limit=3),
        part("last", WRITE),
    ]
    start = time.monotonic()
    records = run_parts(parts, tmp_path, keep=lambda found: kept.append(list(found)))
    assert time.monotonic() - start < 40
    assert [record["status"] for record in records.values()] == ["ok", "failed", "failed", "timeout", "ok"]
    assert kept == [[p.name for p in parts[: n + 1]] for n in range(5)]
    assert records["first"]["numbers"] == records["last"]["numbers"] == {"rows": 1}
    assert records["first"]["tail"] == "done\n"
    assert "RuntimeError: 2" in records["fails"]["tail"] and records["fails"]["numbers"] is None
    assert 3 <= records["hangs"]["seconds"] < 10
    assert 'File "<string>", line 1' in records["hangs"]["tail"], "it says where it was"
    assert all(is_gone(pid) for pid in records["hangs"]["numbers"]), "its children end with it"
    assert str(tmp_path) not in json.dumps(records)


def test_the_budget_bounds_all_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LEAST", 2)
    parts = [part("first", WRITE), part("hangs", HANG, limit=600), part("last", WRITE), part("also", WRITE)]
    start = time.monotonic()
    records = run_parts(parts, tmp_path, budget=gpu.GRACE + 5)
    assert time.monotonic() - start < gpu.GRACE + 8
    assert [record["status"] for record in records.values()] == ["ok", "timeout", "skipped", "skipped"]
    assert records["hangs"]["limit"] <= 5
    assert records["last"]["reason"] == "0 of the 8 seconds were left"


def test_a_reason_of_the_caller_skips_what_is_left(tmp_path):
    records = run_parts([part("first", WRITE), part("last", WRITE)], tmp_path, keep=lambda found: "no GPU")
    assert [record["status"] for record in records.values()] == ["ok", "skipped"]
    assert records["last"]["reason"] == "no GPU"


def test_tests_that_are_skipped_have_not_passed(tmp_path):
    """The environment variable asks for CUDA: without it pytest ends well and has tried nothing."""
    tests = next(p for p in gpu.PARTS if p.name == "tests")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    environment.pop("GPU_TESTS_DEVICE", None)
    record = gpu.run_part(tests, 120, environment, tmp_path, dry_run=False)
    assert record["status"] == "failed"
    assert record["numbers"]["passed"] == 0 and record["numbers"]["skipped"] > 60


def test_a_report_that_was_cut_off_is_none(tmp_path):
    path = tmp_path / "report"
    for text, kind in (("{", "json"), ("<testsuites><test", "junit"), ("", "json"), ("", "junit")):
        path.write_text(text)
        assert gpu.read_report(path, kind) is None
    recorded = '<properties><property name="peak" value="7"/></properties>'
    cases = f'<testcase name="a">{recorded}</testcase><testcase name="b"><failure/></testcase>'
    cases += '<testcase name="c"><skipped/></testcase>'
    path.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    expected = {"passed": 1, "skipped": 1, "failed": ["b"], "recorded": {"a: peak": "7"}}
    assert gpu.read_report(path, "junit") == expected


def test_a_dry_run_is_not_published(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.parse_arguments(["--dry_run", "--output", str(gpu.RESULTS)])
    assert "a dry run says nothing about a GPU" in capsys.readouterr().err
    assert gpu.parse_arguments(["--dry-run"]).output != gpu.RESULTS
    assert gpu.parse_arguments([]).output == gpu.RESULTS


def script(*arguments, **variables):
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_without_a_gpu_nothing_is_measured_or_overwritten(tmp_path):
    output = tmp_path / "gpu.json"
    output.write_text("the results of another machine")
    process = script("--output", output)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert (
        printed.count("PyTorch finds no CUDA device here; --dry_run tries the parts on the CPU") == len(gpu.PARTS) - 1
    )
    assert output.read_text() == "the results of another machine"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dry_run(tmp_path):
    """Every part with a tiny model on the CPU; then one of them anew, beside the results of the others."""
    output = tmp_path / "gpu.json"
    process = script("--dry_run", "--output", output, "--budget", 800)
    printed, _ = process.communicate(timeout=850)
    results = json.loads(output.read_text())
    parts = results["parts"]
    assert {name: record["status"] for name, record in parts.items()} == {p.name: "ok" for p in gpu.PARTS}, printed
    assert process.returncode == 0
    assert results["schema"] == 1 and results["dry_run"] and results["card"] is None
    assert results["versions"]["trl"] and parts["environment"]["numbers"]["unmet"] == []
    assert parts["tests"]["numbers"]["passed"] > 60 and not parts["tests"]["numbers"]["skipped"]
    assert [row["variant"] for row in parts["step"]["numbers"]["rows"]] == ["TRL", "ours", "floor"]
    assert parts["memory"]["numbers"]["rows"][1]["memory"] > 0
    assert gpu_page.render(results) == gpu_page.render(None)

    process = script("--dry_run", "--output", output, "--only", "whole_step")
    process.communicate(timeout=300)
    again = json.loads(output.read_text())
    assert again["parts"]["step"] == parts["step"] and again["parts"]["whole_step"] != parts["whole_step"]
    process = script("--dry_run", "--output", output, "--only", "whole_step", "--commit", "another")
    printed, _ = process.communicate(timeout=300)
    assert "has results of another commit" in printed
    assert json.loads(output.read_text()) == again


def test_a_script_that_is_ended_ends_its_part(tmp_path):
    process = script("--dry_run", "--output", tmp_path / "gpu.json", "--only", "step")
    deadline = time.monotonic() + 60
    while not (found := psutil.Process(process.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert found and is_gone(found[0].pid)


# ---------------------------------------------------------------------- packages


def test_wheels_are_what_such_a_machine_lacks():
    """The list against the requirements of what is installed here, and its versions against the constraints."""

    def closure(rules):
        seen, todo = set(), list(rules)
        while todo:
            rule = todo.pop()
            name = canonicalize_name(rule.name)
            if name not in seen and (not rule.marker or rule.marker.evaluate({"extra": ""})):
                seen.add(name)
                if gpu_environment.installed_version(name):
                    required = gpu_environment.distribution(name).requires or []
                    todo += map(Requirement, required)
        return seen

    present = closure(map(Requirement, ("torch", "transformers", "accelerate")))
    listed = (ROOT / "benchmarks" / "gpu_wheels.txt").read_text().splitlines()
    pins = {
        canonicalize_name(r.name): str(r.specifier) for r in map(Requirement, filter(lambda x: x[0] != "#", listed))
    }
    assert closure(gpu_environment.requirements()) - present == set(pins)
    constraints = [Requirement(x) for x in (ROOT / "constraints.txt").read_text().splitlines() if x[0] != "#"]
    tested = {canonicalize_name(r.name): str(r.specifier) for r in constraints}
    assert {name for name, pin in pins.items() if pin != tested[name]} == {"pyarrow"}
    for name, pin in pins.items():  # the list agrees with itself
        for rule in map(Requirement, gpu_environment.distribution(name).requires or []):
            if canonicalize_name(rule.name) in pins and (not rule.marker or rule.marker.evaluate({"extra": ""})):
                assert rule.specifier.contains(Version(pins[canonicalize_name(rule.name)][2:])), f"{name}{pin}: {rule}"


def build_wheel(folder, name, version, requires=()):
    """A package of one line, made by setuptools."""
    source = folder / f"{name}-{version}"
    source.mkdir()
    (source / f"{name}.py").write_text(f"version = {version!r}\n")
    listed = ", ".join(map(repr, requires))
    (source / "setup.py").write_text(
        f"from setuptools import setup\nsetup(name={name!r}, version={version!r}, py_modules=[{name!r}], "
        f"install_requires=[{listed}])\n"
    )
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", folder]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob(f"{name}-{version}-*.whl")
    return wheel


def test_wheels_that_are_missing_or_too_old_are_installed(tmp_path):
    wheels = [
        build_wheel(tmp_path, "torch", "99.0"),
        build_wheel(tmp_path, "datasets", "98.0", requires=["dill>=7"]),
        build_wheel(tmp_path, "datasets", "99.0", requires=["dill>=8"]),
        build_wheel(tmp_path, "dill", "8.1"),
        build_wheel(tmp_path, "pandas", "99.0"),
    ]
    names = [wheel.name.split("-")[0] for wheel in wheels]
    machine = dict.fromkeys(names, "7.0")
    assert gpu_environment.choose(wheels, machine.get) == []
    # datasets is too old for setup.cfg, and the new one needs a newer dill; the newer of two wheels; torch never
    assert gpu_environment.choose(wheels, {**machine, "datasets": "4.0"}.get) == [wheels[2], wheels[3]]
    assert gpu_environment.choose(wheels, {}.get) == [wheels[2], wheels[3], wheels[4]]
    target = tmp_path / "site"
    gpu_environment.install([wheels[3]], target)
    code = "import dill; print(dill.version)"
    printed = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(target)}, capture_output=True, text=True, check=True
    )
    assert printed.stdout == "8.1\n"


# ---------------------------------------------------------------------- the page


def test_page_is_of_the_results():
    results = gpu_page.load()
    assert results is None or not results["dry_run"]
    assert gpu_page.PAGE.read_text() == gpu_page.render(results), "run `python -m benchmarks.gpu_page`"


def made_up_results():
    row = {"workload": "w", "seconds": 2.0, "ratio": 1.0, "ratio_range": [0.9, 1.1], "tokens_per_second": 1234.5,
           "num_tokens": 5000, "rounds": 3, "processor_ratio": 1.0}  # fmt: skip
    trl = {**row, "variant": "TRL", "memory": 8 * 2**30, "memory_with_weights": 9 * 2**30, "fill": 0.25, "error": 0.8,
           "head_forward": 100, "head_backward": 90}  # fmt: skip
    ours = {**trl, "variant": "ours", "seconds": 0.5, "ratio": 4.0, "memory": 6 * 2**30, "error": None}
    options = {"groups": 10, "max_length": 2048, "micro_batch": 8, "shape": "qwen3-0.6b", "inert": 0.4, "steps": 1}
    phases = {"generation": 4.0, "rewards": 0.25, "scoring": 0.0, "training": 3.5, "other": 0.25, "whole": 8.0}
    whole = {"workload": "w", "arm": "TRL", "num_tokens": 9000, "rounds": 3, "clock": "seconds", "seconds": phases,
             "ratio": 1.0, "ratio_range": [1.0, 1.0], "memory": 2**30, "memory_with_weights": 2**31}  # fmt: skip
    faster = {**whole, "arm": "ours", "seconds": {**phases, "training": 0.5, "whole": 5.0}, "ratio": 1.6,
              "ratio_range": [1.5, 1.7], "memory": 2**29}  # fmt: skip
    least = {**whole, "arm": "floor", "seconds": {**phases, "rewards": 0.0, "training": 0.25, "other": 0.25,
             "whole": 4.5}, "ratio": 1.78, "ratio_range": [1.7, 1.9], "memory": None}  # fmt: skip
    whole_options = {**options, "lora": False, "processes": 1}
    numbers = {
        "environment": {"bf16_operations_per_second": 7.5e14, "copied_bytes_per_second": 3e12},
        "tests": {"passed": 63, "failed": ["test_x"], "skipped": 0, "recorded": {}},
        "step_inert": {"options": options, "rows": [trl, ours, {**row, "variant": "floor"}]},
        "whole_step": {"options": whole_options, "device": "NVIDIA H100 80GB HBM3", "rows": [whole, faster, least]},
        "decoding": {"rows": [
            {"rows": 16, "cache": "of the loop", "cudnn": True, "first": 61.25, "again": 30.5, "first_fewer": 62.75,
             "again_fewer": 31.5, "launches": 1234},
            {"rows": 16, "cache": "static, replayed", "reason": "RuntimeError: no"},
        ]},
    }  # fmt: skip
    parts = {name: {"status": "ok", "seconds": 10.0, "numbers": value} for name, value in numbers.items()}
    parts["tests"]["status"], parts["step_inert"]["status"] = "failed", "timeout"
    parts["lora"] = {"status": "skipped", "seconds": 0.0, "reason": "2 of the 480 seconds were left"}
    return {"schema": 1, "dry_run": False, "card": "NVIDIA H100 80GB HBM3", "card_memory": 79 * 2**30,
            "driver": "580.159", "cuda": "13.0", "python": "3.12.3", "commit": "abc", "date": "2026-12-01",
            "versions": {"torch": "2.11.0", "trl": "1.16.0", "triton": None}, "parts": parts}  # fmt: skip


def test_page_says_what_was_measured_and_on_what():
    page = gpu_page.render(made_up_results())
    assert "has not been run" not in page
    for text in (
        "NVIDIA H100 80GB HBM3",
        "79 GiB",
        "580.159",
        "torch 2.11.0, trl 1.16.0",
        "commit abc",
        "750 Tflop/s",
    ):
        assert text in page
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert [
        "TRL",
        "2.00",
        "1.00 (0.90 to 1.10, 3)",
        "8.00 (9.00)",
        "100%",
        "1,234",
        "25%",
        "100 / 90",
        "8.0e-01",
    ] in rows
    assert ["ours", "0.50", "4.00 (0.90 to 1.10, 3)", "6.00 (9.00)", "75%", "1,234", "25%", "100 / 90", ""] in rows
    # The phase of ours is all but generation and rewards, 5 - 4.25 s, and that of the floor 0.5 s.
    assert ["ours", "4.00", "0.25", "0.00", "0.50", "0.25", "5.00", "1.60 (1.50 to 1.70)", "1.50", "512, 50%"] in rows
    assert ["floor", "4.00", "0.00", "0.00", "0.25", "0.25", "4.50", "1.78 (1.70 to 1.90)", "1.00", ""] in rows
    assert ["16", "of the loop, with cuDNN", "61.2", "30.5", "62.8", "31.5", "1,234"] in rows
    assert ["16", "static, replayed (RuntimeError: no)", "", "", "", "", ""] in rows
    assert ["`lora`", "skipped: 2 of the 480 seconds were left", "0"] in rows
    assert ["`step`", "not asked for", "0"] in rows
    assert "63 passed, 1 failed, 0 skipped. Failed: `test_x`." in page
    assert page.count("This part ended with") == 2


def test_the_page_is_written(tmp_path, monkeypatch):
    """As `gpu.py` does at its end, in a process that has it as `__main__`."""
    monkeypatch.setattr(gpu_page, "RESULTS", tmp_path / "gpu.json")
    monkeypatch.setattr(gpu_page, "PAGE", tmp_path / "gpu.md")
    (tmp_path / "gpu.json").write_text(json.dumps(made_up_results()))
    assert gpu.gpu_page is gpu_page
    gpu_page.write()
    assert "NVIDIA H100 80GB HBM3" in (tmp_path / "gpu.md").read_text()


def test_page_of_no_gpu_has_no_number():
    nothing = gpu_page.render(None)
    assert "**It has not been run on a GPU yet.**" in nothing
    for change in ({"dry_run": True}, {"card": None}):
        assert gpu_page.render({**copy.deepcopy(made_up_results()), **change}) == nothing
    assert sum(p.expected for p in gpu.PARTS) <= gpu.BUDGET
    assert all(p.expected < p.limit < gpu.BUDGET for p in gpu.PARTS)
    limits = [float(limit) for p in gpu.PARTS for limit in re.findall(r"--time_limit (\d+)", p.command)]
    assert len(limits) == 1
