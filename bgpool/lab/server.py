"""The operations that every database server of the lab has, whatever its engine, and the life of its process."""

from __future__ import annotations

import abc
import contextlib
import logging
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, ClassVar, Final, Literal

from bgpool.lab import watchdog
from bgpool.lab.binaries import Programs
from bgpool.lab.errors import DRIVER_ERRORS, LabError
from bgpool.lab.files import write_atomically
from bgpool.lab.waiting import wait_until
from bgpool.lab.wire import Wire

__all__ = ["Flavour", "Server", "Setup", "Shut", "StopMode", "Upgrade"]

log = logging.getLogger("bgpool.lab")

Flavour = Literal["rds", "aurora"]
StopMode = Literal["fast", "immediate"]
"""``fast`` cuts clients and ends in order; after ``immediate`` the next start goes through crash recovery."""

Shut = Literal["locked", "open", "super-read-only", "offline"]
"""The way in which a switchover shuts a server. Writes are stopped, and existing connections cut. New clients:

- ``locked``: they are refused, as their accounts are locked (PostgreSQL: by pg_hba.conf).
- ``open``: they are accepted at once, by a server that is read-only (MariaDB and MySQL).
- ``super-read-only``: the same, but superusers cannot write either (MySQL).
- ``offline``: they are refused by ``offline_mode``, error 3032 (MySQL).
"""

Upgrade = Literal["minor", "major"]
"""The upgrade of green. On PostgreSQL, green is a physical replica for ``minor``, the same as without any upgrade, and
a logical one for ``major``; on MySQL it is always a logical one."""

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 5.0
CONFIGURE_TIMEOUT_S = 10.0
STATEMENT_TIMEOUT_S = 30
"""The time limit of statements in the lab's own sessions, so that none of them waits without end."""

LOG_TAIL_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Setup:
    """The contents of a new server of the lab.

    Attributes:
        flavour: The flavour whose metadata it shows.
        database: The applications' database.
        passwords: The roles of clients, each with its password.
        writers: The roles that may write in the database; the first owns it.
        watchers: The roles that may read the metadata where that takes a grant.
        lab_password: The password of the lab's own connections over TCP.
        settings: Settings of PostgreSQL, by name, which override those of the lab's configuration.
        shut: The way in which a switchover shuts the server.
    """

    flavour: Flavour
    database: str
    passwords: Mapping[str, str] = field(repr=False)
    writers: Sequence[str]
    watchers: Sequence[str]
    lab_password: str = field(repr=False)
    settings: Mapping[str, str] = field(default_factory=dict)
    shut: Shut = "locked"

    @property
    def owner(self) -> str:
        """The applications' role."""
        return self.writers[0]


