"""A pair of blue and green servers with their endpoint names, and the removal of everything at the end."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, get_args

from bgpool.core.engine import Engine
from bgpool.lab import metadata
from bgpool.lab.addresses import free_addresses
from bgpool.lab.dns import DnsServer
from bgpool.lab.errors import DRIVER_ERRORS, LabError
from bgpool.lab.guard import Guard
from bgpool.lab.iam import TokenCheck, Tokens
from bgpool.lab.names import HostsFile, Names, SideNames, make_names
from bgpool.lab.server import Flavour, Server, Setup, Shut, Upgrade
from bgpool.lab.server_factories import WORKSHOPS, ServerFactory, Tls
from bgpool.lab.tls_proxy import Authority
from bgpool.lab.upgrade import LogicalServer

log = logging.getLogger("bgpool.lab")

DATABASE = "app"
ROLE = "app"
"""The applications' role."""

MONITOR_ROLE = "monitor"
"""A role that may read the metadata, for scenarios in which the monitor has its own."""

TRUTH_ROLE = "truth"
"""The truth probe's role, which has a password however applications log in."""

MONITOR_PREFIX = "bgpool-monitor"

CONNECT_TIMEOUT_S = 5
"""The connect timeout in the applications' DSN."""

SETTLE_S = 2.0
SETTLE_LOOK_S = 0.05
"""The time that a server may take to notice a client's end, and the interval of the queries during that time."""


