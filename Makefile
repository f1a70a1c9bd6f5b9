# The two commands of the README, and what they need. Both make .venv first if it is missing or out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test test-distributed test-slow gpu gpu-wheels lint compat venv clean

quickstart: $(INSTALLED)  ## Train a tiny model on its forking tokens: a few minutes on a CPU, no download
	$(BIN)/python examples/quickstart.py

test: $(INSTALLED)  ## Offline, on the CPU, minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-distributed: $(INSTALLED)  ## DDP, ZeRO, FSDP2, two machines, kill and resume: real processes over loopback
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt '.[deepspeed]'
	$(BIN)/python -m pytest -m distributed $(ARGS)

test-slow: quickstart  ## The quickstart for three seeds, the commands of the docs, and adapters on 4-bit weights
	$(BIN)/python -m pytest -m 'slow and not distributed' -n 2 --dist worksteal --timeout 1800 $(ARGS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt '.[quantization]'
	$(BIN)/python -m pytest tests/test_adapters.py -k qlora

WHEELS := .gpu-wheels
GPU_PYTHON := 3.12

gpu:  ## Tests and benchmarks on a GPU, eight minutes at most, in the machine's own python3; `--dry_run` needs no GPU
	$(PYTHON) benchmarks/gpu.py --wheels '$(WHEELS)' $(ARGS)

# For a machine without a network, whose Python may be another one. The folder keeps itself out of git.
gpu-wheels:  ## What `make gpu` needs beside PyTorch, transformers and accelerate, as wheels in the folder WHEELS
	mkdir -p '$(WHEELS)' && echo '*' > '$(WHEELS)/.gitignore'
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
		--python-version $(GPU_PYTHON) --implementation cp --platform manylinux_2_28_x86_64 \
		--platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
		--dest '$(WHEELS)' --requirement benchmarks/gpu_wheels.txt
	@size=$$(cat '$(WHEELS)'/*.whl | wc -c); echo "$(WHEELS): $$((size / 1048576)) MiB"; \
		test $$size -lt 67108864 || { echo "more than 64 MiB: remove wheels that the machine has"; exit 1; }

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

compat: $(INSTALLED)  ## The newest TRL there is, in an environment of its own: what has moved?
	test -x .compat/bin/python || $(PYTHON) -m venv .compat
	.compat/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	.compat/bin/python -m pip install --quiet --disable-pip-version-check --upgrade '.[test]' trl transformers
	.compat/bin/python -m pip list 2>/dev/null | grep -E '^(trl|transformers|accelerate|peft) '
	.compat/bin/python -m pytest tests/test_trl_contract.py $(ARGS)

venv: $(INSTALLED)

# torch first and by its exact version: resolved together with the rest, pip may prefer a newer build with CUDA.
$(INSTALLED): setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .compat outputs build dist *.egg-info
