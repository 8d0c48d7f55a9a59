"""One real PostgreSQL server, a child process of the lab."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

import psycopg

from bgpool.lab import watchdog
from bgpool.lab.binaries import Programs
from bgpool.lab.conf import HBA_ADMIT, HBA_LAB, HBA_REFUSE, POSTGRESQL_CONF, SUPERUSER
from bgpool.lab.errors import LabError
from bgpool.lab.files import write_atomically
from bgpool.lab.waiting import wait_until

if TYPE_CHECKING:
    from typing_extensions import LiteralString

log = logging.getLogger("bgpool.lab")

StopMode = Literal["smart", "fast", "immediate"]
STOP_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

INIT_TIMEOUT_S = 60.0
CLONE_TIMEOUT_S = 60.0
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 5.0
CONFIGURE_TIMEOUT_S = 10.0
STATEMENT_TIMEOUT_S = 30
"""Longest statement of the lab's own sessions, so that none of them waits without end."""

LOG_TAIL_CHARACTERS = 2000

CUT = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND client_addr IS NOT NULL
"""


class PostgresServer:
    """A PostgreSQL server with its own address, data directory, socket directory and log file.

    Attributes:
        key: What tells it from the others, whatever it is called.
        clients: The lines of pg_hba.conf that let clients in.

    The server runs as a child process in a session of its own. Sessions of the lab come through the unix
    socket as the superuser and pass whatever clients are refused; clients come over TCP with a password.
    """

    def __init__(
        self,
        name: str,
        home: Path,
        *,
        address: str,
        port: int,
        socket_dir: Path,
        programs: Programs,
    ) -> None:
        """Describe a server; `init` or `clone_from`, then `start`, bring it to life.

        Args:
            name: For messages and as the cluster_name.
            home: Its directory, made if missing; holds ``data`` and ``log``.
            address: Loopback address that it listens on.
            port: TCP port; also part of the socket's name.
            socket_dir: Directory of its socket, made if missing; at most 85 bytes long.
            programs: What to run and as whom.
        """
        self.name = name
        self.key = home.name
        self.clients = HBA_ADMIT
        self._refuses_all = False
        self._refused_roles: set[str] = set()
        self.address = address
        self.port = port
        self.socket_dir = socket_dir
        self.data_dir = home / "data"
        self.log_file = home / "log"
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None
        for directory, mode in ((home, 0o711), (self.data_dir, 0o700), (socket_dir, 0o700)):
            self._make_directory(directory, mode)

    # -- life ----------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """The process number while the server's process is there, else None."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def init(self) -> None:
        """Make a new, empty database cluster in the data directory.

        Raises:
            LabError: initdb failed.
        """
        self._programs.run(
            "initdb", "-D", str(self.data_dir), "-N", "-U", SUPERUSER, "-E", "UTF8", "--locale=C",
            "-A", "trust", "--no-instructions", timeout_s=INIT_TIMEOUT_S,
        )  # fmt: skip
        conf = self.data_dir / "postgresql.conf"
        self.write_file(conf.name, conf.read_text(encoding="utf-8") + POSTGRESQL_CONF)
        self._write_hba()

    def clone_from(self, primary: PostgresServer, *, follow: PostgresServer | None = None) -> None:
        """Fill the data directory with a copy of *primary*, which must run, as the streaming replica of *follow*.

        What was in the data directory goes. Replication runs through the socket of *follow*, by default the
        primary, so that refused clients and black-holed addresses do not stop it.

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
        if follow is not None:
            auto = self.data_dir / "postgresql.auto.conf"
            upstream = f"primary_conninfo = 'host={follow.socket_dir} port={follow.port} user={SUPERUSER}'\n"
            self.write_file(auto.name, auto.read_text(encoding="utf-8") + upstream)
        self._refuses_all, self._refused_roles = False, set()
        self._write_hba()

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start the server and wait until it accepts sessions; one that runs already is fine.

        Raises:
            LabError: It ended, or was not ready within *timeout_s* seconds; the message ends with its log.
        """
        if self.pid is not None:
            return
        with self.log_file.open("ab") as output:
            self._process = self._programs.popen(
                "postgres", "-D", str(self.data_dir), "-c", f"listen_addresses={self.address}",
                "-c", f"port={self.port}", "-c", f"unix_socket_directories={self.socket_dir}",
                "-c", f"cluster_name={self.name}", output=output,
            )  # fmt: skip
        try:
            wait_until(self._ready_or_dead, timeout_s=timeout_s, what=f"{self.name} accepts sessions")
        except LabError as error:
            raise LabError(f"{error}; its log ends: {self.log_tail()}") from None
        if self.pid is None:
            raise LabError(f"{self.name} ended while it started; its log ends: {self.log_tail()}")

    def stop(self, mode: StopMode = "fast", timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Shut the server down; one that does not run is fine. After *timeout_s* seconds it is killed.

        Args:
            mode: ``smart`` waits for clients, ``fast`` cuts them and checkpoints, ``immediate`` just ends.
            timeout_s: Longest wait, >= 0.
        """
        self.begin_stop(mode)
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.warning("%s did not stop within %g s and is killed", self.name, timeout_s)
            self.kill()

    def begin_stop(self, mode: StopMode) -> None:
        """Send the signal that `stop` sends, without waiting; a frozen server is thawed for it."""
        pid = self.pid
        if pid is not None:
            watchdog.send(pid, STOP_SIGNALS[mode])
            self.thaw()

    def kill(self) -> None:
        """End the server and its backends by SIGKILL, as a crash of its host would; one that is gone is fine.

        The backends go too, at once: left alone, one could finish its statement after its server's death.
        The next `start` goes through crash recovery.

        Raises:
            LabError: The process was still there after `KILL_TIMEOUT_S`.
        """
        pid = self.pid
        if pid is None or self._process is None:
            return
        segments = watchdog.shared_memory_of(self.data_dir)
        self._signal_family(signal.SIGKILL)
        try:
            self._process.wait(KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{self.name} (process {pid}) survived SIGKILL for {KILL_TIMEOUT_S:g} s") from error
        watchdog.remove_shared_memory(segments)

    def freeze(self) -> None:
        """Stop the server and its backends by SIGSTOP: the kernel still takes connections and nobody answers.

        This is the black hole of a host that went away without a word. `thaw` ends it.
        """
        self._signal_family(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on; one that is not frozen is fine."""
        self._signal_family(signal.SIGCONT)

    def log_tail(self) -> str:
        """The end of the server's log."""
        try:
            return self.log_file.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:].strip()
        except OSError as error:
            return f"(no log: {error})"

    # -- the lab's own sessions ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def superuser(self, database: str = "postgres") -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """A superuser's session through the unix socket, in autocommit; it may write on a read-only primary."""
        options = f"-c default_transaction_read_only=off -c statement_timeout={STATEMENT_TIMEOUT_S}s"
        connection = psycopg.connect(
            host=str(self.socket_dir), port=self.port, user=SUPERUSER, dbname=database, autocommit=True,
            connect_timeout=5, application_name="bgpool-lab", options=options,
        )  # fmt: skip
        try:
            yield connection
        finally:
            connection.close()

    def execute(
        self, sql: LiteralString, params: Sequence[object] = (), *, database: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """Run one statement as superuser and return its rows; none for a statement that has no result.

        Raises:
            psycopg.Error: As the server said.
        """
        with self.superuser(database) as connection:
            cursor = connection.execute(sql, params or None)
            return cursor.fetchall() if cursor.description else []

    def write_file(self, name: str, text: str) -> None:
        """Replace the file *name* in the data directory as a whole; only the server's account reads it."""
        write_atomically(self.data_dir / name, text, mode=0o600, prepare=self._programs.give)

    # -- what a switchover does to a server ----------------------------------------------------------------

    def set_read_only(self, read_only: bool) -> None:
        """Set default_transaction_read_only and wait until new sessions have it.

        An existing session takes it with its next transaction; a transaction that is running may still
        write, and a client may ask for ``READ WRITE`` in so many words, as on RDS.

        Raises:
            LabError: Not in force within `CONFIGURE_TIMEOUT_S`.
        """
        if read_only:
            self.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        else:
            self.execute("ALTER SYSTEM SET default_transaction_read_only = off")
        self.reload()

    def refuse_clients(self) -> None:
        """Reject every new TCP client: SQLSTATE 28000, "pg_hba.conf rejects connection".

        Sessions that exist are left alone: `cut_clients`.

        Raises:
            LabError: Not in force within `CONFIGURE_TIMEOUT_S`.
        """
        self._refuses_all = True
        self._write_hba()
        self.reload()

    def admit_clients(self) -> None:
        """Let TCP clients in again; the opposite of `refuse_clients`, with the same error."""
        self._refuses_all = False
        self._write_hba()
        self.reload()

    def lock_out(self, role: str) -> None:
        """Reject new sessions of *role* for good, and terminate those that it has."""
        self._refused_roles.add(role)
        self._write_hba()
        self.reload()
        self.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (role,))

    def cut_clients(self, timeout_s: float = CONFIGURE_TIMEOUT_S) -> int:
        """Terminate every TCP client's backend (57P01) and wait until none is left; return how many it took.

        Walsenders and the lab's own sessions stay. Clients that come meanwhile are cut as well, so refuse
        them first.

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
        """Have the server read its configuration again, and wait until new sessions have it.

        Raises:
            LabError: The server does not run, or its load time did not move within *timeout_s* seconds.
        """
        pid = self.pid
        if pid is None:
            raise LabError(f"{self.name} does not run")
        before = self._load_time()
        watchdog.send(pid, signal.SIGHUP)
        # The postmaster reads postgresql.conf, signals its backends, reads pg_hba.conf, and only then forks
        # the next session, which inherits the load time: a session with a new time proves that all three
        # are done.
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
        if not self.is_in_recovery():
            return
        self.execute("SELECT pg_promote(wait => false)")
        wait_until(
            lambda: not self.is_in_recovery(),
            timeout_s=timeout_s,
            what=f"{self.name} is promoted",
            abort=abort,
        )

    # -- replication ---------------------------------------------------------------------------------------

    def is_in_recovery(self) -> bool:
        """Whether the server is a replica (or still recovers from a crash)."""
        return bool(self.execute("SELECT pg_is_in_recovery()")[0][0])

    def current_lsn(self) -> str:
        """A place in the primary's log, such as ``0/3000148``, behind every commit made before the call."""
        with self.superuser() as connection:
            # The commit of this message flushes all before it, also what was committed asynchronously. The
            # insert position would not do: on an idle server it can lie behind a page header that no
            # replica replays.
            connection.execute("SELECT pg_logical_emit_message(true, 'bgpool-lab', 'current_lsn')")
            row = connection.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
        assert row is not None
        return str(row[0])

    def replayed_lsn(self) -> str | None:
        """How far a replica has replayed; None on a server that never was one."""
        lsn = self.execute("SELECT pg_last_wal_replay_lsn()")[0][0]
        return None if lsn is None else str(lsn)

    def wait_replayed(self, lsn: str, timeout_s: float, *, abort: Event | None = None) -> None:
        """Wait until this replica has replayed everything up to *lsn*.

        Raises:
            LabError: It had not within *timeout_s* seconds.
            LabAbortError: *abort* was set while waiting.
        """
        with self.superuser() as connection:

            def replayed() -> bool:
                query = "SELECT coalesce(pg_last_wal_replay_lsn() >= %s::pg_lsn, false)"
                row = connection.execute(query, (lsn,)).fetchone()
                return row is not None and bool(row[0])

            wait_until(replayed, timeout_s=timeout_s, what=f"{self.name} replays {lsn}", abort=abort, poll_s=0.005)

    # -- inside --------------------------------------------------------------------------------------------

    def _write_hba(self) -> None:
        """The file as it should be now; whoever is listed first has the word."""
        refused = ["all"] if self._refuses_all else sorted(self._refused_roles)
        lines = "".join(HBA_REFUSE.format(role=role) for role in refused)
        self.write_file("pg_hba.conf", HBA_LAB + lines + self.clients)

    def _load_time(self) -> object:
        return self.execute("SELECT pg_conf_load_time()")[0][0]

    def _ready_or_dead(self) -> bool:
        if self.pid is None:
            return True
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _signal_family(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is None:
            return
        watchdog.send(pid, number)  # the postmaster first: it can have no more children then
        for child in watchdog.children_of(pid):
            watchdog.send(child, number)

    def _make_directory(self, directory: Path, mode: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(mode)
        self._programs.give(directory)

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.pid is not None else "stopped"
        return f"<PostgresServer {self.name} {self.address}:{self.port} {state}>"
