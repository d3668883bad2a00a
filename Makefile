# make setup | quickstart | test | lint: each installs what it needs into .venv first.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
WORKERS ?= 2

.PHONY: help setup quickstart test lint format clean

help:
	@echo "make setup       virtual environment .venv with the pinned versions"
	@echo "make quickstart  train tiny models offline with HSA and Feedback, from nothing to a loss curve"
	@echo "make test        the tests"
	@echo "make lint        ruff and mypy"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make setup PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[llamafactory,dev]'
	@touch $@

quickstart: $(INSTALLED)
	$(BIN)/hsa-factory quickstart --overwrite

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder tests

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist hsa_quickstart
