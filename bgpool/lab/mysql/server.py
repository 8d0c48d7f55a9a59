"""One real server of MariaDB or MySQL, a child process of the lab.

The differences between blue and green, such as roles and their locks, are not written to the binary log: replication
carries only the applications' data.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any, ClassVar, Final

import pymysql
from pymysql.cursors import DictCursor

from bgpool.lab.errors import LabError
from bgpool.lab.files import write_atomically
from bgpool.lab.mysql.conf import REPLICATION_ROLE, STATUS_VIEW, SUPERUSER, setup_script
from bgpool.lab.mysql.family import Family, Upstream
from bgpool.lab.mysql.sessions import CLIENTS, NAMED, OF_ROLE, OTHERS, kill, rows
from bgpool.lab.mysql.template import copy_template
from bgpool.lab.server import CONFIGURE_TIMEOUT_S, START_TIMEOUT_S, STATEMENT_TIMEOUT_S, Server, StopMode
from bgpool.lab.waiting import wait_until
from bgpool.lab.wire import MysqlWire
from bgpool.mysql import BoundedConnection

CATCH_UP_TIMEOUT_S: Final = 60.0
CONNECT_TIMEOUT_S: Final = 5

_server_ids: Final = itertools.count(1)
"""Ids that are never reused: a replica skips changes that were written under its own id, also in a former life."""


class MysqlServer(Server):
    """A server of either family. Replicas follow by GTID, over TCP, under a role of their own that is never refused."""

    stop_signals: ClassVar[Mapping[StopMode, signal.Signals]] = {"fast": signal.SIGTERM, "immediate": signal.SIGKILL}

    # LOAD_FILE reads only files that are readable by all users.
    file_mode: ClassVar[int] = 0o644

    def __init__(self, name: str, home: Path, *, family: Family, **params: Any) -> None:
        """Describe a server, like `Server`, with the programs of *family*."""
        super().__init__(name, home, programs=family.programs, **params)
        self._family: Final = family
        self._way: Final = family.ways[self._setup.shut]
        self._init_file: Final = home / "init.sql"
        self._temporary_dir: Final = home / "tmp"
        self._make_directory(self._temporary_dir, 0o700)
        self._server_id = 0
        self._read_only = False
        self._refuses_all = False
        self._refused_roles: set[str] = set()

    # -- life ----------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Start as a primary; its binary log begins here, and is kept."""
        self._begin(read_only=False)

    def replicate(self, source: Server, *, follow: Server) -> None:
        """Start again, empty, and replay everything that *follow* and, through it, *source* ever wrote."""
        if self.pid is not None:
            raise LabError(f"{self.name} runs; stop it before it becomes a replica")
        self._begin(read_only=True)
        # An attempt that is too early would be repeated only after a second.
        wait_until(follow.answers, timeout_s=START_TIMEOUT_S, what=f"{follow.name} accepts connections")
        upstream = Upstream(follow.address, follow.port, REPLICATION_ROLE, self._setup.lab_password)
        self._administer(*self._family.follow(upstream))
        self.wait_replayed(source.position(), CATCH_UP_TIMEOUT_S)

    def _begin(self, *, read_only: bool) -> None:
        """Start on a new data directory, with all of the setup."""
        shutil.rmtree(self.data_dir)
        copy_template(self._family, self.data_dir)
        self._server_id = next(_server_ids)
        self._read_only, self._refuses_all, self._refused_roles = read_only, False, set()
        script = setup_script(self._setup, self._family.replication_grants)
        write_atomically(self._init_file, script, mode=0o600, prepare=self._programs.give)
        try:
            self.start()
        finally:
            self._init_file.unlink()

    def _command(self) -> Sequence[str]:
        # read_only survives a restart, like on RDS, which keeps it in its parameters.
        options = [
            f"--socket={self._socket}", f"--bind-address={self.address}", f"--port={self.port}",
            f"--server-id={self._server_id}",
        ]  # fmt: skip
        if self._read_only:
            options.append("--read-only=1")
        if self._init_file.exists():
            options.append(f"--init-file={self._init_file}")
        return *self._family.command(self.data_dir, self._temporary_dir), *self._family.options, *options

    @property
    def _socket(self) -> Path:
        return self.socket_dir / f"mysql.{self.port}"

    def begin_stop(self, mode: StopMode) -> None:
        """Do the same as `Server`, after ending replicas' connections, for which MySQL would wait up to ten seconds."""
        if mode == "fast" and self.pid is not None:
            self.thaw()
            with contextlib.suppress(pymysql.MySQLError):  # it does not answer; then it waits
                self._kill_sessions(REPLICATION_ROLE)
        super().begin_stop(mode)

    # -- sessions ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def superuser(self, database: str = "") -> Iterator[BoundedConnection]:
        """Connect as superuser through the unix socket, in autocommit; read_only does not apply."""
        connection = BoundedConnection(
            unix_socket=str(self._socket), user=SUPERUSER, database=database or None, autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S, read_timeout=STATEMENT_TIMEOUT_S, program_name="bgpool-lab",
            ssl_disabled=True,  # PyMySQL would read all the system's authorities, 40 ms each time
        )  # fmt: skip
        try:
            yield connection
        finally:
            connection.close()

    def execute(self, sql: str, params: Sequence[object] = (), *, database: str = "") -> list[tuple[Any, ...]]:
        """Run one statement as superuser and return its rows; it is written to the binary log."""
        with self.superuser(database) as connection:
            return rows(connection, sql, params)

    def wire(self, *, user: str, password: str, application: str, timeout_s: float) -> MysqlWire:
        """Connect as a client to the applications' database, with a time limit for every step."""
        return MysqlWire(
            timeout_s=timeout_s, host=self.address, port=self.port, user=user, password=password,
            database=self._setup.database, program_name=application, ssl_disabled=True,
        )  # fmt: skip

    def sessions_named(self, prefix: str) -> int:
        """Return the number of connections with a connection attribute program_name that starts with *prefix*."""
        return int(self.execute(NAMED, (prefix, prefix))[0][0])

    def sessions_of(self, role: str, *, but: str) -> int:
        """Return the number of connections of *role*, except for those with a program_name that starts with *but*."""
        return int(self.execute(OTHERS, (role, but, but))[0][0])

    # -- steps of a switchover -----------------------------------------------------------------------------

    def set_read_only(self, read_only: bool) -> None:
        """Set read_only: a running transaction can no longer write, and cannot commit earlier writes (1290)."""
        self._read_only = read_only
        # Without read_only there is no super_read_only.
        variable = self._way.read_only if read_only else "read_only"
        with self.superuser() as connection:
            rows(connection, f"SET GLOBAL {variable} = {int(read_only)}")

    def refuse_clients(self) -> None:
        """Lock the accounts of all clients (error 4151, MySQL 3118), or use another way of `Shut`."""
        self._refuses_all = True
        self._refuse()

    def admit_clients(self) -> None:
        """Undo `refuse_clients`; accounts that were locked permanently stay locked."""
        self._refuses_all = False
        self._refuse()

    def lock_out(self, role: str) -> None:
        """Lock *role* permanently, and kill its connections."""
        self._refused_roles.add(role)
        self._lock()
        self._kill_sessions(role)

    def cut_clients(self, timeout_s: float = CONFIGURE_TIMEOUT_S) -> int:
        """Kill every TCP client's connection; a client that waits for an answer or sends a query gets 2013."""
        cut = 0
        with self.superuser() as connection:

            def none_left() -> bool:
                nonlocal cut
                found = rows(connection, CLIENTS)
                cut = max(cut, len(found))
                for (number,) in found:
                    kill(connection, number)
                return not found

            wait_until(none_left, timeout_s=timeout_s, what=f"{self.name} has no TCP clients", poll_s=0.002)
        return cut

    def promote(self, timeout_s: float = START_TIMEOUT_S, *, abort: Event | None = None) -> None:
        """Replay all received changes, stop following another server, and accept writes."""
        status = self._replica_status()
        if status is None:
            return
        self._administer(self._family.stop_receiving)
        arrived = (self._replica_status() or status)[self._family.arrived_column]
        self.wait_replayed(arrived, timeout_s, abort=abort)
        self._administer(*self._family.stop_following)
        self.set_read_only(False)

    # -- replication ---------------------------------------------------------------------------------------

    def is_replica(self) -> bool:
        """Return whether the server follows another."""
        return self._replica_status() is not None

    def position(self) -> str:
        """Return the GTIDs of the last transactions in the binary log, such as ``0-1-27``; empty before the first."""
        return str(self.execute(self._family.position)[0][0])

    def wait_replayed(self, position: str, timeout_s: float, *, abort: Event | None = None) -> None:
        """Wait until this replica has replayed everything up to *position*.

        Raises:
            LabError: It did not within *timeout_s* seconds; the message contains the error that stopped it, if any.
            LabAbortError: *abort* was set while waiting.
        """
        with self.superuser() as connection:

            def replayed() -> bool:
                # Waits in the server, for a short time only, so that an abort is noticed.
                return not position or rows(connection, self._family.wait_position, (position, 0.02)) == [(0,)]

            try:
                wait_until(replayed, timeout_s=timeout_s, what=f"{self.name} replays {position}", abort=abort, poll_s=0)
            except LabError as error:
                reason = self._family.replication_error(self._replica_status() or {})
                raise type(error)(f"{error}: {reason}" if reason else str(error)) from None

    # -- metadata ------------------------------------------------------------------------------------------

    def grant_metadata(self, role: str) -> None:
        """Let *role* read the metadata of this server only: grants are not replicated to an existing green."""
        self._administer(f"GRANT SELECT ON {STATUS_VIEW} TO '{role}'@'%'")

    def revoke_metadata(self, role: str) -> None:
        """Revoke the grants of `grant_metadata`: error 1142."""
        self._administer(f"REVOKE SELECT ON {STATUS_VIEW} FROM '{role}'@'%'")

    def drop_metadata(self) -> None:
        """Drop the table of this server: error 1146."""
        self._administer(f"DROP VIEW IF EXISTS {STATUS_VIEW}")

    # -- inside --------------------------------------------------------------------------------------------

    def _administer(self, *statements: str) -> None:
        """Run *statements* past the binary log."""
        before, after = ["SET sql_log_bin = 0"], []
        if self._read_only and self._way.binds_superusers:
            # read_only, which applies to clients, stays on during this.
            before.append(f"SET GLOBAL {self._way.read_only} = 0")
            after.append(f"SET GLOBAL {self._way.read_only} = 1")
        with self.superuser() as connection:
            for statement in (*before, *statements, *after):
                rows(connection, statement)

    def _refuse(self) -> None:
        """Refuse or accept clients according to the current state."""
        if self._way.refusing:
            with self.superuser() as connection:
                rows(connection, f"SET GLOBAL {self._way.refusing} = {int(self._refuses_all)}")
        if self._way.locks_accounts:
            self._lock()

    def _lock(self) -> None:
        """Lock and unlock accounts according to the current state; applies to all later logins."""
        refuses_all = self._refuses_all and self._way.locks_accounts
        refused = self._setup.passwords if refuses_all else self._refused_roles
        self._administer(
            *(
                f"ALTER USER '{role}'@'%' ACCOUNT {'LOCK' if role in refused else 'UNLOCK'}"
                for role in self._setup.passwords
            )
        )

    def _kill_sessions(self, role: str) -> None:
        with self.superuser() as connection:
            for (number,) in rows(connection, OF_ROLE, (role,)):
                kill(connection, number)

    def _replica_status(self) -> dict[str, Any] | None:
        with self.superuser() as connection, connection.cursor(DictCursor) as cursor:
            cursor.execute(self._family.replica_status)
            row: dict[str, Any] | None = cursor.fetchone()
        return row
