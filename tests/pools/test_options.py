"""Options that get_pool refuses; a driver would refuse them only at the first checkout, or never."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.rows import DictRow, dict_row

import bgpool
from bgpool.pools import options
from bgpool.pools.mysql.store import Store

POSTGRES = "postgresql://app:s3cret@127.0.0.1:1/app"
MYSQL = "mysql://app:s3cret@127.0.0.1:1/app"


async def awaited(_conn: object) -> None:
    """Return at once; an async function that an async pool may call."""


#: Values of wrong types, and values out of range.
WRONG: dict[str, tuple[object, ...]] = {
    "min_size": ("1", 1.5, True, None, -1),
    "max_size": ("1", 1.5, True, 0),
    "timeout": ("30", None, math.nan, math.inf, -1, True),
    "max_waiting": ("10", None, -1),
    "max_lifetime": ("3600", None, 0, math.nan),
    "max_idle": ("600", None, 0, math.inf),
    "configure": (5, "SET x", awaited),
    "check": (True, awaited),
    "reset": (True, "everything", awaited),
    "close_returns": ("no", 1, None),
    "name": (5, ""),
}
WRONG_POSTGRES: dict[str, tuple[object, ...]] = {
    "reconnect_timeout": ("300", -1),
    "reconnect_failed": (5, awaited),
    "num_workers": (1.5, 0),
    "connection_class": (int, "Connection", None),
    "kwargs": (1, "autocommit", {"autocomit": True}, {"autocommit": "yes"}, {"prepare_threshold": "5"},
               {"dbname": "\0"}, {"dbname": "\udcff"}, {"row_factory": "dict"}, {"keepalives_idle": "soon"},
               {"sslmode": "bogus"}),
    "monitoring": (1, {"sslmode": "bogus"}, {"keepalives": "on"}),
}  # fmt: skip
BOTH: dict[str, tuple[object, ...]] = {"bg_run_dir": ("\0",), "bg_resolver": ("hosts:\0",)}


def _cases() -> Iterator[tuple[str, str, object]]:
    for dsn, wrong in ((POSTGRES, {**WRONG, **WRONG_POSTGRES, **BOTH}), (MYSQL, {**WRONG, **BOTH})):
        for name, values in wrong.items():
            for value in values:
                yield dsn, name, value


@pytest.mark.parametrize(("dsn", "name", "value"), list(_cases()))
def test_a_wrong_type_or_value_is_refused_at_once(dsn: str, name: str, value: object) -> None:
    with pytest.raises(bgpool.ConfigurationError, match="allowed") as caught:
        bgpool.get_pool(dsn, bg_id="options", **{name: value})
    assert (next(iter(value)) if isinstance(value, dict) else name) in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("name", ["configure", "check", "reset", "reconnect_failed"])
def test_an_async_pool_takes_functions_of_both_kinds(name: str) -> None:
    for value in (awaited, print, None):
        assert not bgpool.get_async_pool(POSTGRES, bg_id="options", **{name: value}).closed
    with pytest.raises(bgpool.ConfigurationError, match=f"{name}=5.*allowed"):
        bgpool.get_async_pool(POSTGRES, bg_id="options", **{name: 5})


@pytest.mark.parametrize("dsn", [b"postgresql://h/db", 1, None, ["x"], {"host": "h"}])
def test_a_dsn_that_is_no_text_is_refused(dsn: Any) -> None:
    with pytest.raises(bgpool.ConfigurationError, match=f"not {type(dsn).__name__}"):
        bgpool.get_pool(dsn)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("sslmode=bogus", "bogus.*verify-full or|sslmode.*verify-full"),
        ("target_session_attrs=bogus", "target_session_attrs.*bogus"),
        ("max_size=5", "'max_size'.*keywords of get_pool"),
        ("sslmod=require", "'sslmod'.*connection parameters"),
        ("tcp_user_timeout=soon", "tcp_user_timeout=<str>"),
        ("bg_receipts=always", "bg_receipts='always' needs a table.*bg_receipts_table"),
    ],
)
def test_unsupported_parts_of_a_url_are_named(query: str, text: str) -> None:
    with pytest.raises(bgpool.ConfigurationError, match=text):
        bgpool.get_pool(f"{POSTGRES}?{query}")


def test_a_pools_option_in_a_mysql_url_is_a_keyword() -> None:
    with pytest.raises(bgpool.ConfigurationError, match=r"'max_size'.*keywords of get_pool"):
        bgpool.get_pool(f"{MYSQL}?max_size=5")


def test_possible_parts_of_a_password_are_not_named() -> None:
    for dsn in ("postgresql://app:top?s3cret=1", "postgresql://app:top/x?s3cret=1&y=@db/app"):
        with pytest.raises(bgpool.ConfigurationError, match="cannot be read") as caught:
            bgpool.get_pool(dsn)
        assert "s3cret" not in str(caught.value)


def test_every_valid_value_is_accepted() -> None:
    class Own(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
            return super().connect(conninfo, **kwargs)

    for given in (
        {"timeout": 0, "max_lifetime": math.inf, "reconnect_timeout": math.inf, "max_size": None, "check": None},
        {"timeout": 0.5, "configure": print, "reset": print, "name": None, "connection_class": Own},
        {"connection_class": Own, "kwargs": {"colour": "blue"}},
        {"connection_class": psycopg.Connection[DictRow], "kwargs": {"row_factory": dict_row}},
        {"kwargs": {"autocommit": True, "prepare_threshold": None, "connect_timeout": "5", "row_factory": None}},
        {"kwargs": {"sslmode": "disable", "keepalives": "1", "application_name": None}},
        {"kwargs": dict},
        {"kwargs": None, "reset": "session"},
    ):
        bgpool.get_pool(POSTGRES, bg_id="options", **given).close()


def test_libpq_looks_at_values_and_connects_nowhere(monkeypatch: pytest.MonkeyPatch, capfd: Any, tmp_path: Any) -> None:
    secrets = tmp_path / "pgpass"
    secrets.write_text("*:*:*:*:s3cret\n")
    secrets.chmod(0o644)  # libpq would print a warning on standard error
    monkeypatch.setenv("PGPASSFILE", str(secrets))
    monkeypatch.setenv("PGHOSTADDR", "192.0.2.1")
    bgpool.get_pool("postgresql://db.example.com/app", bg_id="options").close()
    assert capfd.readouterr() == ("", "")


def test_every_option_of_the_drivers_has_a_check() -> None:
    theirs = set(inspect.signature(psycopg_pool.ConnectionPool.__init__).parameters)
    assert set(options.POSTGRES) == theirs - {"self", "conninfo", "open"}
    assert set(options.MYSQL) == set(inspect.signature(Store.__init__).parameters) - {"self", "connector"}


# -- calls ---------------------------------------------------------------------------------------------------------


class Awaited:
    async def __call__(self, _given: object) -> None:
        """Return at once, as a coroutine function."""


WRONG_TIMEOUTS: tuple[Any, ...] = (math.nan, math.inf, "1", True, [])


@pytest.mark.parametrize("timeout", WRONG_TIMEOUTS)
@pytest.mark.parametrize("dsn", [POSTGRES, MYSQL])
def test_an_invalid_timeout_of_a_call_is_refused(dsn: str, timeout: Any) -> None:
    pool, connector = bgpool.get_pool(dsn), bgpool.get_connector(dsn)
    calls: tuple[Any, ...] = (
        lambda: pool.getconn(timeout),
        lambda: pool.connection(timeout).__enter__(),
        lambda: pool.run(id, timeout=timeout),
        lambda: bgpool.transactional(pool, timeout=timeout)(id),
        lambda: pool.close(timeout),
        lambda: connector.wait_admitted(timeout),
    )
    for call in calls:
        with pytest.raises(bgpool.ConfigurationError, match=re.escape(f"timeout={timeout!r}: a number of seconds")):
            call()
    assert not pool.closed


@pytest.mark.parametrize("timeout", WRONG_TIMEOUTS)
def test_an_invalid_timeout_of_an_async_call_is_refused(timeout: Any) -> None:
    pool = bgpool.get_async_pool(POSTGRES)

    async def main() -> None:
        calls: tuple[Any, ...] = (
            lambda: pool.getconn(timeout),
            lambda: pool.connection(timeout).__aenter__(),
            lambda: pool.run(awaited, timeout=timeout),
            lambda: pool.close(timeout),
        )
        for call in calls:
            with pytest.raises(bgpool.ConfigurationError, match=re.escape(f"timeout={timeout!r}: a number of seconds")):
                await call()

    asyncio.run(main())
    assert not pool.closed


def test_a_negative_timeout_is_an_expired_one() -> None:
    """Callers compute their remaining time, which may be negative; for a unit of work this is an error."""
    pool, async_pool = bgpool.get_pool(POSTGRES), bgpool.get_async_pool(POSTGRES)
    with pytest.raises(bgpool.PoolTimeout):
        pool.getconn(-0.1)
    with pytest.raises(bgpool.ConfigurationError, match=re.escape("timeout=-0.1: a number of seconds from 0")):
        pool.run(id, timeout=-0.1)

    async def main() -> None:
        with pytest.raises(bgpool.PoolTimeout):
            await async_pool.getconn(-0.1)
        with pytest.raises(bgpool.ConfigurationError, match=re.escape("timeout=-0.1: a number of seconds from 0")):
            await async_pool.run(awaited, timeout=-0.1)
        await async_pool.close()

    asyncio.run(main())
    pool.close()


def test_a_unit_that_is_no_function_is_refused() -> None:
    pool, async_pool = bgpool.get_pool(POSTGRES), bgpool.get_async_pool(POSTGRES)
    coroutine = awaited(None)
    for fn, shown in ((None, "None"), ("ALTER ROLE app PASSWORD 's3cret'", "str"), (coroutine, "coroutine")):
        given: Any = fn
        for call in (
            lambda given=given: pool.run(given),
            lambda given=given: asyncio.run(async_pool.run(given)),
            lambda given=given: bgpool.transactional(pool)(given),
            lambda given=given: bgpool.transactional(async_pool)(given),
        ):
            with pytest.raises(bgpool.ConfigurationError, match=f"fn={shown} cannot be called; a function of"):
                call()
    coroutine.close()


@pytest.mark.parametrize(("pool", "shown"), [(None, "None"), (POSTGRES, "str"), (awaited, "function")])
def test_transactional_refuses_and_names_an_object_that_is_no_pool(pool: Any, shown: str) -> None:
    with pytest.raises(bgpool.ConfigurationError, match=f"transactional: pool={shown}; a pool of get_pool"):
        bgpool.transactional(pool)


@pytest.mark.parametrize("name", ["configure", "check", "reset"])
@pytest.mark.parametrize("value", [Awaited(), functools.partial(awaited), functools.partial(Awaited())])
def test_an_awaitable_hook_is_refused_by_a_blocking_pool(name: str, value: Any) -> None:
    with pytest.raises(bgpool.ConfigurationError, match=f"{name}=.*: a coroutine function is for get_async_pool"):
        bgpool.get_pool(POSTGRES, **{name: value})
    bgpool.get_async_pool(POSTGRES, **{name: value})


@pytest.mark.parametrize("make", [bgpool.get_pool, bgpool.get_async_pool, bgpool.get_connector])
def test_an_awaitable_password_callable_is_refused(make: Any) -> None:
    with pytest.raises(bgpool.ConfigurationError, match=r"password: .* not a coroutine function"):
        make(POSTGRES, password=awaited)


@pytest.mark.parametrize("scheme", ["bgpool", "bgpool_async", "bgpool_asyncpg", "psycopg", "psycopg_async"])
def test_sqlalchemys_urls_are_accepted(scheme: str) -> None:
    assert bgpool.get_async_pool(POSTGRES.replace("postgresql", f"postgresql+{scheme}")).name == "127.0.0.1:1"


def test_a_scheme_that_is_not_known_is_named() -> None:
    with pytest.raises(bgpool.ConfigurationError, match="scheme 'postgresql\\+psycopg2_cffi' is not supported"):
        bgpool.get_pool(POSTGRES.replace("postgresql", "postgresql+psycopg2_cffi"))
