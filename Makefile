# Every target sets up .venv by itself; nothing else is needed but Python 3.10 or newer and make.
# Arguments go through ARGS:  make test ARGS="-k relation"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CONSTRAINTS := constraints.txt
ARGS ?=
# Peers whose own requirements fit no recent torch; what the tests use of them needs none of these.
ALONE := easyfsl torchmeta

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-slow lint types bench gpu matrix fuzz clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## See what the regularizer does
	$(BIN)/python -m trlearner.experiments.demo $(ARGS)

test: $(READY) ## Run the first tier of tests and the doctests, shape checks on, two at a time
	$(BIN)/pytest -n 2 $(ARGS)

test-all: $(READY) ## Run every test but the slow ones
	$(BIN)/pytest -n 2 -m "not slow" $(ARGS)

test-slow: $(READY) ## Run the tests that take minutes each
	$(BIN)/pytest -n 2 -m slow $(ARGS)

lint: $(READY) ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## Check the types of the library
	$(BIN)/mypy

bench: $(READY) ## Time our engines and installed peers
	$(BIN)/python -m trlearner.experiments.bench $(ARGS)

gpu: $(READY) ## Check and time everything on a CUDA device, in 8 minutes
	$(BIN)/python -m trlearner.experiments.bench.gpu $(ARGS)

matrix: ## Run `make test` on every Python found, and on the lowest and the newest torch
	$(PYTHON) tests/support/matrix.py

fuzz: $(READY) ## Compare engines on random cases (docs/fuzz.md)
	PYTHONPATH=tests $(BIN)/python -m fuzz $(ARGS)

clean: ## Remove the environment, builds and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find trlearner experiments integrations tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed once, and again when a requirement changes. The build tool is pinned, too: hence
# setuptools first and no build isolation.
$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq -c $(CONSTRAINTS) setuptools
	$(BIN)/python -m pip install -qq -c $(CONSTRAINTS) --no-build-isolation -e ".[experiments,dev]"
	$(BIN)/python -m pip install -qq -c $(CONSTRAINTS) --no-deps $(ALONE)
	@touch $@
