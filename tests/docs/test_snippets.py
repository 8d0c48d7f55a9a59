"""Run every Python block of the docs, page by page, from top to bottom, on real servers."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from django.db import OperationalError, connections
from django.db.utils import load_backend

import bgpool
import bgpool.testing
from bgpool.core.engine import Engine
from bgpool.lab import Pair
from bgpool.pools.postgres.receipts import DDL
from bgpool.registry import close_pools
from tests.docs.pages import PAGES, Block, blocks

pytestmark = pytest.mark.lab

#: The endpoints in the examples: of an instance, of a cluster, and of the cluster's reader.
EXAMPLES = [f"ledger.{shape}c0abc.eu-west-1.rds.amazonaws.com" for shape in ("", "cluster-", "cluster-ro-")]
#: The URLs in the examples.
EXAMPLE_URL = re.compile(
    rf"(?P<scheme>[\w+]+)://app(?::secret)?@(?P<host>{'|'.join(map(re.escape, EXAMPLES))})/app(?P<query>\?[^\"]*)?"
)
#: A parameter of a URL that names a certificate. The lab does not have the certificate.
CERTIFICATE = re.compile(r"&?ssl\w+=[^&]*")

#: Blocks that cannot be run here: an import in the block, and the reason.
ELSEWHERE = {
    "from bgpool.integrations import uwsgi": "only uWSGI has the module uwsgi; tests/servers runs it there",
    "from tenacity import": "it is not installed; tests/django calls is_interrupted",
}
_DJANGO = "from tests.docs import django_page; globals().update(django_page.prepare(pair))"
#: Code that runs before the blocks of a page, for the names that it uses and does not define.
GRANTED = {
    "README.md": "def place_order(conn, item): return item",
    "django.md": _DJANGO,
    "units-of-work.md": _DJANGO,
}
#: An expression that is true after the blocks of a page.
AFTERWARDS = {
    "README.md": "total == 'tea'",
    "units-of-work.md": "total == 1 and sent == [1]",
    "sqlalchemy.md": "total == 4",
    "django.md": "sent == [1]",
}
#: Code that closes the connections that a page leaves open on purpose. All engines are disposed of without it.
GOODBYE = {
    "connector.md": "local.conn.close(); [conn.close() for conn in connections.idle]; db.close()",
    "django.md": "django_page.forget()",
    "units-of-work.md": "django_page.forget()",
}
ON_MYSQL = {"mysql.md", "dbutils.md"}
#: Pages that start their own servers and monitors.
ON_THEIR_OWN = {"testing.md"}
#: Blocks that are files. Their tests are below, in test_starts.py, tests/cli/test_rehearse.py and
#: tests/django/test_test_runs.py.
FILES = {
    "orders.sql",
    "orders_plain.py",
    "orders_sqlalchemy.py",
    "shop/settings.py, at the end",
    "shop/models.py",
    "shop/urls.py",
    "orders_fastapi.py",
    "orders_celery.py",
    "orders_mysql.py",
    "test_switchover.py",
    "test_switchover_async.py",
    "app.py",
    "app_async.py",
    "schema.sql",
    "settings.py",
    "middleware.py",
    "myproject/db/base.py",
    "shop/test_switchover.py",
    "shop/migrations/0002_receipts.py",
}


@pytest.fixture(scope="session")
def postgres_pair() -> Iterator[Pair]:
    with Pair() as pair:
        yield _with_orders(pair)


@pytest.fixture(scope="session")
def mysql_pair() -> Iterator[Pair]:
    with Pair(engine="mysql") as pair:
        yield _with_orders(pair)


def _with_orders(pair: Pair) -> Pair:
    """Make the examples' endpoints resolve to *pair*, create their table, and return *pair*."""
    for host in EXAMPLES:
        pair.hosts.set(host, pair.blue.address)
    pair.blue.execute("CREATE TABLE orders (item varchar(40))", database="app")
    if pair.engine is Engine.POSTGRESQL:
        pair.blue.execute("GRANT ALL ON orders TO app", database="app")
        for statement in filter(str.strip, DDL.format(table="bgpool_receipts", user="app").split(";")):
            pair.blue.execute(statement, database="app")
    return pair


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Provide a working directory and a run directory, and close the pools of a page afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BGPOOL_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("BGPOOL_FLEET_KEY", "k" * 32)
    yield
    close_pools(tmp_path / "run", "1")


def python_of(page: Path) -> list[Block]:
    return [block for block in blocks(page, "python") if block.title not in FILES]


def run(block: Block, names: dict[str, Any], pair: Pair) -> None:
    def in_the_lab(url: re.Match[str]) -> str:
        query = CERTIFICATE.sub("", url["query"] or "").rstrip("?")
        return f"{url['scheme']}://app:{pair.app_password}@{url['host']}:{pair.port}/app{query}"

    text = EXAMPLE_URL.sub(in_the_lab, block.text)
    text = text.replace(f'host="{EXAMPLES[0]}"', f'host="{EXAMPLES[0]}", port={pair.port}')
    text = text.replace('password="secret"', f'password="{pair.app_password}"')
    code = compile(text, block.place, "exec")
    if not any(text.find(line) >= 0 for line in ELSEWHERE):
        exec(code, names)


