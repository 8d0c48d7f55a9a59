"""What every real server of the lab can do, whatever its engine, and the life of its process."""

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
"""How a switchover shuts a server. Sessions that are there are always cut, and writes always stopped; in between:

- ``locked``: new clients are refused, as their accounts are locked (PostgreSQL: by pg_hba.conf).
- ``open``: new clients are let in at once, to a server that is read-only (MariaDB and MySQL).
- ``super-read-only``: the same, where superusers cannot write either (MySQL).
- ``offline``: new clients are refused by ``offline_mode``, error 3032 (MySQL).
"""

Upgrade = Literal["minor", "major"]
"""What green is upgraded to. On PostgreSQL it is a physical replica for ``minor``, as without any upgrade, and a
logical one for ``major``; on MySQL it is always a logical one."""

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 5.0
CONFIGURE_TIMEOUT_S = 10.0
STATEMENT_TIMEOUT_S = 30
"""Longest statement of the lab's own sessions, so that none of them waits without end."""

LOG_TAIL_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Setup:
    """What there is on a server of the lab before anybody uses it.

    Attributes:
        flavour: Whose metadata it shows.
        database: The applications' database.
        passwords: The roles of clients, each with its password.
        writers: Those of them that may write in the database; the first owns it.
        watchers: Those that may read the metadata where that takes a grant.
        lab_password: That of what the lab itself comes with over TCP.
        settings: Of PostgreSQL, by name, over those of the lab's configuration.
        shut: How a switchover shuts the server.
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
        name: For messages.
        key: What tells it from the others, whatever it is called.

    The server runs as a child process in a session of its own. Sessions of the lab come through the unix
    socket as the superuser and pass whatever clients are refused; clients come over TCP with a password.
    """

    stop_signals: ClassVar[Mapping[StopMode, signal.Signals]]

    file_mode: ClassVar[int] = 0o600
    """The permissions of what `write_file` writes; the data directory is closed to others anyway."""

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
        """Describe a server; `create` or `replicate` brings it to life.

        Args:
            name: For messages and in the server's own log.
            home: Its directory, made if missing; holds ``data`` and ``log``.
            address: Loopback address that it listens on.
            port: TCP port; also part of the socket's name.
            socket_dir: Directory of its socket, made if missing; at most 85 bytes long.
            programs: What to run and as whom.
            setup: What is to be on it.
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
        """Begin as a primary: a new data directory with all of the setup, started.

        Raises:
            LabError: It could not be made or started.
        """

    @abc.abstractmethod
    def replicate(self, source: Server, *, follow: Server) -> None:
        """Begin anew as a running replica of *follow*, with all that *source*, which runs, has.

        What was in the data directory goes.

        Raises:
            LabError: This server runs, it could not be made, or it did not come as far as *source* was.
        """

    @property
    def pid(self) -> int | None:
        """The process number while the server's process is there, else None."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start the server and wait until it accepts sessions; one that runs already is fine.

        It is as it was when it stopped: replica or primary, read-only or not, with the same clients refused.

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
        """Shut the server down; one that does not run is fine. After *timeout_s* seconds (>= 0) it is killed."""
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
            watchdog.send(pid, self.stop_signals[mode])
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

    def write_file(self, name: str, text: str) -> None:
        """Replace the file *name* in the data directory as a whole."""
        write_atomically(self.data_dir / name, text, mode=self.file_mode, prepare=self._programs.give)

    # -- sessions ------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def superuser(self, database: str = "") -> AbstractContextManager[Any]:
        """A superuser's session through the unix socket, in autocommit; it may write on a read-only primary.

        Args:
            database: Where; empty for the one that every server has.

        Returns:
            A connection of the engine's driver, closed at the end.
        """

    @abc.abstractmethod
    def execute(self, sql: Any, params: Sequence[object] = (), *, database: str = "") -> list[tuple[Any, ...]]:
        """Run one statement as superuser and return its rows; none for a statement that has no result.

        Raises:
            psycopg.Error, pymysql.Error: As the server said.
        """

    def answers(self) -> bool:
        """Whether the server runs and lets the lab in."""
        with contextlib.suppress(*DRIVER_ERRORS):
            return self.pid is not None and bool(self.execute("SELECT 1"))
        return False

    @abc.abstractmethod
    def wire(self, *, user: str, password: str, application: str, timeout_s: float) -> Wire:
        """A client's session in the applications' database, past any front, on which every step is bounded.

        Raises:
            WireError: Refused, or not connected within *timeout_s* seconds.
        """

    @abc.abstractmethod
    def sessions_named(self, prefix: str) -> int:
        """How many clients gave a name of their application that starts with *prefix*.

        Raises:
            psycopg.Error, pymysql.Error: The server does not answer.
        """

    @abc.abstractmethod
    def sessions_of(self, role: str, *, but: str) -> int:
        """How many clients are logged in as *role*, but for those whose application's name starts with *but*.

        Raises:
            psycopg.Error, pymysql.Error: The server does not answer.
        """

    # -- what a switchover does to a server ----------------------------------------------------------------

    @abc.abstractmethod
    def set_read_only(self, read_only: bool) -> None:
        """Let clients write no more, or write again.

        Raises:
            LabError: Not in force within `CONFIGURE_TIMEOUT_S`.
        """

    @abc.abstractmethod
    def refuse_clients(self) -> None:
        """Reject every new TCP client. Sessions that exist are left alone: `cut_clients`.

        Raises:
            LabError: Not in force within `CONFIGURE_TIMEOUT_S`.
        """

    @abc.abstractmethod
    def admit_clients(self) -> None:
        """Let TCP clients in again; the opposite of `refuse_clients`, with the same error."""

    @abc.abstractmethod
    def lock_out(self, role: str) -> None:
        """Reject new sessions of *role* for good, and terminate those that it has."""

    @abc.abstractmethod
    def cut_clients(self, timeout_s: float = CONFIGURE_TIMEOUT_S) -> int:
        """Terminate every TCP client's session and wait until none is left; return how many it took.

        Replication and the lab's own sessions stay. Clients that come meanwhile are cut as well, so refuse
        them first.

        Raises:
            LabError: Some were left after *timeout_s* seconds.
        """

    @abc.abstractmethod
    def promote(self, timeout_s: float = START_TIMEOUT_S, *, abort: Event | None = None) -> None:
        """Make the replica a primary that takes writes, and wait until it is one; a primary stays one.

        Raises:
            LabError: Still a replica after *timeout_s* seconds.
            LabAbortError: *abort* was set while waiting.
        """

    # -- replication ---------------------------------------------------------------------------------------

    @abc.abstractmethod
    def is_replica(self) -> bool:
        """Whether the server follows another (or still recovers from a crash)."""

    @abc.abstractmethod
    def position(self) -> str:
        """A place in the primary's log behind every commit made before the call."""

    @abc.abstractmethod
    def wait_replayed(self, position: str, timeout_s: float, *, abort: Event | None = None) -> None:
        """Wait until this replica has replayed everything up to *position*.

        Raises:
            LabError: It had not within *timeout_s* seconds.
            LabAbortError: *abort* was set while waiting.
        """

    # -- metadata ------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def grant_metadata(self, role: str) -> None:
        """Let *role* read the metadata, with the statements of AWS's documentation.

        A replica to which its primary's grants are replicated is left alone, here as below.
        """

    @abc.abstractmethod
    def revoke_metadata(self, role: str) -> None:
        """Take back what `grant_metadata` gave."""

    @abc.abstractmethod
    def drop_metadata(self) -> None:
        """Remove what the status is asked of, for good."""

    # -- inside --------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _command(self) -> Sequence[str]:
        """The program to start, and its arguments."""

    def _ready_or_dead(self) -> bool:
        return self.pid is None or self.answers()

    def _signal_family(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is None:
            return
        watchdog.send(pid, number)  # the parent first: it can have no more children then
        for child in watchdog.children_of(pid):
            watchdog.send(child, number)

    def _make_directory(self, directory: Path, mode: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(mode)
        self._programs.give(directory)

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.pid is not None else "stopped"
        return f"<{type(self).__name__} {self.name} {self.address}:{self.port} {state}>"
