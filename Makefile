# make demo   real databases go through a switchover under load, and a ledger judges the result
# make test   linters and tests; ARGS="tests/pools -k reset" runs a part of the tests alone
# make test-full  the same with every variant: all scenarios on all engines, long chaos, every Python
# make mysql  the tests of MySQL, with every scenario, on a real one: Debian's, fetched to .mysql, or MYSQLD=/path/to/mysqld
# make bench  measures, beside what people use
# All set up what they need in .venv, from the package index alone. The tests need a MariaDB and a Redis (or Valkey)
# server, too, which no wheel has: they are installed from Debian's packages where that takes no questions.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Interpreters that pyenv keeps, for tox to find beside those on PATH.
space := $(subst ,, )
export TOX_DISCOVER := $(subst $(space),:,$(wildcard $(HOME)/.pyenv/versions/3.1[0-4].*/bin/python3))

# This Python runs the quick tests among all the others: they are not run on it again.
SKIP_OWN_QUICK = TOX_SKIP_ENV="$$($(BIN)/python -c 'import sys; print("py%d%d-quick" % sys.version_info[:2])')"

.PHONY: demo test test-full mysql bench clean mariadb redis run-py run-full run-beside run-beside-full

demo: $(VENV)/.demo
	$(BIN)/bgpool demo

# About ten minutes with all set-up. The tests of servers mostly wait. What $(BESIDE) does, it does with what they leave of
# the processors; what it has to say follows at the end. tox prints the time of each part.
BESIDE = .tox/beside.log

test: mariadb redis $(VENV)/.tox
	$(if $(ARGS),$(BIN)/tox run -e py -- $(ARGS),@$(call SIDE_BY_SIDE,run-py run-beside))

# Less than an hour.
test-full: mariadb redis $(VENV)/.tox
	$(if $(ARGS),$(BIN)/tox run -e full -- $(ARGS),@$(call SIDE_BY_SIDE,run-full run-beside-full))

SIDE_BY_SIDE = $(MAKE) --no-print-directory --keep-going --jobs 2 $1; status=$$?; cat $(BESIDE); exit $$status

run-py:
	$(BIN)/tox run -e py

run-full:
	$(BIN)/tox run -m full

run-beside run-beside-full:
	@mkdir -p $(dir $(BESIDE))
	@$(SKIP_OWN_QUICK) nice $(BIN)/tox run-parallel -m $(@:run-%=%) --parallel 1 --parallel-no-spinner >$(BESIDE) 2>&1

# About half an hour. The servers run as mysql or nobody if make is run by root; that account must reach the folder.
mysql: export BGPOOL_LAB_MYSQL = $(if $(MYSQLD),$(dir $(abspath $(MYSQLD))),$(CURDIR)/.mysql)
mysql: $(VENV)/.tox
	@$(if $(MYSQLD),test -f '$(MYSQLD)' || { echo "MYSQLD is no program: $(MYSQLD)" >&2; exit 1; },sh tests/fetch_mysql.sh .mysql)
	$(BIN)/tox run -e mysql -- $(ARGS)

# An hour and a half on a quiet machine; ARGS="storm --repeat 1" for less.
bench: mariadb redis $(VENV)/.tox
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

redis:
	@PATH="$$PATH:/usr/sbin:/usr/local/bin:/usr/local/sbin"; \
	if [ -n "$$BGPOOL_LAB_REDIS" ] || command -v redis-server >/dev/null || command -v valkey-server >/dev/null; then \
		exit 0; \
	fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server >/dev/null; \
	else \
		echo "a Redis (6.2 or later) or Valkey server is needed: apt-get install redis-server" >&2; exit 1; \
	fi

clean:
	rm -rf $(VENV) .mysql .tox .mypy_cache .ruff_cache .pytest_cache .hypothesis