@pytest.mark.parametrize("page", [page for page in PAGES if python_of(page)], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(
    page: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pair: Pair = request.getfixturevalue("mysql_pair" if page.name in ON_MYSQL else "postgres_pair")
    monkeypatch.setenv("BGPOOL_RESOLVER", pair.resolver)
    pair.blue.execute("DELETE FROM orders", database="app")
    names: dict[str, Any] = {"__name__": "page", "bgpool": bgpool, "pair": pair}
    with contextlib.ExitStack() as stack:
        if page.name not in ON_THEIR_OWN:
            names["pool"] = bgpool.get_pool(pair.dsn, max_size=1, min_size=1)
            for bg_id in ("1", "ledger"):
                # There is no deployment, and no pool starts a monitor to look for one.
                stack.enter_context(bgpool.testing.deployment(tmp_path / "run", bg_id=bg_id))
        exec(GRANTED.get(page.name, ""), names)
        for block in python_of(page):
            run(block, names, pair)
        assert eval(AFTERWARDS.get(page.name, "True"), names)
        exec(GOODBYE.get(page.name, ""), names)
        for engine in [value for value in names.values() if isinstance(value, sqlalchemy.Engine)]:
            engine.dispose()
    inserts = any(re.search(r"INSERT|objects\.create", block.text) for block in python_of(page))
    assert bool(pair.blue.execute("SELECT count(*) FROM orders", database="app")[0][0]) is inserts


def test_every_file_has_a_test() -> None:
    assert {block.title for page in PAGES for block in blocks(page) if block.title} == FILES


def file(title: str) -> str:
    return next(block.text for page in PAGES for block in blocks(page) if block.title == title)


@pytest.mark.parametrize("title", ["test_switchover.py", "test_switchover_async.py"])
def test_the_tests_in_the_docs_pass(title: str, postgres_pair: Pair, tmp_path: Path) -> None:
    pair = postgres_pair
    pair.blue.execute("DELETE FROM orders", database="app")
    pair.green.wait_replayed(pair.blue.position(), 10.0)
    text = file(title).replace("127.0.0.2", pair.green.address)
    text = text.replace("app:secret@127.0.0.1", f"app:{pair.app_password}@{pair.blue.address}:{pair.port}")
    (tmp_path / title).write_text(text.replace("127.0.0.1", pair.blue.address), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", title],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_the_application_of_the_rehearsal_runs(postgres_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flask")
    postgres_pair.blue.execute("DELETE FROM orders", database="app")
    monkeypatch.setenv("DATABASE_URL", postgres_pair.dsn)
    monkeypatch.setenv("BGPOOL_RESOLVER", postgres_pair.resolver)
    names: dict[str, Any] = {"__name__": "app"}
    with bgpool.testing.deployment(os.environ["BGPOOL_RUN_DIR"]):
        exec(compile(file("app.py"), "app.py", "exec"), names)
        assert names["app"].test_client().get("/").json == {"orders": 0}


def test_the_django_settings_in_the_docs_work() -> None:
    names: dict[str, Any] = {}
    exec(compile(file("settings.py"), "settings.py", "exec"), names)
    (database,) = names["DATABASES"].values()
    backend = load_backend(database["ENGINE"])
    wrapper = backend.DatabaseWrapper(connections.configure_settings({"default": database})["default"])
    params = wrapper.get_connection_params()
    assert wrapper.bgpool_find(params).connections.bg_id == "ledger"


def test_the_migration_in_the_docs_has_the_ddl_of_the_cli() -> None:
    """The SQL of the migration is that of ``bgpool receipts --sql``, without the grants."""
    names: dict[str, Any] = {"__name__": "migration"}
    exec(compile(file("shop/migrations/0002_receipts.py"), "migration", "exec"), names)
    (operation,) = names["Migration"].operations
    proposed = " ".join(operation.sql.split())
    assert proposed == " ".join(DDL.format(table="bgpool_receipts", user="app").partition("GRANT")[0].split())


def test_the_middleware_in_the_docs_answers_503() -> None:
    names: dict[str, Any] = {}
    exec(compile(file("middleware.py"), "middleware.py", "exec"), names)
    middleware = names["SwitchoverAs503"](lambda request: request)
    error = OperationalError()
    error.__cause__ = bgpool.SwitchoverInterrupted("cut")
    assert middleware.process_exception(None, error).status_code == 503
    assert middleware.process_exception(None, bgpool.SwitchoverHoldTimeout("held")).status_code == 503
    assert middleware.process_exception(None, bgpool.CommitOutcomeUnknown("unknown")) is None
    assert middleware.process_exception(None, OperationalError()) is None


def test_the_custom_backend_in_the_docs_works() -> None:
    """Django's own backend stands in for that of the library on the page."""
    names: dict[str, Any] = {"__name__": "base"}
    text = file("myproject/db/base.py").replace("django_tenants.postgresql_backend", "django.db.backends.postgresql")
    exec(compile(text, "base.py", "exec"), names)
    assert issubclass(names["DatabaseWrapper"], names["base"].DatabaseWrapper)
