# `make demo` and `make test` work on a bare machine: each creates .venv first.
SHELL := /bin/bash
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check bench schema clean help

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# torch goes in first and by exact version, so that a CPU build which is at hand is the one that is taken.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "llmbuild needs Python 3.10 or newer; set PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	    || { echo "cannot create $(VENV): on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    "$$(grep -i '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -e '.[openvino,triton,gateway,modelopt,dev]' -c constraints.txt
	@touch $@

demo: $(STAMP) ## Build the demo recipe, serve it with Triton, print streamed tokens
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/demo.py

# A file's tests stay in one process, for they share servers and builds; the long ones, tests/flow, begin early.
# One thread each, or the processes would wait for one another's threads.
test: $(STAMP) ## Run the whole test suite
	@PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile \
	    --no-loadscope-reorder

check: $(STAMP) ## Lint, format check and type check
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(STAMP) ## Measure every figure of docs/benchmarks.md
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m benchmarks

schema: $(STAMP) ## Regenerate the recipe's JSON Schema
	@$(BIN)/llmbuild schema --write configs/recipe.schema.json

clean: ## Remove the virtual environment, artifacts and caches
	rm -rf $(VENV) artifacts dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