class Pair:
    """A blue server and its replica green, each with optional readers, on loopback addresses and one port.

    Green has the same version as blue and is its physical replica. For a major upgrade of PostgreSQL, green has the
    next version and is a logical replica, to which replication carries no DDL: see `define`.

    A context manager; `open` and `close` do the same by hand. After the end of the lab, however it ends, no process,
    directory or shared memory is left. Not safe to use from several threads while it opens or closes.

    Attributes:
        blue: The production server. After a switchover this is still the *same server*, old blue; see `renew`.
        green: The staging server, which a switchover promotes.
        tls: True if the servers use the lab's certificates, which name them.
        blue_readers, green_readers: The replicas of blue and of green.
        names: Every endpoint name.
        hosts: The hosts file that replaces DNS.
        dns: The DNS server that serves the names of the hosts file, if the pair has one.
        iam: The checker of tokens, if the pair has one.
        app_password: The password of the role ``app``; the roles ``monitor`` and ``truth`` have another.
    """

    blue: Server
    green: Server
    blue_readers: list[Server]
    green_readers: list[Server]
    names: Names
    hosts: HostsFile
    dns: DnsServer | None
    iam: TokenCheck | None
    app_password: str
    lab_password: str

    def __init__(
        self,
        flavour: Flavour = "rds",
        *,
        engine: Engine | Literal["postgresql", "mysql"] = Engine.POSTGRESQL,
        readers: int | tuple[int, int] = 0,
        custom: bool = False,
        tls: bool | Tls = False,
        iam: bool = False,
        dns: bool = False,
        settings: Mapping[str, str] | None = None,
        shut: Shut = "locked",
        upgrade: Upgrade = "minor",
        programs: str | Path | None = None,
        base_dir: Path | None = None,
    ) -> None:
        """Describe a pair; nothing starts before `open`.

        Args:
            flavour: ``"rds"``, a DB instance, or ``"aurora"``, a cluster; each with its metadata.
            engine: The engine of the servers; for MySQL either MariaDB or MySQL, whichever is found.
            readers: The number of readers of each side, or of blue and of green.
            custom: True for a pair with a custom endpoint (Aurora).
            tls: ``"verified"`` or True: servers have certificates for their names, and DSNs verify them. ``"offered"``:
                servers offer TLS (through the lab if their build has none), and DSNs leave its use to the drivers'
                defaults. ``"disabled"``: DSNs disable TLS. False: the defaults of server and driver.
            iam: True if the role ``app`` uses tokens instead of a password; implies ``tls="verified"``.
            dns: True for a DNS server instead of a hosts file.
            settings: Settings of both servers, by name, which override those of the lab (PostgreSQL only).
            shut: The way in which a switchover shuts servers; see `bgpool.lab.server.Shut`. `open` raises LabError
                where the servers cannot be shut that way.
            upgrade: ``"major"``: green has a newer major version than blue, and is its logical replica (PostgreSQL,
                without readers).
            programs: The directory with the servers' programs (or with ``bin`` or ``sbin`` in it), or ``"path"`` for
                installed ones. None for the value of ``$BGPOOL_LAB_POSTGRESQL`` or ``$BGPOOL_LAB_MYSQL``, or else for
                the wheel's PostgreSQL and an installed MySQL. For a major upgrade two directories, separated by ``:``.
            base_dir: The directory in which the temporary directory is made; the servers' account must be able to pass
                through it.
        """
        if flavour not in ("rds", "aurora"):
            raise ValueError(f"flavour must be 'rds' or 'aurora', not {flavour!r}")
        self.flavour: Flavour = flavour
        self.engine = Engine(engine)
        if settings and self.engine is not Engine.POSTGRESQL:
            raise ValueError("settings are for PostgreSQL")
        if shut not in get_args(Shut):
            raise ValueError(f"shut must be one of {', '.join(map(repr, get_args(Shut)))}, not {shut!r}")
        if shut != "locked" and self.engine is Engine.POSTGRESQL:
            raise ValueError(f"shut must be 'locked' for PostgreSQL, not {shut!r}")
        if upgrade not in get_args(Upgrade):
            raise ValueError(f"upgrade must be one of {', '.join(map(repr, get_args(Upgrade)))}, not {upgrade!r}")
        if upgrade == "major" and self.engine is not Engine.POSTGRESQL:
            raise ValueError("upgrade must be 'minor' for MySQL, whose green is a logical replica anyway, not 'major'")
        self.upgrade: Final[Upgrade] = upgrade
        self._shut: Shut = shut
        self._settings = dict(settings or {})
        self._readers = (readers, readers) if isinstance(readers, int) else readers
        if upgrade == "major" and any(self._readers):
            raise ValueError(f"readers must be 0 with upgrade='major', not {readers!r}")
        self._custom = custom
        if tls not in (False, True, *get_args(Tls)):
            raise ValueError(f"tls must be one of {', '.join(map(repr, get_args(Tls)))}, not {tls!r}")
        self._tls: Tls | Literal[False] = "verified" if tls is True or iam else tls
        self.tls = self._tls == "verified"
        self._with_iam = iam
        self._with_dns = dns
        self._programs = programs
        self._base_dir = base_dir
        self._factory: Final = WORKSHOPS[self.engine, upgrade]
        self._guard: Guard | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Pair:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Start the servers and their replication; takes about a second, and another one with readers.

        A user's first major upgrade takes five seconds: its template is kept in the cache folder.

        Raises:
            LabError: The servers' programs were not found or did not start, or no free address was found; nothing is
                left behind.
        """
        if self._guard is not None:
            raise LabError("this pair is open already")
        self._guard = guard = Guard(self._base_dir)
        atexit.register(self.close)
        try:
            self.names = make_names(aurora=self.flavour == "aurora", replicas=self._readers, custom=self._custom)
            self.app_password, self.lab_password = secrets.token_urlsafe(12), secrets.token_urlsafe(12)
            factory = self._make_factory(guard)
            self.tls = self._tls == "verified" or (self._tls == "offered" and not factory.offers_tls)
            self._describe_servers(factory, guard)
            self.hosts = HostsFile(guard.base / "hosts")
            self._publish_names()
            self._start_services(factory, guard)
            self.blue.create()
            self._start_replicas()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the servers and remove every file; idempotent, silent, without effect in a forked child."""
        guard = self._guard
        if guard is None or not guard.is_owner:
            return
        atexit.unregister(self.close)
        servers = self.servers if hasattr(self, "blue") else []
        try:
            for server in servers:  # all at once, then wait for all
                server.begin_stop("immediate")
            for server in servers:
                server.stop("immediate")
        except LabError as error:
            log.warning("%s", error)
        finally:
            self._stack.close()
            guard.close()
            self._guard = None

    def define(self, *statements: str) -> None:
        """Execute DDL in the applications' database, on blue and on each server to which replication does not carry it.

        On a logical replica, rows that are written to a new table while this runs may be missing.

        Raises:
            psycopg.Error, pymysql.Error: The error of the server.
        """
        for server in (self.blue, *self.logical):
            for statement in statements:
                server.execute(statement, database=DATABASE)
        for server in self.logical:
            server.take_in_tables()

    def catch_up_definitions(self) -> None:
        """Make green again, if it is a logical replica, so that it has blue's later definitions; takes four seconds.

        Raises:
            LabError: Green could not be made.
        """
        for server in self.logical:
            server.stop()
            server.replicate(self.blue, follow=self.blue)

    # -- for an application -------------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """The directory of the pair. It is removed with all contents at the pair's end, even if the process is killed.

        Raises:
            LabError: The pair is not open.
        """
        if self._guard is None:
            raise LabError("this pair is not open")
        return self._guard.base

    @property
    def servers(self) -> list[Server]:
        """All servers, blue's side first."""
        return [*self.side("blue"), *self.side("green")]

    @property
    def logical(self) -> list[LogicalServer]:
        """Green, if it is a logical replica (major upgrade of PostgreSQL), with a catalogue of its own; else empty."""
        return [self.green] if isinstance(self.green, LogicalServer) else []

    def side(self, colour: str) -> list[Server]:
        """The servers of ``blue`` or ``green``, the writer first."""
        if colour == "blue":
            return [self.blue, *self.blue_readers]
        return [self.green, *self.green_readers]

    @property
    def port(self) -> int:
        """The one TCP port on which clients reach all servers."""
        return self._port

    @property
    def dsn(self) -> str:
        """The application's DSN, with blue's name as host, which `resolver` resolves and the system does not.

        It has no password where the application uses tokens: see `tokens`.
        """
        return self.dsn_of(self.names.blue.primary)

    def dsn_of(self, name: str) -> str:
        """The application's DSN with the host *name*."""
        return self._dsn(name)

    @property
    def resolver(self) -> str:
        """The resolver to give bgpool: ``hosts:FILE``, or the DNS server."""
        if self.dns is not None:
            return f"dns://{self.dns.address}:{self.dns.port}"
        return f"hosts:{self.hosts.path}"

    @property
    def tokens(self) -> Tokens:
        """The password callable for applications.

        Raises:
            LabError: The pair has no tokens.
        """
        if self.iam is None:
            raise LabError("applications log in to this pair by password; iam=True adds tokens")
        return self.iam.tokens

    def direct_dsn(self, server: Server) -> str:
        """The application's DSN with the address of *server*, for clients that do not know the hosts file."""
        return self._dsn(server.address)

    def monitoring_connections(self) -> int:
        """Return the number of connections to all servers from applications whose names start with `MONITOR_PREFIX`.

        A server that does not answer counts as having none.
        """
        count = 0
        for server in self.servers:
            try:
                count += server.sessions_named(MONITOR_PREFIX)
            except DRIVER_ERRORS as error:
                log.debug("%s does not answer: %s", server.name, error)
        return count

    def lasting_monitoring_connections(self, usual: int = 2) -> int:
        """Return monitoring_connections() without the connections that end within SETTLE_S.

        A connection that its client has closed exists until the server notices it. On a busy machine, it may exist at
        the same time as its successor. Returns at once if there are no more than *usual*.
        """
        deadline_s = time.monotonic() + SETTLE_S
        while (count := self.monitoring_connections()) > usual and time.monotonic() < deadline_s:
            time.sleep(SETTLE_LOOK_S)
        return count

    def application_connections(self, colour: str) -> int:
        """Return the number of connections, except monitoring, of the role ``app`` to ``blue`` or ``green`` servers.

        Raises:
            psycopg.Error, pymysql.Error: One of them does not answer.
        """
        return sum(server.sessions_of(ROLE, but=MONITOR_PREFIX) for server in self.side(colour))

    def renew(self) -> None:
        """Prepare the next switchover: the promoted servers become blue, and those of old blue become a new green.

        Old blue's data is replaced by a clone, green gets new names, and the hosts file and the metadata are reset to
        their state before a deployment was created. After a major upgrade, the next switchover is to the same version,
        and green is a logical replica again; that takes four seconds.

        Raises:
            LabError: The clone failed, or green was never promoted.
        """
        if self.green.is_replica():
            raise LabError("green was not promoted: there is no switchover to follow")
        self.blue, self.green = self.green, self.blue
        self.blue_readers, self.green_readers = self.green_readers, self.blue_readers
        for server in self.side("green"):
            server.stop("immediate")
        for server in self.side("blue"):
            metadata.withdraw(server)
        former = self.names
        self.names = former.with_new_green(len(self.green_readers))
        self.hosts.update(dict.fromkeys((*former.green.all, *former.old.all)))
        self._publish_names()
        self._introduce()
        self._start_replicas(blue_readers=False)

    # -- names, certificates and tokens --------------------------------------------------------------------

    def addresses(self, names: SideNames, colour: str) -> dict[str, str]:
        """Return the addresses of *names* when the servers of *colour* have them."""
        writer, *readers = [server.address for server in self.side(colour)]
        return names.addresses(writer, tuple(readers[: len(names.replicas)]))

    def certify(self, colour: str, names: SideNames) -> None:
        """Make the servers of *colour* show new clients certificates for *names*, and for no others."""
        for server, mine in self._names_by_server(colour, names):
            if self.authority is not None:
                self._frontends[server.key].context = self.authority.context(mine)

    def accept_tokens(self, colour: str, names: SideNames) -> None:
        """Make the servers of *colour* accept tokens for *names* from now on, and for no others."""
        for server, mine in self._names_by_server(colour, names):
            if self.iam is not None:
                self.iam.rename(server.key, mine)

    # -- inside --------------------------------------------------------------------------------------------

    def _names_by_server(self, colour: str, names: SideNames) -> list[tuple[Server, list[str]]]:
        addresses = self.addresses(names, colour)
        return [
            (server, [name for name, address in addresses.items() if address == server.address])
            for server in self.side(colour)
        ]

    def _dsn(self, host: str) -> str:
        password = "" if self._with_iam else f":{self.app_password}"
        tls = self._factory.tls_options[self._tls] if self._tls else ""
        if self.authority is not None:
            tls = tls.format(ca=self.authority.ca_file)
        timeout = f"connect_timeout={CONNECT_TIMEOUT_S}"
        return f"{self.engine.value}://{ROLE}{password}@{host}:{self.port}/{DATABASE}?{timeout}{tls}"

    def _make_factory(self, guard: Guard) -> ServerFactory:
        setup = Setup(
            self.flavour,
            DATABASE,
            passwords={ROLE: self.app_password, MONITOR_ROLE: self.lab_password, TRUTH_ROLE: self.lab_password},
            writers=(ROLE, TRUTH_ROLE),
            watchers=(ROLE, MONITOR_ROLE),
            lab_password=self.lab_password,
            settings=self._settings,
            shut=self._shut,
        )
        return self._factory(setup, guard, self._programs)

    def _describe_servers(self, factory: ServerFactory, guard: Guard) -> None:
        blue_readers, green_readers = self._readers
        addresses, self._port = free_addresses(2 + blue_readers + green_readers)

        def describe(name: str, number: int) -> Server:
            # Directories have names that remain correct when the roles are swapped.
            return factory.server(
                name,
                guard.base / f"server-{number}",
                address=addresses[number],
                port=self._port + 1 if factory.has_frontends(tls=self.tls) else self._port,
                socket_dir=guard.sockets / f"s-{number}",
            )

        self.blue, self.green = describe("blue", 0), describe("green", 1)
        self.blue_readers = [describe(f"blue-{n + 2}", 2 + n) for n in range(blue_readers)]
        self.green_readers = [describe(f"green-{n + 2}", 2 + blue_readers + n) for n in range(green_readers)]

    def _start_services(self, factory: ServerFactory, guard: Guard) -> None:
        self.authority = Authority(guard.base) if self.tls else None
        self.dns = DnsServer(self.hosts, self.blue.address) if self._with_dns else None
        if self.dns is not None:
            self._stack.callback(self.dns.close)
        self.iam = TokenCheck(self.port) if self._with_iam else None
        self._frontends = factory.open_frontends(
            self.servers, self.port, self._stack, authority=self.authority, tokens=self.iam
        )
        self._introduce()

    def _introduce(self) -> None:
        """Issue certificates and tokens for the names before the switchover."""
        for colour, names in (("blue", self.names.blue), ("green", self.names.green)):
            self.certify(colour, names)
            self.accept_tokens(colour, names)

    def _start_replicas(self, *, blue_readers: bool = True) -> None:
        """Make every replica of blue at the same time; green's readers follow green."""
        jobs = [partial(self._replicate, self.green, self.blue)]
        jobs += [partial(self._replicate, server, self.green) for server in self.green_readers]
        if blue_readers:
            jobs += [partial(self._replicate, server, self.blue) for server in self.blue_readers]
        _side_by_side(jobs)

    def _replicate(self, server: Server, upstream: Server) -> None:
        server.replicate(self.blue, follow=upstream)

    def _publish_names(self) -> None:
        self.hosts.update(self.addresses(self.names.blue, "blue") | self.addresses(self.names.green, "green"))

    def __repr__(self) -> str:
        if self._guard is None:
            return f"<Pair {self.engine.value} {self.flavour} closed>"
        return f"<Pair {self.engine.value} {self.flavour} {self.servers!r} in {os.fspath(self._guard.base)}>"


def _side_by_side(jobs: Sequence[Callable[[], None]]) -> None:
    """Run *jobs* in threads; once all have ended, raise the error of the first one that failed."""
    with ThreadPoolExecutor(max_workers=max(1, len(jobs))) as executor:
        futures = [executor.submit(job) for job in jobs]
    for future in futures:
        future.result()
