# Two commands prove the project; both need nothing but Python 3.11-3.13 and a package registry.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: quickstart test check clean

quickstart: $(VENV)/.quickstart ## the whole main job, three times; pass flags with ARGS, e.g. make quickstart ARGS=--check
	$(BIN)/maasdam quickstart $(ARGS)

test: $(VENV)/.test ## every test, on up to four cores; ARGS="-n 0" runs them one after another
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal --report-skips tests/skips.txt $(ARGS)

check: $(VENV)/.test ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.quickstart: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[build,speech]'
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@ $(VENV)/.quickstart

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
