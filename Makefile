# Needs Python >= 3.11 and make; everything else is installed into .venv from requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(or $(shell command -v uv),.uv/bin/uv)
READY := $(VENV)/.ready
WORKERS := -n auto --maxprocesses 4 --dist worksteal
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: help setup quickstart test test-all bench check docs format lock clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## Make the environment in .venv

.uv/bin/uv:
	$(PYTHON) -c 'import sys; sys.exit("segmod needs Python >= 3.11, this is %d.%d: make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

$(READY): requirements.lock pyproject.toml | $(filter .uv/bin/uv,$(UV))
	test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) pip sync --quiet --compile-bytecode requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV) pip install --quiet --no-deps -e .
	touch $@

quickstart: setup  ## Train the small default net on built-in data, evaluate it, draw pictures
	$(BIN)/segmod-train

test: setup  ## Run the tests
	$(BIN)/pytest $(WORKERS)

test-all: setup  ## Run the tests, the slow ones too
	$(BIN)/pytest $(WORKERS) -m ''

bench: setup  ## Measure what docs/performance.md claims, in one table
	$(BIN)/python benchmarks/table.py

check: setup docs  ## Check format, lint, types and the documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: setup  ## Build the documentation in build/docs, and check its links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: setup  ## Format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: | $(filter .uv/bin/uv,$(UV))  ## Pin the dependencies anew in requirements.lock
	$(UV) pip compile pyproject.toml --quiet --universal --generate-hashes --all-extras --upgrade -o requirements.lock

clean:  ## Remove the environment and caches (runs stay)
	rm -rf $(VENV) .uv .mypy_cache .pytest_cache .ruff_cache build dist
