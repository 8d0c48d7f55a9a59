"""One real PostgreSQL server, a child process of the lab."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg
from psycopg import sql

from bgpool.lab import watchdog
from bgpool.lab.conf import HBA_ADMIT, HBA_LAB, HBA_REFUSE, POSTGRESQL_CONF, SUPERUSER
from bgpool.lab.errors import LabError
from bgpool.lab.postgres_metadata import FUNCTIONS, STATUS_FUNCTIONS
from bgpool.lab.server import CONFIGURE_TIMEOUT_S, START_TIMEOUT_S, STATEMENT_TIMEOUT_S, Server, StopMode
from bgpool.lab.waiting import wait_until
from bgpool.lab.wire import PostgresWire

if TYPE_CHECKING:
    from typing_extensions import LiteralString

INIT_TIMEOUT_S = 60.0
CLONE_TIMEOUT_S = 60.0
MAINTENANCE_DATABASE = "postgres"

CUT = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND client_addr IS NOT NULL
"""

LOGIN_TIMEOUT_S = 20
"""The time limit for the lab's own logins: while hundreds of clients connect at the same time, one takes seconds."""


class PostgresServer(Server):
    """A PostgreSQL server.

    Attributes:
        clients: The lines of pg_hba.conf that accept clients.
    """

    stop_signals: ClassVar[Mapping[StopMode, signal.Signals]] = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}

    def __init__(self, name: str, home: Path, **params: Any) -> None:
        """Describe a server, like `Server`; *name* is the cluster_name, too."""
        super().__init__(name, home, **params)
        self.clients = HBA_ADMIT
        self._refuses_all = False
        self._refused_roles: set[str] = set()

    # -- life ----------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Start as a primary, with all of the setup."""
        self.init()
        self.start()
        with self.superuser() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self._setup.database)))
        self._furnish()

    def replicate(self, source: Server, *, follow: Server) -> None:
        """Start again as a copy of *source* that follows *follow*."""
        self.clone_from(source, follow=follow)
        self.start()

    def init(self, *options: str) -> None:
        """Make a new, empty database cluster in the data directory, with more *options* of initdb's.

        Raises:
            LabError: initdb failed.
        """
        self._programs.run(
            "initdb", "-D", str(self.data_dir), "-N", "-U", SUPERUSER, "-E", "UTF8", "--locale=C",
            "-A", "trust", "--no-instructions", *options, timeout_s=INIT_TIMEOUT_S,
        )  # fmt: skip
        self._configure(POSTGRESQL_CONF)

    def clone_from(self, primary: Server, *, follow: Server) -> None:
        """Fill the data directory with a copy of *primary*, which must run, as the streaming replica of *follow*.

        The former contents of the data directory are removed. Replication uses the socket of *follow*, so that refused
        clients and black-holed addresses do not stop it.

        Raises:
            LabError: This server runs, or pg_basebackup failed.
        """
        if self.pid is not None:
            raise LabError(f"{self.name} runs; stop it before it becomes a clone")
        shutil.rmtree(self.data_dir)
        self._make_directory(self.data_dir, 0o700)
        self._programs.run(
            "pg_basebackup", "-D", str(self.data_dir), "-h", str(primary.socket_dir), "-p", str(primary.port),
            "-U", SUPERUSER, "-R", "-X", "fetch", "-c", "fast", "--no-sync", "--no-manifest",
            timeout_s=CLONE_TIMEOUT_S,
        )  # fmt: skip
        auto = self.data_dir / "postgresql.auto.conf"
        upstream = f"primary_conninfo = 'host={follow.socket_dir} port={follow.port} user={SUPERUSER}'\n"
        self.write_file(auto.name, auto.read_text(encoding="utf-8") + upstream)
        self._refuses_all, self._refused_roles = False, set()
        self._write_hba()

    # -- the lab's own sessions ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def superuser(self, database: str = "") -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """Connect as superuser through the unix socket, in autocommit; may write on a read-only primary."""
        # No commit of the lab waits for a standby, whatever synchronous_standby_names is.
        options = (
            "-c default_transaction_read_only=off -c synchronous_commit=local "
            f"-c statement_timeout={STATEMENT_TIMEOUT_S}s"
        )
        connection = psycopg.connect(
            host=str(self.socket_dir), port=self.port, user=SUPERUSER, dbname=database or MAINTENANCE_DATABASE,
            autocommit=True, connect_timeout=LOGIN_TIMEOUT_S, application_name="bgpool-lab", options=options,
        )  # fmt: skip
        try:
            yield connection
        finally:
            connection.close()

    def execute(
        self, sql: LiteralString, params: Sequence[object] = (), *, database: str = ""
    ) -> list[tuple[Any, ...]]:
        """Run one statement as superuser and return its rows; none for a statement that has no result.

        Raises:
            psycopg.Error: The error of the server.
        """
        with self.superuser(database) as connection:
            cursor = connection.execute(sql, params or None)
            return cursor.fetchall() if cursor.description else []

    def wire(self, *, user: str, password: str, application: str, timeout_s: float) -> PostgresWire:
        """Connect as a client to the applications' database, with a time limit for every step."""
        return PostgresWire(
            timeout_s=timeout_s, host=self.address, port=self.port, user=user, password=password,
            dbname=self._setup.database, sslmode="disable", gssencmode="disable", application_name=application,
        )  # fmt: skip

    def sessions_named(self, prefix: str) -> int:
        """Return the number of connections with an application_name that starts with *prefix*."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, %s)"
        return int(self.execute(query, (prefix,))[0][0])

    def sessions_of(self, role: str, *, but: str) -> int:
        """Return the number of connections of *role*, except with an application_name that starts with *but*."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND NOT starts_with(application_name, %s)"
        return int(self.execute(query, (role, but))[0][0])

    # -- steps of a switchover -----------------------------------------------------------------------------

    def set_read_only(self, read_only: bool) -> None:
        """Set default_transaction_read_only and wait until new connections have it.

        An existing connection has it from its next transaction on. A running transaction may still write, and a client
        may explicitly request ``READ WRITE``, the same as on RDS.

        Raises:
            LabError: Not in force within `CONFIGURE_TIMEOUT_S`.
        """
        if read_only:
            self.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        else:
            self.execute("ALTER SYSTEM SET default_transaction_read_only = off")
        self.reload()

    def set_standby(self, name: str) -> None:
        """Make COMMITs wait for the standby of that name before they are answered; with an empty name, for none.

        Raises:
            LabError: Not in force within `CONFIGURE_TIMEOUT_S`.
        """
        with self.superuser() as connection:
            change = sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(sql.Literal(name))
            connection.execute(change)
        self.reload()

    def refuse_clients(self) -> None:
        """Reject every new TCP client: SQLSTATE 28000, "pg_hba.conf rejects connection".

        Existing connections stay open: see `cut_clients`.

        Raises:
            LabError: Not in force within `CONFIGURE_TIMEOUT_S`.
        """
        self._refuses_all = True
        self._write_hba()
        self.reload()

    def admit_clients(self) -> None:
        """Accept TCP clients again; the opposite of `refuse_clients`, with the same error."""
        self._refuses_all = False
        self._write_hba()
        self.reload()

    def lock_out(self, role: str) -> None:
        """Reject new connections of *role* permanently, and terminate its existing ones."""
        self._refused_roles.add(role)
        self._write_hba()
        self.reload()
        self.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (role,))

    def cut_clients(self, timeout_s: float = CONFIGURE_TIMEOUT_S) -> int:
        """Terminate every TCP client's backend (57P01), wait until none is left, and return the number of them.

        Walsenders and the lab's own connections stay. Clients that connect while this runs are terminated as well, so
        refuse them first.

        Raises:
            LabError: Some were left after *timeout_s* seconds.
        """
        cut = 0
        with self.superuser() as connection:

            def none_left() -> bool:
                nonlocal cut
                row = connection.execute(CUT).fetchone()
                found = int(row[0]) if row else 0
                cut = max(cut, found)
                return found == 0

            wait_until(none_left, timeout_s=timeout_s, what=f"{self.name} has no TCP clients")
        return cut

    def reload(self, timeout_s: float = CONFIGURE_TIMEOUT_S) -> None:
        """Make the server read its configuration again, and wait until new connections have it.

        Raises:
            LabError: The server does not run, or its load time did not move within *timeout_s* seconds.
        """
        pid = self.pid
        if pid is None:
            raise LabError(f"{self.name} does not run")
        before = self._load_time()
        watchdog.send(pid, signal.SIGHUP)
        # The postmaster reads postgresql.conf, signals its backends, and reads pg_hba.conf. Only then does it fork the
        # next session, which inherits the load time. A session with a new time proves that all three steps are done.
        wait_until(
            lambda: self._load_time() != before,
            timeout_s=timeout_s,
            what=f"{self.name} reloads",
            poll_s=0.002,
        )

    def promote(self, timeout_s: float = START_TIMEOUT_S, *, abort: Event | None = None) -> None:
        """Make the replica a primary and wait until it is one; a primary stays one.

        Raises:
            LabError: Still in recovery after *timeout_s* seconds.
            LabAbortError: *abort* was set while waiting.
        """
        if not self.is_replica():
            return
        self.execute("SELECT pg_promote(wait => false)")
        wait_until(
            lambda: not self.is_replica(),
            timeout_s=timeout_s,
            what=f"{self.name} is promoted",
            abort=abort,
        )

    # -- replication ---------------------------------------------------------------------------------------

    def is_replica(self) -> bool:
        """Return whether the server is a replica (or still recovers from a crash)."""
        return bool(self.execute("SELECT pg_is_in_recovery()")[0][0])

    def position(self) -> str:
        """Return a position in the primary's log, such as ``0/3000148``, after every commit made before the call."""
        with self.superuser() as connection:
            # The commit of this message flushes everything before it, including asynchronous commits. The insert
            # position would not suffice: on an idle server it can be after a page header that no replica replays.
            connection.execute("SELECT pg_logical_emit_message(true, 'bgpool-lab', 'position')")
            row = connection.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
        assert row is not None
        return str(row[0])

    def replayed_lsn(self) -> str | None:
        """Return the position up to which a replica has replayed; None on a server that never was one."""
        lsn = self.execute("SELECT pg_last_wal_replay_lsn()")[0][0]
        return None if lsn is None else str(lsn)

    def wait_replayed(self, position: str, timeout_s: float, *, abort: Event | None = None) -> None:
        """Wait until this replica has replayed everything up to *position*.

        Raises:
            LabError: It did not within *timeout_s* seconds.
            LabAbortError: *abort* was set while waiting.
        """
        with self.superuser() as connection:

            def replayed() -> bool:
                query = "SELECT coalesce(pg_last_wal_replay_lsn() >= %s::pg_lsn, false)"
                row = connection.execute(query, (position,)).fetchone()
                return row is not None and bool(row[0])

            wait_until(replayed, timeout_s=timeout_s, what=f"{self.name} replays {position}", abort=abort, poll_s=0.005)

    # -- metadata ------------------------------------------------------------------------------------------

    def grant_metadata(self, role: str) -> None:
        """Let *role* read the RDS metadata; those of Aurora are readable by all roles."""
        if self._setup.flavour == "rds" and self._has_own_catalog():
            self._of_role("GRANT USAGE ON SCHEMA rds_tools TO {}", role)
            self._of_role("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA rds_tools TO {}", role)

    def revoke_metadata(self, role: str) -> None:
        """Revoke the schema."""
        if self._setup.flavour == "rds" and self._has_own_catalog():
            self._of_role("REVOKE USAGE ON SCHEMA rds_tools FROM {}", role)

    def drop_metadata(self) -> None:
        """Drop the function that returns the status: on a primary, and by replication on its physical replicas."""
        if self._has_own_catalog():
            name = sql.SQL(STATUS_FUNCTIONS[self._setup.flavour])
            with self.superuser(self._setup.database) as connection:
                connection.execute(sql.SQL("DROP FUNCTION {}(text)").format(name))

    # -- inside --------------------------------------------------------------------------------------------

    def _command(self) -> Sequence[str]:
        return (
            "postgres", "-D", str(self.data_dir), "-c", f"listen_addresses={self.address}",
            "-c", f"port={self.port}", "-c", f"unix_socket_directories={self.socket_dir}",
            "-c", f"cluster_name={self.name}",
        )  # fmt: skip

    def _has_own_catalog(self) -> bool:
        """Return whether the server has roles, grants and functions of its own, instead of a copy of its primary's."""
        return not self.is_replica()

    def _furnish(self) -> None:
        """Create the roles, rights and metadata of the setup in the existing database."""
        setup = self._setup
        with self.superuser(setup.database) as connection:
            for role, password in setup.passwords.items():
                name, secret = sql.Identifier(role), sql.Literal(password)
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, secret))
            connection.execute(sql.SQL("ALTER SCHEMA public OWNER TO {}").format(sql.Identifier(setup.owner)))
            self._make_metadata(connection)
        for role in setup.watchers:
            self.grant_metadata(role)

    def _make_metadata(self, connection: psycopg.Connection[Any]) -> None:
        for statement in FUNCTIONS[self._setup.flavour]:
            connection.execute(statement)

    def _configure(self, text: str = "") -> None:
        """Add *text* and the setup's settings to the configuration, and write the rules for clients."""
        conf = self.data_dir / "postgresql.conf"
        settings = "".join(f"{name} = '{value}'\n" for name, value in self._setup.settings.items())
        self.write_file(conf.name, conf.read_text(encoding="utf-8") + text + settings)
        self._write_hba()

    def _of_role(self, statement: LiteralString, role: str) -> None:
        with self.superuser(self._setup.database) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(role)))

    def _write_hba(self) -> None:
        """Write the file for the current state; the first matching line applies."""
        refused = ["all"] if self._refuses_all else sorted(self._refused_roles)
        lines = "".join(HBA_REFUSE.format(role=role) for role in refused)
        self.write_file("pg_hba.conf", HBA_LAB + lines + self.clients)

    def _load_time(self) -> object:
        return self.execute("SELECT pg_conf_load_time()")[0][0]
