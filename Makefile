# `make demo` and `make test` work in a fresh clone. Both make .venv first and can be repeated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Bytecode is kept even where the environment says otherwise: tests start many processes.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile

.PHONY: demo test test-slow test-all lint types layouts docs lock clean
demo: $(VENV)/.installed
	$(BIN)/mt demo

# TESTS="tests/indexed tests/retro" runs the tests of some folders or files only.
test: lint
	$(PYTEST) -m "not slow" $(TESTS)

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow $(TESTS)

test-all: test test-slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) types

# mypy runs where this repository is a folder named `mt`, so that every module has one name.
types: $(VENV)/.installed-dev
	@mkdir -p $(VENV)/source && ln -sfn "$(CURDIR)" $(VENV)/source/mt
	cd $(VENV)/source && $(abspath $(BIN))/mypy --config-file mt/pyproject.toml

# Compares every parallel layout with one process: the table of docs/parallelism.md.
layouts: $(VENV)/.installed-dev
	$(BIN)/python -W ignore -m mt.tests.train.layouts $(NAMES)

# The documentation as a site, build/site/index.html; a link that leads nowhere ends it. Nothing is taken from a network.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# requirements.lock again, after a change of pyproject.toml or constraints.txt.
lock: $(VENV)/.installed-dev
	$(BIN)/pip install -q uv
	$(BIN)/python .ci/lock.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mt needs Python 3.11 or later; run: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Torch is installed first: without a GPU its CPU build, which saves gigabytes of CUDA libraries. pip finds that build if
# its configured index or folder has it; otherwise uv, which knows where it is published, installs it.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	@version=$$(sed -n 's/^torch==//p' constraints.txt); \
	if [ "$$(uname)" != Linux ] || nvidia-smi >/dev/null 2>&1; then set -x; $(BIN)/pip install -q "torch==$$version"; \
	else set -x; $(BIN)/pip install -q "torch==$$version+cpu" 2>/dev/null \
	  || { $(BIN)/pip install -q uv && VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install -q --torch-backend=cpu "torch==$$version"; }; fi
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.torch
	$(BIN)/pip install -q -c constraints.txt -e '.[train,retro]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install -q -c constraints.txt -e '.[train,retro,dev]'
	@touch $@

# What can be made again by `make`; runs/, which has results, stays.
clean:
	rm -rf $(VENV) build dist mt_lm.egg-info mt.egg-info
