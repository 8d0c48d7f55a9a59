# make demo   real databases go through a switchover under load, and a ledger judges the result
# make test   linters and all tests
# Both set up what they need in .venv, from the package index alone.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Interpreters that pyenv keeps, for tox to find beside those on PATH.
space := $(subst ,, )
export TOX_DISCOVER := $(subst $(space),:,$(wildcard $(HOME)/.pyenv/versions/3.1[0-3].*/bin/python3))

.PHONY: demo test bench clean

demo: $(VENV)/.demo
	$(BIN)/bgpool demo

test: $(VENV)/.tox
	$(BIN)/tox run

bench: $(VENV)/.demo
	$(BIN)/python benchmarks/checkout.py
	$(BIN)/python benchmarks/release.py
	$(BIN)/python benchmarks/mysql.py
	$(BIN)/python benchmarks/status.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	touch $@

$(VENV)/.tox: $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'tox>=4.22'
	touch $@

clean:
	rm -rf $(VENV) .tox .mypy_cache .ruff_cache .pytest_cache .hypothesis
