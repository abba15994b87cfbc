# The front door. Every target sets itself up in .venv first: Python 3.11 or later and nothing else.

VENV := .venv
PYTHON := $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,\
  $(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
READY := $(VENV)/.ready
DEMO := runs/demo

.PHONY: help demo test lint bench docs
.DEFAULT_GOAL := help

help:
	@echo "make demo   how several policies would serve the bundled trace: a table and a report"
	@echo "make test   all tests, with coverage"
	@echo "make lint   ruff and mypy"
	@echo "make bench  how fast the simulator is, and how close to others"
	@echo "make docs   docs/cli.md and the JSON schema, generated from the code"

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "modelium needs Python 3.11 or later; none found" >&2; exit 2; }
	@test -x $(VENV)/bin/python || { echo "Setting up $(VENV)" >&2; $(PYTHON) -m venv $(VENV); }
	@echo "Installing what pyproject.toml names (once)" >&2
	@$(VENV)/bin/pip install -qq --disable-pip-version-check -e ".[dev]"
	@touch $@

demo: $(READY)
	@$(VENV)/bin/modelium simulate --trace traces/data/day24.csv.gz --config traces/data/demo.yaml \
	  --policy ilp --policy gdsf --policy lru --policy static --out $(DEMO) --force
	@echo "Next    modelium simulate --help · docs/concepts.md"

test: $(READY)
	@$(VENV)/bin/pytest -n 2 --cov --cov-report=term

lint: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

bench: $(READY)
	@$(VENV)/bin/python benchmarks/engine.py

docs: $(READY)
	@$(VENV)/bin/python docs/generate.py
