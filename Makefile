# `make demo` trains and compares the attentions; `make test` checks everything. Both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint check clean chromium
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/ccsegformer demo --output runs/demo --overwrite

test: lint chromium
	$(BIN)/python -m pytest

# The tests of `ccsegformer app` need a browser.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo --non-interactive)
chromium:
	@command -v chromium >/dev/null || { $(SUDO) apt-get update && $(SUDO) env DEBIAN_FRONTEND=noninteractive \
	    apt-get install --yes --no-install-recommends chromium; } >/dev/null 2>&1 \
	  || { echo "The tests need a browser: install Chromium, so that 'chromium' is on PATH"; exit 2; }

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than Python 3.11: name a newer one, as in 'make PYTHON=python3.12 demo'"; exit 2; }
	@echo "Installing the pinned dependencies into .venv (about 6 GB, two minutes on a fast line)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) --editable '.[all]'
	@touch $@

.venv/installed-test: .venv/installed
	@$(PIP) --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv runs
