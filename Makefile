# make demo   runs a switchover of real databases under load, and checks every written row
# make test   linters and tests; ARGS="tests/pools -k reset" runs only a part of the tests
# make test-full  the same with every variant: all scenarios on all engines, long chaos runs, every Python
# make mysql  the MySQL tests, with every scenario, on a real server: Debian's, fetched to .mysql, or MYSQLD=/path/to/mysqld
# make bench  runs the benchmarks, compared with other pools
# make lint   ruff, mypy, and the linters of spelling and prose
# make docs   builds the site in site/
# make package  builds sdist and wheel in dist/, checks them, and runs the quick tests with the installed wheel
# Each target installs its requirements into .venv, from the package index alone. The tests also need a MariaDB server and
# a Redis (or Valkey) server, which no wheel contains. For root, with apt-get, they are installed from Debian's packages.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The interpreters of pyenv, which tox finds in addition to those on PATH.
space := $(subst ,, )
export TOX_DISCOVER := $(subst $(space),:,$(wildcard $(HOME)/.pyenv/versions/3.1[0-5].*/bin/python3))

# This Python runs the quick tests together with all others, so its quick environment is skipped.
SKIP_OWN_QUICK = TOX_SKIP_ENV="$$($(BIN)/python -c 'import sys; print("py%d%d-quick" % sys.version_info[:2])')"

.PHONY: demo lint docs package test test-full mysql bench clean mariadb redis run-py run-full run-others run-others-full

demo: $(VENV)/.demo
	$(BIN)/bgpool demo

# About ten minutes, including the set-up. The tests with servers mostly wait. The other environments run at the same time
# and at a lower priority; their output is in $(OTHERS_LOG) and is printed at the end. tox prints the time of each part.
OTHERS_LOG = .tox/others.log

test: mariadb redis $(VENV)/.tox
	$(if $(ARGS),$(BIN)/tox run -e py -- $(ARGS),@$(call SIDE_BY_SIDE,run-py run-others))

# Less than an hour.
test-full: mariadb redis $(VENV)/.tox
	$(if $(ARGS),$(BIN)/tox run -e full -- $(ARGS),@$(call SIDE_BY_SIDE,run-full run-others-full))

SIDE_BY_SIDE = $(MAKE) --no-print-directory --keep-going --jobs 2 $1; status=$$?; cat $(OTHERS_LOG); exit $$status

run-py:
	$(BIN)/tox run -e py

run-full:
	$(BIN)/tox run -m full

run-others run-others-full:
	@mkdir -p $(dir $(OTHERS_LOG))
	@$(SKIP_OWN_QUICK) nice $(BIN)/tox run-parallel -m $(@:run-%=%) --parallel 1 --parallel-no-spinner >$(OTHERS_LOG) 2>&1

# About half an hour. If root runs make, the servers run as `mysql` or `nobody`, which must have access to the directory.
mysql: export BGPOOL_LAB_MYSQL = $(if $(MYSQLD),$(dir $(abspath $(MYSQLD))),$(CURDIR)/.mysql)
mysql: $(VENV)/.tox
	@$(if $(MYSQLD),test -f '$(MYSQLD)' || { echo "MYSQLD must be the path of the server's program: $(MYSQLD)" >&2; exit 1; },sh tests/fetch_mysql.sh .mysql)
	$(BIN)/tox run -e mysql -- $(ARGS)

lint: $(VENV)/.tox
	$(BIN)/tox run -e lint,docs

docs: $(VENV)/.tox
	$(BIN)/tox run -e site
	@echo "The site: $(CURDIR)/site/index.html"

package: $(VENV)/.tox
	$(BIN)/tox run -e package
	$(BIN)/tox run -e installed --recreate --installpkg "$$(echo dist/*.whl)"

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
		echo "a MariaDB server is needed: apt-get install mariadb-server-core" >&2; exit 1; \
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
	rm -rf $(VENV) .mysql .tox site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
