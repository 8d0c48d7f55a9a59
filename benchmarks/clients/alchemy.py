"""SQLAlchemy's ORM on the plain dialects of psycopg and PyMySQL: QueuePool with pool_pre_ping.

The module also has the parts that the clients on bgpool's dialects share: the mapped class, the pool's size, and the
transaction.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from benchmarks.clients import POOL_TIMEOUT_S, Config
from bgpool.lab.ledger import Key
from bgpool.resolver import make_resolver

__all__ = ["Orm", "PrePing", "add_row", "engine_of"]

DRIVERS: Final = {"postgresql": "psycopg", "mysql": "pymysql"}


class Base(DeclarativeBase):
    """The base of mapped classes."""


class Row(Base):
    """A row of the lab's ledger."""

    __tablename__ = "ledger"

    seq: Mapped[int] = mapped_column(primary_key=True)
    worker: Mapped[int]
    thread: Mapped[int]
    n: Mapped[int]


def add_row(session: Session, key: Key) -> None:
    """Add the row of *key* to *session*."""
    worker, thread, n = key
    session.add(Row(worker=worker, thread=thread, n=n))


def engine_of(config: Config, driver: str = "", **options: Any) -> Engine:
    """Return an engine on the DSN of *config* with as many connections as the process has threads.

    Args:
        config: The parameters of the client.
        driver: The driver in the URL; empty for the plain dialect's.
        options: More options of create_engine.
    """
    url = make_url(config.dsn)
    return create_engine(
        url.set(drivername=f"{url.drivername}+{driver or DRIVERS[url.drivername]}"),
        pool_size=config.size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        **options,
    )


class Orm:
    """``with Session.begin()``."""

    def __init__(self, engine: Engine) -> None:
        """Use *engine*, which connects at its first use."""
        self.engine: Final = engine
        self.sessions: Final = sessionmaker(engine)

    def write(self, key: Key) -> None:
        """See Client."""
        with self.sessions.begin() as session:
            add_row(session, key)

    def close(self) -> None:
        """See Client."""
        self.engine.dispose()


class PrePing(Orm):
    """SQLAlchemy on the plain dialect with ``pool_pre_ping=True``."""

    def __init__(self, config: Config) -> None:
        """Make the engine."""
        super().__init__(engine_of(config, pool_pre_ping=True))
        if config.resolver != "system":
            _resolve_by(self.engine, config.resolver)


def _resolve_by(engine: Engine, resolver: str) -> None:
    """Look up names with *resolver* for each new connection, as the system's resolver would without a cache."""
    resolve, name = make_resolver(resolver).resolve, str(engine.url.host)
    parameter = "hostaddr" if engine.dialect.name == "postgresql" else "host"

    @event.listens_for(engine, "do_connect")
    def look_up(_dialect: object, _record: object, _args: object, params: dict[str, Any]) -> None:
        params[parameter] = resolve(name)[0]
