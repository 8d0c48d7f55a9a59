"""The parameters of create_pool and connect, and the private parts of asyncpg on which the integration depends."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
import re
import ssl
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from asyncpg.protocol import protocol

from bgpool import errors
from bgpool.errors import ConfigurationError
from bgpool.integrations import asyncpg as bg
from bgpool.integrations.asyncpg import errors as ours
from bgpool.integrations.asyncpg.wire import Wire
from bgpool.lab import Pair
from bgpool.registry import get_async_pool
from tests.asyncpg.conftest import Opened

DSN = "postgresql://app:secret@ledger.test/app"


def made(*args: Any, **options: Any) -> bg.Pool:
    async def make() -> bg.Pool:
        return bg.create_pool(*args, **options)

    return asyncio.run(make())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_sise": 3}, "unknown parameter 'max_sise'"),
        ({"bg_nonsense": 3}, "bg_nonsense"),
        ({"sslmode": "verify-full", "sslrootcert": "/nowhere/ca.pem"}, "sslrootcert='/nowhere/ca.pem' cannot be used"),
        ({"connect": asyncpg.connect}, "connect=… makes the connections itself"),
        ({"service": "ledger"}, "service is not read"),
        ({"host": ["a", "b"]}, "host: one endpoint is allowed, not a list"),
        ({"ssl": 3}, "ssl=3: an sslmode as text, an ssl.SSLContext, True or False is allowed"),
        ({"password": 3}, "password: a string or a callable"),
        ({"timeout": "1"}, "timeout='1': a number of seconds from 0"),
        ({"dsn": f"{DSN}?require_auth=scram-sha-256"}, "require_auth is a libpq parameter without an equivalent"),
        ({"dsn": f"{DSN}?channel_binding=require"}, "with asyncpg prefer or disable is allowed"),
        ({"dsn": f"{DSN}?sslmode=verify-full&sslrootcert=/nowhere/ca.pem"}, "sslrootcert='/nowhere/ca.pem' cannot be"),
        ({"dsn": "mysql://app@ledger.test/app"}, "postgresql:// is allowed"),
    ],
)
def test_a_refused_parameter_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        made(**{"dsn": DSN, **options})
    assert text in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("version", [None, "0.29.0"])
def test_an_asyncpg_that_is_needed_is_named(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    monkeypatch.setattr(asyncpg, "__version__", version)
    if version is None:
        monkeypatch.setitem(sys.modules, "asyncpg", None)
    monkeypatch.delitem(sys.modules, bg.__name__)
    found = "pip install" if version is None else f"this is {version}"
    with pytest.raises(ImportError, match=rf"needs asyncpg 0\.30 to 0\.32.* {re.escape(found)}"):
        importlib.import_module(bg.__name__)


def test_run_checks_its_arguments_before_any_query() -> None:
    """The pool, the function and the time are checked before a server is queried."""

    async def one(_connection: object) -> int:
        return 1

    async def main() -> None:
        pool: Any = bg.create_pool(DSN)
        others: tuple[Any, ...] = (None, get_async_pool(DSN), asyncpg.create_pool(DSN))
        for other in others:
            with pytest.raises(ConfigurationError, match="run: pool must be made by bgpool's create_pool"):
                await bg.run(other, one)
        with pytest.raises(ConfigurationError, match="run: fn=None cannot be called; a function of a connection"):
            await bg.run(pool, None)  # type: ignore[call-overload]  # what is tested
        for timeout in (-1, math.nan, "1"):
            given: Any = timeout
            with pytest.raises(ConfigurationError, match=f"run: timeout={timeout!r}: a number of seconds"):
                await bg.run(pool, one, timeout=given)
            if timeout != -1:  # the time is up
                with pytest.raises(ConfigurationError, match=f"timeout={timeout!r}: a number of seconds"):
                    await pool._acquire(given)

    asyncio.run(main())


def test_a_pools_option_is_none_of_a_connection() -> None:
    with pytest.raises(ConfigurationError, match="max_size is an option of a pool"):
        asyncio.run(bg.connect(DSN, max_size=3))


@pytest.mark.lab
@pytest.mark.usefixtures("deployment")
def test_parameters_reach_the_server(pair: Pair, opened: Opened, tmp_path: Path) -> None:
    direct = pair.dsn.partition("?")[0]
    file = tmp_path / "passwords"
    login, _, place = direct.partition("://")[2].partition("@")
    user, _, password = login.partition(":")
    host, _, port = place.partition("/")[0].partition(":")
    file.write_text(f"{host}:{port}:*:{user}:{password}\n")
    file.chmod(0o600)

    async def main() -> None:
        query = "application_name=mine&options=-c%20work_mem%3D3MB&keepalives_idle=7&connect_timeout=5"
        show = "SELECT concat_ws(' ', current_setting('application_name'), current_setting('work_mem'))"
        async with opened(f"{direct}?{query}") as pool:
            assert await pool.fetchval(show) == "mine 3MB"
        settings = {"application_name": "other"}
        async with opened(f"{direct}?{query}", server_settings=settings, command_timeout=5) as pool:
            assert await pool.fetchval(show) == "other 3MB"
        # With asyncpg's keywords only, and with a password file, which contains the name but not the address.
        keywords = {"host": host, "port": int(port), "user": user, "database": "app"}
        async with opened("postgresql://", **keywords, passfile=str(file)) as pool:
            assert await pool.fetchval("SELECT current_user") == "app"
        with pytest.raises(ConfigurationError, match="a pool goes to one endpoint"):
            async with opened() as pool:
                pool.set_connect_args("postgresql://elsewhere.test")
                await pool.fetchval("SELECT 1")

    asyncio.run(main())


@pytest.mark.lab
@pytest.mark.usefixtures("deployment")
def test_a_password_is_made_for_each_connection(pair: Pair, opened: Opened) -> None:
    made: list[tuple[str, int, str]] = []

    def make(host: str, port: int, user: str) -> str:
        made.append((host, port, user))
        return pair.app_password if len(made) != 2 else "wrong"

    make.forget = lambda: True  # type: ignore[attr-defined]  # a callable may have it

    def fail(*_: Any) -> str:
        raise KeyError("no token")

    async def main() -> None:
        name = pair.names.blue.primary
        dsn = f"postgresql://app@{name}:{pair.port}/app"
        async with opened(dsn, password=make, monitoring={"password": "-"}) as pool:
            assert await pool.fetchval("SELECT current_user") == "app"
            async with pool.acquire():
                # The second password is refused, and another one is made at once.
                await pool.fetchval("SELECT 1")
        assert made == [(name, pair.port, "app")] * 3
        async with opened(dsn, password=fail, monitoring={"password": "-"}) as pool:
            with pytest.raises(bg.PasswordFailed):
                await pool.fetchval("SELECT 1")

    asyncio.run(main())


def test_errors_are_both_and_none_is_taken_for_a_servers() -> None:
    for kind in (getattr(ours, name) for name in ours.__all__ if name[0].isupper()):
        assert issubclass(kind, errors.Error)
        assert issubclass(kind, (asyncpg.PostgresError, asyncpg.InterfaceError))
        # Otherwise asyncpg would raise it for every error with that code.
        assert "sqlstate" not in vars(kind)
        assert str(ours.like(None, kind.__mro__[1], "text")) == "text"
    assert type(asyncpg.PostgresError.new({"C": "08000", "M": "text"})) is asyncpg.PostgresConnectionError


def test_a_wire_has_all_that_a_protocol_sends() -> None:
    """A new method of asyncpg's protocol would bypass the hold, and the translation of errors."""
    sends = {
        name
        for name, method in inspect.getmembers(protocol.BaseProtocol)
        if not name.startswith("_") and inspect.iscoroutinefunction(method)
    }
    # inspect does not recognize Cython's coroutine functions before 3.12.
    sends = sends or {
        "prepare", "bind_execute", "bind_execute_many", "bind", "execute", "close_portal", "query", "copy_out",
        "copy_in", "close_statement", "close",
    }  # fmt: skip
    assert sends - vars(Wire).keys() == {"close"}


@pytest.mark.parametrize("given", [None, "prefer", "require", False, "disable"])
def test_an_ssl_context_is_made_only_if_a_name_must_be_verified(given: Any) -> None:
    recipe: Any = made(DSN, ssl=given).connector._recipe
    assert not isinstance(recipe._tls_for("ledger.test").get("ssl"), ssl.SSLContext)
    assert not recipe.names_matter


@pytest.mark.parametrize("version", ["0.29.0", "0.33.0.dev0", "0.33.0", "1.0.0"])
def test_another_asyncpg_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(asyncpg, "__version__", version)
    with pytest.raises(ConfigurationError, match=rf"asyncpg {re.escape(version)} is .* for asyncpg>=0\.30,<0\.33,"):
        made(DSN)
