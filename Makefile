# Every target sets up what it needs in .venv; only Python 3.11 or newer, make and a compiler must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
EXTRAS ?= test,dev
DEMO ?=
TESTS ?= tests

.DEFAULT_GOAL := help
.PHONY: help demo test test-full check bench format clean

help: ## these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Shaketable needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Setting up .venv (PyTorch is large; this takes a few minutes once)"
	$(PIP) --editable .
	@touch $@

# The peers are installed without what they ask for: torchattacks' old bounds would change what is pinned.
$(VENV)/.stamp-dev: pyproject.toml constraints.txt benchmarks/requirements.txt | $(BIN)/python
	@echo "Setting up .venv (PyTorch is large; this takes a few minutes once)"
	$(PIP) --editable '.[$(EXTRAS)]'
	$(PIP) --no-deps --requirement benchmarks/requirements.txt
	@touch $@ $(VENV)/.stamp-run

demo: $(VENV)/.stamp-run ## train AT and AT-AWP on embedded images, compare them, write a report (minutes)
	$(BIN)/shaketable demo $(DEMO)

test: $(VENV)/.stamp-dev ## the fast tier of tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not full" $(TESTS)

test-full: $(VENV)/.stamp-dev ## all tests: kills and fuzzing at full counts
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(TESTS)

check: $(VENV)/.stamp-dev ## lint, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pyright --project pyrightconfig.strict.json
	. $(BIN)/activate && cd $(VENV) && PYTHONPATH=../src pyright --verifytypes shaketable.core --ignoreexternal >verifytypes.log || { cat verifytypes.log; exit 1; }
	$(BIN)/lint-imports --no-cache --no-logo

bench: $(VENV)/.stamp-dev ## speed against peers, in one run
	$(BIN)/python benchmarks/run.py

format: $(VENV)/.stamp-dev ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what the targets made
	rm -rf $(VENV) out runs .pytest_cache .ruff_cache .hypothesis .import_linter_cache
