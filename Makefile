# Every target sets up .venv by itself; nothing else is needed but Python 3.10 or newer and make.
# Arguments go through ARGS:  make test ARGS="-k relation"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=
# Peers whose own requirements fit no recent torch; what the tests use of them needs none of these.
ALONE := easyfsl torchmeta

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint types bench fuzz clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## See what the regularizer does
	$(BIN)/python -m trlearner.experiments.demo $(ARGS)

test: $(READY) ## Run the tests and doctests, shape checks on, two at a time
	$(BIN)/pytest -n 2 $(ARGS)

test-slow: $(READY) ## Run the tests that take minutes
	$(BIN)/pytest -n 2 -m slow $(ARGS)

lint: $(READY) ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## Check the types of the library
	$(BIN)/mypy

bench: $(READY) ## Time our engines and installed peers
	$(BIN)/python -m trlearner.experiments.bench $(ARGS)

fuzz: $(READY) ## Compare engines on random cases (docs/fuzz.md)
	PYTHONPATH=tests $(BIN)/python -m fuzz $(ARGS)

clean: ## Remove the environment, builds and caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find trlearner experiments integrations tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed once, and again when a requirement changes. The build tool is pinned, too: hence
# setuptools first and no build isolation.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq -c constraints.txt setuptools
	$(BIN)/python -m pip install -qq -c constraints.txt --no-build-isolation -e ".[experiments,dev]"
	$(BIN)/python -m pip install -qq -c constraints.txt --no-deps $(ALONE)
	@touch $@
