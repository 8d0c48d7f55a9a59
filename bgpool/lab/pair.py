"""A blue and a green server, the names they are known by, and everything's end."""

from __future__ import annotations

import atexit
import logging
import os
import random
import secrets
import socket
from pathlib import Path
from types import TracebackType

import psycopg
from psycopg import sql

from bgpool.lab import metadata
from bgpool.lab.binaries import find_programs, make_usable
from bgpool.lab.errors import LabError
from bgpool.lab.guard import Guard
from bgpool.lab.metadata import Flavour
from bgpool.lab.names import HostsFile, Names, make_names
from bgpool.lab.postgres import PostgresServer

log = logging.getLogger("bgpool.lab")

DATABASE = "app"
ROLE = "app"
MONITOR_PREFIX = "bgpool-monitor"

CONNECT_TIMEOUT_S = 5
"""The connect timeout in the applications' DSN."""

PORTS = range(20000, 32000)
"""Below the kernel's ephemeral ports (32768 and up): no outgoing connection can take a chosen port away."""

ADDRESS_TRIES = 50


class Pair:
    """Blue and its streaming replica green, on two loopback addresses and one port.

    A context manager; `open` and `close` do the same by hand. After the lab's end, however it comes about,
    no process, directory or shared memory is left. Not safe to use from several threads while it opens or
    closes.

    Attributes:
        blue: The production server. After a switchover this is still the *same server*, old blue; see
            `renew`.
        green: The staging server, which a switchover promotes.
        names: Every endpoint name.
        hosts: The hosts file that stands for DNS.
        app_password: The password of the role ``app``.
    """

    blue: PostgresServer
    green: PostgresServer
    names: Names
    hosts: HostsFile
    app_password: str

    def __init__(
        self,
        flavour: Flavour = "rds",
        *,
        postgres: str | Path | None = None,
        base_dir: Path | None = None,
    ) -> None:
        """Describe a pair; nothing starts before `open`.

        Args:
            flavour: ``"rds"``, a DB instance with the rds_tools functions, or ``"aurora"``, a cluster of
                one instance.
            postgres: As in `bgpool.lab.binaries.find_programs`.
            base_dir: Where to make the temporary directory; the servers' account must be able to pass
                through.
        """
        if flavour not in ("rds", "aurora"):
            raise ValueError(f"flavour must be 'rds' or 'aurora', not {flavour!r}")
        self.flavour: Flavour = flavour
        self._postgres = postgres
        self._base_dir = base_dir
        self._guard: Guard | None = None

    def __enter__(self) -> Pair:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Start both servers, replicating; takes about a second.

        Raises:
            LabError: PostgreSQL was not found or did not start, or no free address was found; nothing is
                left behind.
        """
        if self._guard is not None:
            raise LabError("this pair is open already")
        programs = find_programs(self._postgres)
        self._guard = guard = Guard(self._base_dir)
        atexit.register(self.close)
        try:
            programs = make_usable(programs, guard.base / "programs")
            self.names = make_names(aurora=self.flavour == "aurora")
            self.app_password = secrets.token_urlsafe(12)
            blue_address, green_address, port = free_addresses()
            self.blue, self.green = (
                PostgresServer(
                    name,
                    guard.base / home,
                    address=address,
                    port=port,
                    socket_dir=guard.sockets / f"s-{home}",
                    programs=programs,
                )
                # Directories have names that stay true when roles swap.
                for name, home, address in (("blue", "one", blue_address), ("green", "two", green_address))
            )
            self._start_blue()
            self._start_green()
            self.hosts = HostsFile(guard.base / "hosts")
            self._publish_names()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End both servers and remove every file; idempotent, silent, without effect in a forked child."""
        guard = self._guard
        if guard is None or not guard.is_owner:
            return
        atexit.unregister(self.close)
        servers = [s for s in (getattr(self, "blue", None), getattr(self, "green", None)) if s is not None]
        try:
            for server in servers:  # both at once, then wait for both
                server.begin_stop("immediate")
            for server in servers:
                server.stop("immediate")
        except LabError as error:
            log.warning("%s", error)
        finally:
            guard.close()
            self._guard = None

    # -- what an application is given ----------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The one TCP port of both servers."""
        return self.blue.port

    @property
    def dsn(self) -> str:
        """The application's DSN, with blue's name as host, which `resolver` resolves and the system does not."""
        return self._dsn(self.names.blue.primary)

    @property
    def resolver(self) -> str:
        """The resolver to give bgpool: ``hosts:FILE``."""
        return f"hosts:{self.hosts.path}"

    def direct_dsn(self, server: PostgresServer) -> str:
        """The application's DSN for *server* by its address, for clients that do not know the hosts file."""
        return self._dsn(server.address)

    def monitoring_connections(self) -> int:
        """Sessions, on both servers together, whose application_name starts with `MONITOR_PREFIX`.

        A server that does not answer counts as having none.
        """
        query = "SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, %s)"
        count = 0
        for server in (self.blue, self.green):
            try:
                count += int(server.execute(query, (MONITOR_PREFIX,))[0][0])
            except psycopg.OperationalError as error:
                log.debug("%s does not answer: %s", server.name, error)
        return count

    def renew(self) -> None:
        """Make ready for the next switchover: the promoted server is blue, and old blue becomes a new green.

        Old blue's data is replaced by a clone, green gets fresh names, and the hosts file and the metadata
        are as before a deployment was created.

        Raises:
            LabError: The clone failed, or green was never promoted.
        """
        if self.green.is_in_recovery():
            raise LabError("green was not promoted: there is no switchover to follow")
        self.blue, self.green = self.green, self.blue
        self.blue.name, self.green.name = "blue", "green"
        self.green.stop("immediate")
        metadata.withdraw(self.blue)
        self._start_green()
        former = self.names
        self.names = former.with_new_green()
        self.hosts.update(dict.fromkeys((*former.green.all, *former.old.all)))
        self._publish_names()

    # -- inside --------------------------------------------------------------------------------------------

    def _dsn(self, host: str) -> str:
        timeout = f"connect_timeout={CONNECT_TIMEOUT_S}"
        return f"postgresql://{ROLE}:{self.app_password}@{host}:{self.port}/{DATABASE}?{timeout}"

    def _start_blue(self) -> None:
        self.blue.init()
        self.blue.start()
        name, password = sql.Identifier(ROLE), sql.Literal(self.app_password)
        with self.blue.superuser() as connection:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, password))
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        with self.blue.superuser(DATABASE) as connection:
            connection.execute(sql.SQL("ALTER SCHEMA public OWNER TO {}").format(name))
        metadata.install(self.blue, self.flavour, DATABASE)
        if self.flavour == "rds":
            metadata.grant(self.blue, ROLE, DATABASE)

    def _start_green(self) -> None:
        self.green.clone_from(self.blue)
        self.green.start()

    def _publish_names(self) -> None:
        self.hosts.update(
            dict.fromkeys(self.names.blue.all, self.blue.address)
            | dict.fromkeys(self.names.green.all, self.green.address)
        )

    def __repr__(self) -> str:
        if self._guard is None:
            return f"<Pair {self.flavour} closed>"
        return f"<Pair {self.flavour} blue={self.blue!r} green={self.green!r} in {os.fspath(self._guard.base)}>"


def free_addresses() -> tuple[str, str, int]:
    """Two loopback addresses and a port that can be bound on both.

    Raises:
        LabError: None was found; on systems other than Linux, loopback has 127.0.0.1 alone by default.
    """
    source = random.SystemRandom()
    reason: OSError | None = None
    for _ in range(ADDRESS_TRIES):
        block = source.randrange(1, 255)
        blue, green, port = f"127.0.{block}.1", f"127.0.{block}.2", source.choice(PORTS)
        try:
            for address in (blue, green):
                with socket.socket() as probe:
                    probe.bind((address, port))
        except OSError as error:
            reason = error
            continue
        return blue, green, port
    raise LabError(f"no free port on two loopback addresses (127.0.x.1 and 127.0.x.2): {reason}")
