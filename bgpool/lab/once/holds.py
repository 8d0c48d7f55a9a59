"""Reasons for COMMITs to wait on a server, so that they are open at the time of a failure.

A COMMIT that is killed during a hold has committed (``standby``, ``delay``) or has not (``trigger``, ``lock``). If only
its client is gone, it commits in any case. Where a replica is involved (``unanswered``, ``frozen replica``), the
outcome depends on which server survives.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Final

from bgpool.core.engine import Engine
from bgpool.lab.errors import DRIVER_ERRORS, LabError
from bgpool.lab.once.draws import Held
from bgpool.lab.pair import DATABASE, ROLE, Pair
from bgpool.lab.server import Server

__all__ = ["Hold", "cut", "hold_of", "open_commits", "prepare", "wait_for_replica"]

CATCH_UP_S: Final = 10.0

_LOCK: Final = 4711
DELAY_US: Final = 900_000
"""The time for which a group of COMMITs waits for more, at most a second."""


class Hold(ABC):
    """A hold: from `begin` to `end` every COMMIT of the application on the pair's blue waits.

    Attributes:
        outlives_cut: True if COMMITs may still be open when blue no longer accepts writes. With other holds they must
            be cut before, because blue waits for them.
    """

    outlives_cut: ClassVar[bool] = False

    def __init__(self, pair: Pair) -> None:
        self._pair: Final = pair
        self._stack: Final = contextlib.ExitStack()

    @abstractmethod
    def begin(self) -> None:
        """Hold COMMITs from now on."""

    def end(self) -> None:
        """Let COMMITs continue; has no effect when called again, or on a server that is gone."""
        with contextlib.suppress(*DRIVER_ERRORS, LabError):
            self._stack.close()


class _Nothing(Hold):
    def begin(self) -> None:
        """Hold nothing."""


class _Standby(Hold):
    """A wait for a synchronous standby that does not exist: killed COMMITs have committed."""

    outlives_cut = True

    def begin(self) -> None:
        blue: Any = self._pair.blue
        before = blue.execute("SHOW synchronous_standby_names")[0][0]

        def release() -> None:
            blue.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{before}'")
            blue.reload()

        self._stack.callback(release)
        blue.execute("ALTER SYSTEM SET synchronous_standby_names = 'absent'")
        blue.reload()


class _Session(Hold):
    """A wait for a lock that a connection of the lab's holds: killed COMMITs are rolled back."""

    @property
    @abstractmethod
    def statements(self) -> tuple[str, ...]:
        """The statements that take the lock."""

    def begin(self) -> None:
        connection: Any = self._stack.enter_context(self._pair.blue.superuser(DATABASE))
        with connection.cursor() as cursor:
            for statement in self.statements:
                cursor.execute(statement)


class _Trigger(_Session):
    """A deferred trigger, which takes a lock."""

    statements = (f"SELECT pg_advisory_lock({_LOCK})",)


class _Lock(_Session):
    """The lock of backups: on MariaDB it holds only COMMITs, on MySQL it holds INSERTs, too."""

    @property
    def statements(self) -> tuple[str, ...]:
        if _is_mariadb(self._pair.blue):
            return "BACKUP STAGE START", "BACKUP STAGE BLOCK_COMMIT"
        return ("FLUSH TABLES WITH READ LOCK",)


class _Delay(Hold):
    """A wait for other COMMITs, with which it is written together: killed COMMITs commit nevertheless."""

    def begin(self) -> None:
        settings = (
            {"binlog_commit_wait_count": 1000, "binlog_commit_wait_usec": DELAY_US}
            if _is_mariadb(self._pair.blue)
            else {"binlog_group_commit_sync_delay": DELAY_US}
        )
        for name, value in settings.items():
            self._stack.callback(self._pair.blue.execute, f"SET GLOBAL {name} = 0")
            self._pair.blue.execute(f"SET GLOBAL {name} = {value}")


class _Unanswered(Hold):
    """A wait for a replica that receives and does not answer (MariaDB)."""

    def begin(self) -> None:
        self._pair.green.execute("SET GLOBAL rpl_semi_sync_slave_enabled = 0")
        _restart_receiver(self._pair.green)


class _Frozen(Hold):
    """A wait for a replica that is stopped."""

    def begin(self) -> None:
        self._stack.callback(self._pair.green.thaw)
        self._pair.green.freeze()


_KINDS: Final[dict[Held, Callable[[Pair], Hold]]] = {
    "": _Nothing,
    "standby": _Standby,
    "trigger": _Trigger,
    "lock": _Lock,
    "delay": _Delay,
    "unanswered": _Unanswered,
    "frozen replica": _Frozen,
}

_TRIGGER: Final = (
    f"""
    CREATE FUNCTION hold_commit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_advisory_xact_lock_shared({_LOCK}); RETURN NULL; END $$
    """,
    """
    CREATE CONSTRAINT TRIGGER hold_commit AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION hold_commit()
    """,
)


def prepare(pair: Pair) -> None:
    """Create the objects that the holds of *pair* need on an existing ledger."""
    if pair.engine is Engine.POSTGRESQL:
        pair.define(*_TRIGGER)


def wait_for_replica(pair: Pair) -> None:
    """Make blue answer a COMMIT only after green has it; green has all earlier answered COMMITs, too.

    Raises:
        LabError: The servers do not support it, or green did not catch up.
    """
    if pair.engine is Engine.POSTGRESQL:
        blue: Any = pair.blue
        blue.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        blue.reload()
    elif _is_mariadb(pair.blue):
        pair.green.execute("SET GLOBAL rpl_semi_sync_slave_enabled = 1")
        _restart_receiver(pair.green)
        for setting in ("timeout = 3600000", "wait_point = 'AFTER_SYNC'", "wait_no_slave = 1", "enabled = 1"):
            pair.blue.execute(f"SET GLOBAL rpl_semi_sync_master_{setting}")
    else:
        raise LabError("a failover needs semi-synchronous replication, which the lab has of MariaDB alone")
    pair.green.wait_replayed(pair.blue.position(), CATCH_UP_S)


def hold_of(kind: Held, pair: Pair) -> Hold:
    """Return the hold of that *kind*."""
    return _KINDS[kind](pair)


def open_commits(pair: Pair) -> int:
    """Return the number of COMMITs of the application that are under way on blue."""
    query = (
        "SELECT count(*) FROM information_schema.processlist WHERE user = %s AND info LIKE 'COMMIT%%'"
        if pair.engine is Engine.MYSQL
        else "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND state = 'active' AND query ILIKE 'commit%%'"
    )
    return int(pair.blue.execute(query, (ROLE,))[0][0])


def cut(pair: Pair) -> None:
    """Terminate the application's connections on blue; clients may reconnect at once."""
    if pair.engine is Engine.POSTGRESQL:
        pair.blue.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (ROLE,))
        return
    for (number,) in pair.blue.execute("SELECT id FROM information_schema.processlist WHERE user = %s", (ROLE,)):
        with contextlib.suppress(*DRIVER_ERRORS):
            pair.blue.execute(f"KILL CONNECTION {number}")


def _restart_receiver(green: Server) -> None:
    green.execute("STOP SLAVE IO_THREAD")
    green.execute("START SLAVE IO_THREAD")


def _is_mariadb(server: Server) -> bool:
    return "MariaDB" in str(server.execute("SELECT VERSION()")[0][0])