class Server(abc.ABC):
    """A database server with its own address, data directory, socket directory and log file.

    Attributes:
        name: The name in messages.
        key: The key that identifies the server, whatever its name is.

    The server runs as a child process in a session of its own. The lab connects through the unix socket as the
    superuser and is not affected by refusals of clients. Clients connect over TCP with a password.
    """

    stop_signals: ClassVar[Mapping[StopMode, signal.Signals]]

    file_mode: ClassVar[int] = 0o600
    """The permissions of files that `write_file` writes; the data directory is closed to other users anyway."""

    def __init__(
        self,
        name: str,
        home: Path,
        *,
        address: str,
        port: int,
        socket_dir: Path,
        programs: Programs,
        setup: Setup,
    ) -> None:
        """Describe a server; `create` or `replicate` starts it.

        Args:
            name: The name in messages and in the server's own log.
            home: Its directory, made if missing; holds ``data`` and ``log``.
            address: The loopback address that it listens on.
            port: The TCP port; also part of the socket's name.
            socket_dir: The directory of its socket, made if missing; at most 85 bytes long.
            programs: The programs to run, and the account to run them as.
            setup: The contents of the server.
        """
        self.name = name
        self.key: Final = home.name
        self.address: Final = address
        self.port: Final = port
        self.socket_dir: Final = socket_dir
        self.data_dir: Final = home / "data"
        self.log_file: Final = home / "log"
        self._programs = programs
        self._setup: Final = setup
        self._process: subprocess.Popen[bytes] | None = None
        for directory, mode in ((home, 0o711), (self.data_dir, 0o700), (socket_dir, 0o700)):
            self._make_directory(directory, mode)

    # -- life ----------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def create(self) -> None:
        """Start as a primary: make a new data directory with all of the setup, and start the server.

        Raises:
            LabError: It could not be made or started.
        """

    @abc.abstractmethod
    def replicate(self, source: Server, *, follow: Server) -> None:
        """Start again as a running replica of *follow*, with all data of *source*, which must run.

        The former contents of the data directory are removed.

        Raises:
            LabError: This server runs, it could not be made, or it did not reach the position of *source*.
        """

    @property
    def pid(self) -> int | None:
        """The process id while the server's process exists, else None."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start the server and wait until it accepts connections; does nothing if it runs already.

        Its state is the same as when it stopped: replica or primary, read-only or not, with the same clients refused.

        Raises:
            LabError: It ended, or was not ready within *timeout_s* seconds; the message ends with its log.
        """
        if self.pid is not None:
            return
        with self.log_file.open("ab") as output:
            self._process = self._programs.popen(*self._command(), output=output)
        try:
            wait_until(self._ready_or_dead, timeout_s=timeout_s, what=f"{self.name} accepts sessions")
        except LabError as error:
            raise LabError(f"{error}; its log ends: {self.log_tail()}") from None
        if self.pid is None:
            raise LabError(f"{self.name} ended while it started; its log ends: {self.log_tail()}")

    def stop(self, mode: StopMode = "fast", timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Shut the server down; does nothing if it does not run. After *timeout_s* seconds (>= 0) it is killed."""
        self.begin_stop(mode)
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.warning("%s did not stop within %g s and is killed", self.name, timeout_s)
            self.kill()

    def begin_stop(self, mode: StopMode) -> None:
        """Send the signal that `stop` sends, without waiting; a frozen server is thawed first."""
        pid = self.pid
        if pid is not None:
            watchdog.send(pid, self.stop_signals[mode])
            self.thaw()

    def kill(self) -> None:
        """Kill the server and its backends by SIGKILL, like a crash of its host; does nothing if it is gone.

        The backends are killed at the same time: otherwise, one could finish its statement after its server's death.
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
        """Stop the server and its backends by SIGSTOP: the kernel still accepts connections, but no process answers.

        This simulates the black hole of a host that disappears without closing its connections. `thaw` ends it.
        """
        self._signal_family(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server continue; does nothing if it is not frozen."""
        self._signal_family(signal.SIGCONT)

    def log_tail(self) -> str:
        """Return the end of the server's log."""
        try:
            return self.log_file.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:].strip()
        except OSError as error:
            return f"(no log: {error})"

    def write_file(self, name: str, text: str) -> None:
        """Replace the whole file *name* in the data directory."""
        write_atomically(self.data_dir / name, text, mode=self.file_mode, prepare=self._programs.give)

    # -- sessions ------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def superuser(self, database: str = "") -> AbstractContextManager[Any]:
        """Connect as superuser through the unix socket, in autocommit; may write on a read-only primary.

        Args:
            database: The database; empty for the one that every server has.

        Returns:
            A connection of the engine's driver, closed at the end.
        """

    @abc.abstractmethod
    def execute(self, sql: Any, params: Sequence[object] = (), *, database: str = "") -> list[tuple[Any, ...]]:
        """Run one statement as superuser and return its rows; none for a statement that has no result.

        Raises:
            psycopg.Error, pymysql.Error: The error of the server.
        """

    def answers(self) -> bool:
        """Return whether the server runs and accepts connections of the lab."""
        with contextlib.suppress(*DRIVER_ERRORS):
            return self.pid is not None and bool(self.execute("SELECT 1"))
        return False

    @abc.abstractmethod
    def wire(self, *, user: str, password: str, application: str, timeout_s: float) -> Wire:
        """Connect as a client to the applications' database, past any front, with a time limit for every step.

        Raises:
            WireError: Refused, or not connected within *timeout_s* seconds.
        """

    @abc.abstractmethod
    def sessions_named(self, prefix: str) -> int:
        """Return the number of clients whose application name starts with *prefix*.

        Raises:
            psycopg.Error, pymysql.Error: The server does not answer.
        """

    @abc.abstractmethod
    def sessions_of(self, role: str, *, but: str) -> int:
        """Return the number of clients logged in as *role*, except for those whose application name starts with *but*.

        Raises:
            psycopg.Error, pymysql.Error: The server does not answer.
        """

    # -- steps of a switchover -----------------------------------------------------------------------------

    @abc.abstractmethod
    def set_read_only(self, read_only: bool) -> None:
        """Forbid or allow writes of clients.

        Raises:
            LabError: Not in force within `CONFIGURE_TIMEOUT_S`.
        """

    @abc.abstractmethod
    def refuse_clients(self) -> None:
        """Reject every new TCP client. Existing connections stay open: see `cut_clients`.

        Raises:
            LabError: Not in force within `CONFIGURE_TIMEOUT_S`.
        """

    @abc.abstractmethod
    def admit_clients(self) -> None:
        """Accept TCP clients again; the opposite of `refuse_clients`, with the same error."""

    @abc.abstractmethod
    def lock_out(self, role: str) -> None:
        """Reject new connections of *role* permanently, and terminate its existing ones."""

    @abc.abstractmethod
    def cut_clients(self, timeout_s: float = CONFIGURE_TIMEOUT_S) -> int:
        """Terminate every TCP client's connection and wait until none is left; return the number of terminated ones.

        Replication and the lab's own connections stay. Clients that connect while this runs are terminated as well, so
        refuse them first.

        Raises:
            LabError: Some were left after *timeout_s* seconds.
        """

    @abc.abstractmethod
    def promote(self, timeout_s: float = START_TIMEOUT_S, *, abort: Event | None = None) -> None:
        """Make the replica a primary that accepts writes, and wait until it is one; a primary stays one.

        Raises:
            LabError: Still a replica after *timeout_s* seconds.
            LabAbortError: *abort* was set while waiting.
        """

    # -- replication ---------------------------------------------------------------------------------------

    @abc.abstractmethod
    def is_replica(self) -> bool:
        """Return whether the server follows another (or still recovers from a crash)."""

    @abc.abstractmethod
    def position(self) -> str:
        """Return a position in the primary's log after every commit made before the call."""

    @abc.abstractmethod
    def wait_replayed(self, position: str, timeout_s: float, *, abort: Event | None = None) -> None:
        """Wait until this replica has replayed everything up to *position*.

        Raises:
            LabError: It did not within *timeout_s* seconds.
            LabAbortError: *abort* was set while waiting.
        """

    # -- metadata ------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def grant_metadata(self, role: str) -> None:
        """Let *role* read the metadata, with the statements of AWS's documentation.

        Does nothing on a replica that receives the grants of its primary; the same holds for the next two methods.
        """

    @abc.abstractmethod
    def revoke_metadata(self, role: str) -> None:
        """Revoke the grants of `grant_metadata`."""

    @abc.abstractmethod
    def drop_metadata(self) -> None:
        """Permanently remove the table or function from which the status is queried."""

    # -- inside --------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _command(self) -> Sequence[str]:
        """Return the program to start, and its arguments."""

    def _ready_or_dead(self) -> bool:
        return self.pid is None or self.answers()

    def _signal_family(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is None:
            return
        watchdog.send(pid, number)  # the parent first: then it can fork no further children
        for child in watchdog.children_of(pid):
            watchdog.send(child, number)

    def _make_directory(self, directory: Path, mode: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(mode)
        self._programs.give(directory)

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.pid is not None else "stopped"
        return f"<{type(self).__name__} {self.name} {self.address}:{self.port} {state}>"
