"""The clients that are compared. Each takes a pool's place in the same application.

A client is made in each worker process, after the fork, and used by all of its threads. Clients differ only in what a
user would write differently. All have as many connections as the process has threads, the DSN's connect timeout, and
POOL_TIMEOUT_S to wait for a connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol

from bgpool.lab import Pair
from bgpool.lab.ledger import Key

__all__ = ["CLIENTS", "Client", "Config", "Spec"]

POOL_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Config:
    """The parameters of a client. They contain a password.

    Attributes:
        dsn: A ``postgresql://`` URL with a host name and a connect timeout.
        addresses: The addresses of blue and green, for a client that needs no names.
        resolver: bgpool's resolver, if there are no system names.
        hosts: The hosts file of the namespace to enter, see `benchmarks.hosts`; empty to leave the system unchanged.
        bg_id: The ``bg_id`` of the deployment.
        baseline_ms, increased_ms, high_ms: The poll intervals of clients that poll.
        size: The number of connections of each process. A crew sets it.
        directory: A directory for the clients' files. A crew sets it.
        build: The directory of the bgpool that the processes import; empty for this one. A crew sets it.
        debug: True to write the client's log at the level DEBUG.
    """

    dsn: str
    addresses: tuple[str, str]
    resolver: str = "system"
    hosts: str = ""
    bg_id: str = "bench"
    baseline_ms: int = 1000
    increased_ms: int = 500
    high_ms: int = 100
    size: int = 1
    directory: str = ""
    build: str = ""
    debug: bool = False

    @classmethod
    def of(cls, pair: Pair, hosts: Path | None = None, **more: Any) -> Config:
        """Return the parameters for *pair*, with system names if *hosts* is given, else with the lab's resolver."""
        return cls(
            dsn=pair.dsn,
            addresses=(pair.blue.address, pair.green.address),
            resolver="system" if hosts is not None else pair.resolver,
            hosts=str(hosts) if hosts is not None else "",
            **more,
        )

    def with_(self, **changes: Any) -> Config:
        """Return a copy with *changes*."""
        return replace(self, **changes)

    def as_json(self) -> dict[str, Any]:
        """Return the parameters in a form for json.dumps. `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Config:
        """Return the parameters of as_json()'s form."""
        return cls(**{**data, "addresses": tuple(data["addresses"])})


class Client(Protocol):
    """One process's way to the database. Its methods are called from any thread."""

    def write(self, key: Key) -> None:
        """Insert one row of the ledger and commit. An exception is an error that a caller would have seen."""

    def close(self) -> None:
        """Close every connection."""


@dataclass(frozen=True, slots=True)
class Spec:
    """The description of a client.

    Attributes:
        module, factory: ``factory(config)`` in ``module`` makes a client. The imports of ``module`` are loaded before
            the fork.
        needs_names: True if it resolves names through the system.
        note: A note for the tables.
        sees_s: The time that it gets to see a new deployment, if it cannot report whether it has.
    """

    module: str
    factory: str
    needs_names: bool
    note: str = ""
    sees_s: float = 0.0

    def load(self) -> Any:
        """Import the module and return it."""
        return import_module(f"benchmarks.clients.{self.module}")

    def make(self, config: Config) -> Client:
        """Return a client for this process."""
        client: Client = getattr(self.load(), self.factory)(config)
        return client

    def helpers(self, config: Config) -> tuple[int, ...]:
        """Return the ids of the processes that the clients have started in addition to the workers."""
        find = getattr(self.load(), "helpers", None)
        return tuple(find(config)) if find is not None else ()

    def has_seen(self, config: Config) -> bool:
        """Return whether the clients are ready for a switchover, as far as they can report it."""
        ask = getattr(self.load(), "is_ready", None)
        return ask is None or bool(ask(config))


CLIENTS: Final[Mapping[str, Spec]] = {
    "bgpool": Spec("ours", "Plain", needs_names=False),
    "bgpool, retry": Spec("ours", "Retry", needs_names=False),
    "psycopg_pool": Spec("psycopgs", "Plain", needs_names=True),
    "psycopg_pool, check": Spec("psycopgs", "Checked", needs_names=True),
    "SQLAlchemy, pre-ping": Spec("alchemy", "PrePing", needs_names=True),
    "SQLAlchemy, bgpool": Spec("ours_alchemy", "Plain", needs_names=False),
    "SQLAlchemy, bgpool run": Spec("ours_alchemy", "Run", needs_names=False),
    "Django, pool": Spec("djangos", "Pooled", needs_names=True),
    "Django, health checks": Spec("djangos", "Checked", needs_names=True),
    "Django, bgpool": Spec("ours_django", "Plain", needs_names=False),
    "Django, bgpool run": Spec("ours_django", "Run", needs_names=False),
    "AWS wrapper": Spec(
        "aws",
        "Wrapper",
        needs_names=True,
        sees_s=4.0,
        note="AWS wrapper: plugins=bg, and autocommit as in its examples. It has one wrapped connection per thread,"
        " which is closed and opened again after any error. It uses the metadata alone: where they stay at IN_PROGRESS"
        " (frozen, black hole), a call is suspended for bg_connect_timeout_ms, 30 s. In a rollback the result depends"
        " on when it polls. It recognizes a rollback by the return to AVAILABLE only if the reading before was"
        " IN_PROGRESS, not if that reading failed because connections were cut.",
    ),
    "AWS wrapper, mended": Spec(
        "aws",
        "Mended",
        needs_names=True,
        sees_s=4.0,
        note="AWS wrapper, mended: the same wrapper with two defects fixed in memory. They are a suspended call that"
        " selects its route from the earlier status, and routes by host and port that never match. It shows what the"
        " wrapper's design can do.",
    ),
    "oracle": Spec(
        "oracle",
        "Oracle",
        needs_names=False,
        note="oracle: a client with libpq connections that knows both addresses and gives each attempt 0.25 s. After a"
        " failure one of its threads tries both sides in turn until a write succeeds, and the others wait for its"
        " result. It is the lower bound.",
    ),
}
