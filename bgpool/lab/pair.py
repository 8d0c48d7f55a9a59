"""Blue and green servers, the names they are known by, and everything's end."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType

import psycopg
from psycopg import sql

from bgpool.lab import metadata
from bgpool.lab.addresses import free_addresses
from bgpool.lab.binaries import Programs, find_programs, make_usable
from bgpool.lab.dns import DnsServer
from bgpool.lab.errors import LabError
from bgpool.lab.front import Authority, Front
from bgpool.lab.guard import Guard
from bgpool.lab.iam import TokenCheck, Tokens
from bgpool.lab.metadata import Flavour
from bgpool.lab.names import HostsFile, Names, SideNames, make_names
from bgpool.lab.postgres import PostgresServer

log = logging.getLogger("bgpool.lab")

DATABASE = "app"
ROLE = "app"
"""The applications' role."""

MONITOR_ROLE = "monitor"
"""A role that sees the metadata, for scenarios in which the monitor has its own."""

TRUTH_ROLE = "truth"
"""The oracle's role, which has a password however applications are let in."""

MONITOR_PREFIX = "bgpool-monitor"

CONNECT_TIMEOUT_S = 5
"""The connect timeout in the applications' DSN."""


class Pair:
    """Blue and its streaming replica green, each with readers if wanted, on loopback addresses and one port.

    A context manager; `open` and `close` do the same by hand. After the lab's end, however it comes about,
    no process, directory or shared memory is left. Not safe to use from several threads while it opens or
    closes.

    Attributes:
        blue: The production server. After a switchover this is still the *same server*, old blue; see
            `renew`.
        green: The staging server, which a switchover promotes.
        blue_readers, green_readers: Their streaming replicas.
        names: Every endpoint name.
        hosts: The hosts file that stands for DNS.
        dns: The DNS server that tells it, if the pair has one.
        iam: The checker of tokens, if the pair has one.
        app_password: The password of the role ``app``; the roles ``monitor`` and ``truth`` have another.
    """

    blue: PostgresServer
    green: PostgresServer
    blue_readers: list[PostgresServer]
    green_readers: list[PostgresServer]
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
        readers: int | tuple[int, int] = 0,
        custom: bool = False,
        tls: bool = False,
        iam: bool = False,
        dns: bool = False,
        postgres: str | Path | None = None,
        base_dir: Path | None = None,
    ) -> None:
        """Describe a pair; nothing starts before `open`.

        Args:
            flavour: ``"rds"``, a DB instance with the rds_tools functions, or ``"aurora"``, a cluster.
            readers: How many readers each side has, or blue and green.
            custom: With a custom endpoint (Aurora).
            tls: With certificates for the servers' names, and DSNs that verify them.
            iam: With tokens instead of a password for the role ``app``; implies *tls*.
            dns: With a DNS server instead of a hosts file.
            postgres: As in `bgpool.lab.binaries.find_programs`.
            base_dir: Where to make the temporary directory; the servers' account must be able to pass
                through.
        """
        if flavour not in ("rds", "aurora"):
            raise ValueError(f"flavour must be 'rds' or 'aurora', not {flavour!r}")
        self.flavour: Flavour = flavour
        self._readers = (readers, readers) if isinstance(readers, int) else readers
        self._custom = custom
        self.tls = tls or iam
        self._with_iam = iam
        self._with_dns = dns
        self._postgres = postgres
        self._base_dir = base_dir
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
        """Start the servers, replicating; takes about a second, and another one with readers.

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
            self.names = make_names(aurora=self.flavour == "aurora", replicas=self._readers, custom=self._custom)
            self.app_password, self.lab_password = secrets.token_urlsafe(12), secrets.token_urlsafe(12)
            self._describe_servers(programs, guard)
            self.hosts = HostsFile(guard.base / "hosts")
            self._publish_names()
            self._start_services(guard)
            self._start_blue()
            self._start_replicas()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the servers and remove every file; idempotent, silent, without effect in a forked child."""
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

    # -- what an application is given ----------------------------------------------------------------------

    @property
    def servers(self) -> list[PostgresServer]:
        """Every server, blue's side first."""
        return [*self.side("blue"), *self.side("green")]

    def side(self, colour: str) -> list[PostgresServer]:
        """The servers of ``blue`` or ``green``, the writer first."""
        if colour == "blue":
            return [self.blue, *self.blue_readers]
        return [self.green, *self.green_readers]

    @property
    def port(self) -> int:
        """The one TCP port that clients find all servers at."""
        return self._port

    @property
    def dsn(self) -> str:
        """The application's DSN, with blue's name as host, which `resolver` resolves and the system does not.

        Without a password where tokens are wanted: see `tokens`.
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
            raise LabError("this pair lets applications in by password")
        return self.iam.tokens

    def direct_dsn(self, server: PostgresServer) -> str:
        """The application's DSN for *server* by its address, for clients that do not know the hosts file."""
        return self._dsn(server.address)

    def monitoring_connections(self) -> int:
        """Sessions, on all servers together, whose application_name starts with `MONITOR_PREFIX`.

        A server that does not answer counts as having none.
        """
        query = "SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, %s)"
        count = 0
        for server in self.servers:
            try:
                count += int(server.execute(query, (MONITOR_PREFIX,))[0][0])
            except psycopg.OperationalError as error:
                log.debug("%s does not answer: %s", server.name, error)
        return count

    def renew(self) -> None:
        """Make ready for the next switchover: the promoted servers are blue, and old blue's become a new green.

        Old blue's data is replaced by a clone, green gets fresh names, and the hosts file and the metadata
        are as before a deployment was created.

        Raises:
            LabError: The clone failed, or green was never promoted.
        """
        if self.green.is_in_recovery():
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
        """Where *names* lead to when the servers of *colour* have them."""
        writer, *readers = [server.address for server in self.side(colour)]
        return names.addresses(writer, tuple(readers[: len(names.replicas)]))

    def certify(self, colour: str, names: SideNames) -> None:
        """Have the servers of *colour* show new clients certificates for *names*, and for no others."""
        for server, mine in self._names_by_server(colour, names):
            if self.authority is not None:
                self._fronts[server.key].context = self.authority.context(mine)

    def accept_tokens(self, colour: str, names: SideNames) -> None:
        """Have the servers of *colour* accept tokens for *names* from now on, and for no others."""
        for server, mine in self._names_by_server(colour, names):
            if self.iam is not None:
                self.iam.rename(server.key, mine)

    # -- inside --------------------------------------------------------------------------------------------

    def _names_by_server(self, colour: str, names: SideNames) -> list[tuple[PostgresServer, list[str]]]:
        addresses = self.addresses(names, colour)
        return [
            (server, [name for name, address in addresses.items() if address == server.address])
            for server in self.side(colour)
        ]

    def _dsn(self, host: str) -> str:
        password = "" if self._with_iam else f":{self.app_password}"
        tls = f"&sslmode=verify-full&sslrootcert={self.authority.ca_file}" if self.authority is not None else ""
        timeout = f"connect_timeout={CONNECT_TIMEOUT_S}"
        return f"postgresql://{ROLE}{password}@{host}:{self.port}/{DATABASE}?{timeout}{tls}"

    def _describe_servers(self, programs: Programs, guard: Guard) -> None:
        blue_readers, green_readers = self._readers
        addresses, self._port = free_addresses(2 + blue_readers + green_readers)

        def describe(name: str, number: int) -> PostgresServer:
            # Directories have names that stay true when roles swap.
            return PostgresServer(
                name,
                guard.base / f"server-{number}",
                address=addresses[number],
                port=self._port + 1 if self.tls else self._port,
                socket_dir=guard.sockets / f"s-{number}",
                programs=programs,
            )

        self.blue, self.green = describe("blue", 0), describe("green", 1)
        self.blue_readers = [describe(f"blue-{n + 2}", 2 + n) for n in range(blue_readers)]
        self.green_readers = [describe(f"green-{n + 2}", 2 + blue_readers + n) for n in range(green_readers)]

    def _start_services(self, guard: Guard) -> None:
        self.authority = Authority(guard.base) if self.tls else None
        self._fronts: dict[str, Front] = {}
        if self.authority is not None:
            for server in self.servers:
                context = self.authority.context([server.name])
                self._fronts[server.key] = front = Front(server, self.port, context)
                self._stack.callback(front.close)
        self.dns = self.iam = None
        if self._with_dns:
            self.dns = DnsServer(self.hosts, self.blue.address)
            self._stack.callback(self.dns.close)
        if self._with_iam:
            self.iam = TokenCheck(self.blue.address, self.port)
            self.iam.start()
            self._stack.callback(self.iam.close)
            for server in self.servers:
                server.clients = self.iam.hba(ROLE, server.key) + server.clients
        self._introduce()

    def _introduce(self) -> None:
        """Certificates and tokens for the names of before the switchover."""
        for colour, names in (("blue", self.names.blue), ("green", self.names.green)):
            self.certify(colour, names)
            self.accept_tokens(colour, names)

    def _start_blue(self) -> None:
        self.blue.init()
        self.blue.start()
        for role, password in (
            (ROLE, self.app_password),
            (MONITOR_ROLE, self.lab_password),
            (TRUTH_ROLE, self.lab_password),
        ):
            with self.blue.superuser() as connection:
                name, secret = sql.Identifier(role), sql.Literal(password)
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, secret))
        with self.blue.superuser() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        with self.blue.superuser(DATABASE) as connection:
            connection.execute(sql.SQL("ALTER SCHEMA public OWNER TO {}").format(sql.Identifier(ROLE)))
        metadata.install(self.blue, self.flavour, DATABASE)
        if self.flavour == "rds":
            for role in (ROLE, MONITOR_ROLE):
                metadata.grant(self.blue, role, DATABASE)

    def _start_replicas(self, *, blue_readers: bool = True) -> None:
        """Clone blue for every replica, side by side; green's readers follow green."""
        jobs = [partial(self._replicate, self.green, self.blue)]
        jobs += [partial(self._replicate, server, self.green) for server in self.green_readers]
        if blue_readers:
            jobs += [partial(self._replicate, server, self.blue) for server in self.blue_readers]
        _side_by_side(jobs)

    def _replicate(self, server: PostgresServer, upstream: PostgresServer) -> None:
        server.clone_from(self.blue, follow=upstream)
        server.start()

    def _publish_names(self) -> None:
        self.hosts.update(self.addresses(self.names.blue, "blue") | self.addresses(self.names.green, "green"))

    def __repr__(self) -> str:
        if self._guard is None:
            return f"<Pair {self.flavour} closed>"
        return f"<Pair {self.flavour} {self.servers!r} in {os.fspath(self._guard.base)}>"


def _side_by_side(jobs: Sequence[Callable[[], None]]) -> None:
    """Run *jobs* in threads; raise what the first that failed raised, once all have ended."""
    with ThreadPoolExecutor(max_workers=max(1, len(jobs))) as executor:
        futures = [executor.submit(job) for job in jobs]
    for future in futures:
        future.result()
