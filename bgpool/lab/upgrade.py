"""PostgreSQL servers of a major version upgrade: green is a logical replica of a newer version, made in RDS's way.

A physical clone of blue replays up to the beginning of a replication slot of blue's, is upgraded in place, and then
follows blue through a subscription. It is read-only by a setting, not because of recovery. Roles, DDL, sequences and
large objects are not replicated.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from bgpool.lab import conf, postgres
from bgpool.lab.binaries import Programs
from bgpool.lab.conf import SUPERUSER
from bgpool.lab.errors import LabError
from bgpool.lab.postgres import PostgresServer
from bgpool.lab.postgres_metadata import STATUS_FUNCTIONS
from bgpool.lab.server import START_TIMEOUT_S, Server, Setup
from bgpool.lab.templates import template
from bgpool.lab.waiting import wait_until

if TYPE_CHECKING:
    from typing_extensions import LiteralString

__all__ = ["LogicalServer", "Versions"]

PUBLICATION: Final = "bgpool_lab"
SUBSCRIPTION: Final = "bgpool_lab"
SLOT: Final = "bgpool_lab"

UPGRADE_TIMEOUT_S: Final = 120.0
CATCH_UP_TIMEOUT_S: Final = 60.0
WALSENDER_TIMEOUT_S: Final = 5.0
"""A slot cannot be dropped before the process that served it has ended."""

WITHOUT_CHECKSUMS: Final = 18
"""The first version with checksums by default; pg_upgrade refuses servers that differ in them."""

PUBLISHED: Final = "SELECT format('%I.%I', schemaname, tablename) FROM pg_publication_tables"
RECEIVED: Final = """
    SELECT format('%I.%I', nspname, relname) FROM pg_subscription_rel
    JOIN pg_class c ON c.oid = srrelid JOIN pg_namespace n ON n.oid = relnamespace
"""
"""Tables whose rows are replicated, as the primary and the replica see it."""

THERE: Final = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"

CLONE_CONF: Final = """
recovery_target_lsn = '{lsn}'
recovery_target_inclusive = off         # a record that begins there is the slot's to send
recovery_target_action = promote
"""


class Versions:
    """The starting points of a pair's two servers: two versions, and a template of blue and green together."""

    def __init__(self, older: Programs, newer: Programs, setup: Setup, workplace: Path, sockets: Path) -> None:
        """Describe the versions; nothing is made yet.

        Args:
            older, newer: The programs of the two versions.
            setup: The contents of the servers.
            workplace: A directory in which a template can be made.
            sockets: A directory for the sockets during that time.
        """
        self.older: Final = older
        self.newer: Final = newer
        self._setup: Final = replace(setup, settings={})  # a server's own are added to its copy
        self._workplace: Final = workplace
        self._sockets: Final = sockets
        self._template: Path | None = None

    def copy(self, colour: str, data_dir: Path) -> None:
        """Make *data_dir*, which must not exist, the data directory of blue or green.

        Raises:
            LabError: There is no template, and none could be made.
        """
        if self._template is None:
            self._template = template(self._stamp(), self._make, self._workplace / "template")
        _copy(self._template / colour, data_dir, self.older.give)

    def _stamp(self) -> str:
        """Return a name for everything that the template depends on."""
        digest = hashlib.sha256(self._setup.database.encode())
        for module in (__file__, conf.__file__, postgres.__file__):
            digest.update(Path(module).read_bytes())
        for programs in (self.older, self.newer):
            server = (programs.bin_dir / "postgres").stat()
            digest.update(f"{programs.product} {server.st_size} {server.st_mtime_ns}".encode())
        return f"postgresql-{self.older.version}-{self.newer.version}-{digest.hexdigest()[:16]}"

    def _make(self, directory: Path) -> None:
        blue, green = (self._describe(name, number) for number, name in enumerate(("blue", "green")))
        try:
            blue.begin()
            green.build(blue)
        finally:
            for server in (green, blue):  # in the other order, blue would wait for its replica
                server.stop()
        for server, colour in ((blue, "blue"), (green, "green")):
            _copy(server.data_dir, directory / colour)
            shutil.rmtree(server.data_dir.parent)

    def _describe(self, name: str, number: int) -> LogicalServer:
        return LogicalServer(
            f"template of {name}",
            self._workplace / f"template-{name}",
            versions=self,
            address="",  # no client connects over TCP
            port=conf.TEMPLATE_PORT,
            socket_dir=self._sockets / f"t-{number}",
            programs=self.older,
            setup=self._setup,
        )


class LogicalServer(PostgresServer):
    """Blue or green of a major upgrade. The future green is upgraded to the newer version, whatever blue has."""

    def __init__(self, name: str, home: Path, *, versions: Versions, **params: Any) -> None:
        """Describe a server, like `PostgresServer`; *versions* has the versions."""
        super().__init__(name, home, **params)
        self._versions: Final = versions
        self._primary: LogicalServer | None = None
        self._is_of_template = False

    # -- life ----------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Start as the primary of the older version, with all of the setup."""
        self._copy("blue", self._versions.older)
        self.start()
        self._furnish()
        self._is_of_template = True

    def replicate(self, source: Server, *, follow: Server) -> None:
        """Start again as a logical replica of *source*, of the newer version.

        The template's green is used for a *source* that has just been created; otherwise this takes four seconds.
        """
        if self.pid is not None:
            raise LabError(f"{self.name} runs; stop it before it becomes a replica")
        if not isinstance(source, LogicalServer) or follow is not source:
            raise LabError(f"{self.name} can follow only the primary: a major upgrade has no readers")
        if source._is_of_template:
            source._is_of_template = False
            self._copy("green", self._versions.newer)
            self.start()
            self._furnish()
        else:
            self.build(source)
            self._complete()
        self._follow(source)

    def begin(self) -> None:
        """Start as a primary of the older version with only the empty database.

        Raises:
            LabError: It could not be made or started.
        """
        self._programs = self._versions.older
        self.init()
        self.start()
        self._of_database("CREATE DATABASE {}")

    def build(self, source: LogicalServer) -> None:
        """Start as an upgraded clone of *source*, which runs; the subscription exists but is not active yet.

        Raises:
            LabError: One of the programs failed, or took too long.
        """
        self._programs = self._versions.newer
        clone = PostgresServer(
            f"clone of {source.name}", self.data_dir.parent / "clone", address="", port=self.port,
            socket_dir=self.socket_dir, programs=source._programs, setup=self._setup,
        )  # fmt: skip
        lsn = _clone(clone, source)
        try:
            self._upgrade(clone)
        finally:
            shutil.rmtree(clone.data_dir.parent)
        self.start()
        with self.superuser(self._setup.database) as connection:
            # Without a slot of its own: the clone has everything that was committed before this one.
            options = sql.SQL("create_slot = false, slot_name = {}, enabled = false, copy_data = false").format(
                sql.Identifier(SLOT)
            )
            statement = "CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION {} WITH ({}, synchronous_commit = on)"
            connection.execute(
                sql.SQL(statement).format(
                    sql.Identifier(SUBSCRIPTION), self._upstream(source), sql.Identifier(PUBLICATION), options
                )
            )
            connection.execute("SELECT pg_replication_origin_advance('pg_' || oid, %s) FROM pg_subscription", (lsn,))

    def _follow(self, source: LogicalServer) -> None:
        """Activate the existing subscription, and wait until it has caught up."""
        self._primary = source
        with self.superuser(self._setup.database) as connection:
            name = sql.Identifier(SUBSCRIPTION)
            change = sql.SQL("ALTER SUBSCRIPTION {} CONNECTION {}").format(name, self._upstream(source))
            connection.execute(change)
            connection.execute(sql.SQL("ALTER SUBSCRIPTION {} ENABLE").format(name))
        self.set_read_only(True)
        self.wait_replayed(source.position(), CATCH_UP_TIMEOUT_S)

    def _upgrade(self, clone: PostgresServer) -> None:
        shutil.rmtree(self.data_dir)
        self._make_directory(self.data_dir, 0o700)
        checksums = ("--no-data-checksums",) if self._programs.major >= WITHOUT_CHECKSUMS else ()
        self.init(*checksums)
        work_dir = self.data_dir.parent / "upgrade"  # pg_upgrade writes scripts to its working directory
        self._make_directory(work_dir, 0o700)
        try:
            self._programs.run(
                "pg_upgrade", "--link", *(("--no-sync",) if self._programs.major >= 15 else ()), "-U", SUPERUSER,
                "-b", str(clone._programs.bin_dir), "-d", str(clone.data_dir), "-p", str(self.port),
                "-B", str(self._programs.bin_dir), "-D", str(self.data_dir), "-P", str(self.port),
                "-s", str(self.socket_dir), timeout_s=UPGRADE_TIMEOUT_S, cwd=work_dir,
            )  # fmt: skip
        finally:
            shutil.rmtree(work_dir)

    # -- steps of a switchover -----------------------------------------------------------------------------

    def promote(self, timeout_s: float = START_TIMEOUT_S, *, abort: Event | None = None) -> None:
        """End the subscription, without contacting the primary, and accept writes. `carry_over` comes first."""
        del timeout_s, abort  # the only wait is for the server's own statements
        if not self.is_replica():
            return
        with self.superuser(self._setup.database) as connection:
            for statement in (
                "ALTER SUBSCRIPTION {} DISABLE",
                "ALTER SUBSCRIPTION {} SET (slot_name = NONE)",
                "DROP SUBSCRIPTION {}",
                # It came with the clone, and would reject UPDATE and DELETE of tables without a primary key.
                "DROP PUBLICATION {}",
            ):
                name = PUBLICATION if "PUBLICATION" in statement else SUBSCRIPTION
                connection.execute(sql.SQL(statement).format(sql.Identifier(name)))
        self.set_read_only(False)

    def set_read_only_by_role(self, read_only: bool) -> None:
        """Make new sessions of the writing roles read-only, instead of the whole server, or undo it.

        Existing sessions stay as they are.
        """
        with self.superuser() as connection:
            for role in self._setup.writers:
                value = sql.SQL("on" if read_only else "DEFAULT")
                change = sql.SQL("ALTER ROLE {} SET default_transaction_read_only = {}")
                connection.execute(change.format(sql.Identifier(role), value))
        self.set_read_only(False)

    def carry_over(self) -> None:
        """Set every sequence to the primary's value."""
        primary = self._following()
        with primary.superuser(self._setup.database) as blue, self.superuser(self._setup.database) as green:
            sequences = blue.execute(
                "SELECT format('%I.%I', schemaname, sequencename), last_value FROM pg_sequences "
                "WHERE last_value IS NOT NULL"
            )
            for name, value in sequences.fetchall():
                green.execute("SELECT setval(%s::regclass, %s)", (name, value))

    def forget_primary(self) -> None:
        """Drop the slot on the former primary, if that runs."""
        primary = self._primary
        if primary is not None and primary.pid is not None:
            primary.drop_slot()

    def drop_slot(self) -> None:
        """Drop the slot of a replica, if there is one.

        Raises:
            LabError: It was still in use after `WALSENDER_TIMEOUT_S`.
        """
        dropping = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s"
        with self.superuser(self._setup.database) as connection:

            def dropped() -> bool:
                connection.execute(f"{dropping} AND NOT active", (SLOT,))
                query = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %s)"
                return connection.execute(query, (SLOT,)).fetchone() == (False,)

            wait_until(dropped, timeout_s=WALSENDER_TIMEOUT_S, what=f"{self.name} drops the slot {SLOT}")

    # -- replication ---------------------------------------------------------------------------------------

    def is_replica(self) -> bool:
        """Return whether the server has a subscription."""
        return bool(self.execute("SELECT EXISTS (SELECT FROM pg_subscription)")[0][0])

    def wait_replayed(self, position: str, timeout_s: float, *, abort: Event | None = None) -> None:
        """Wait until everything up to *position* is committed here.

        The primary is queried, to which this server reports its progress: this server's own progress stands still when
        there is nothing to replay.

        Raises:
            LabError: The same as for `Server`; or the primary has a table that this server does not receive, as it was
                made after the clone.
            LabAbortError: *abort* was set while waiting.
        """
        primary = self._following()
        self._require_tables(RECEIVED)
        with primary.superuser() as connection:

            def replayed() -> bool:
                here = "SELECT FROM pg_stat_replication WHERE application_name = %s AND replay_lsn >= %s"
                query = f"SELECT EXISTS ({here})"
                return connection.execute(query, (SUBSCRIPTION, position)).fetchone() == (True,)

            wait_until(replayed, timeout_s=timeout_s, what=f"{self.name} replays {position}", abort=abort, poll_s=0.005)

    def take_in_tables(self) -> None:
        """Receive later tables, too, that were made on both servers; rows that they have by now are not received.

        Raises:
            LabError: The primary has one that this server does not have.
        """
        if self.is_replica():
            self._require_tables(THERE)
            with self.superuser(self._setup.database) as connection:
                refresh = "ALTER SUBSCRIPTION {} REFRESH PUBLICATION WITH (copy_data = false)"
                connection.execute(sql.SQL(refresh).format(sql.Identifier(SUBSCRIPTION)))

    # -- inside --------------------------------------------------------------------------------------------

    def _copy(self, colour: str, programs: Programs) -> None:
        self._programs = programs
        shutil.rmtree(self.data_dir)
        self._versions.copy(colour, self.data_dir)
        self._refuses_all, self._refused_roles = False, set()
        self._configure()

    def _require_tables(self, query: LiteralString) -> None:
        primary = self._following()
        missing = sorted(_rows(primary, PUBLISHED) - _rows(self, query))
        if missing:
            raise LabError(
                f"{', '.join(missing)}: made on {primary.name} after {self.name} was, and DDL is not replicated: "
                "define it before (Pair.define, or --sql of a rehearsal)"
            )

    def _following(self) -> LogicalServer:
        if self._primary is None:
            raise LabError(f"{self.name} is no replica")
        return self._primary

    def _upstream(self, source: Server) -> sql.Literal:
        database = self._setup.database
        return sql.Literal(f"host={source.socket_dir} port={source.port} user={SUPERUSER} dbname={database}")

    def _has_own_catalog(self) -> bool:
        return True

    def _complete(self) -> None:
        """Make metadata that pg_upgrade has omitted: it carries no objects of the schema pg_catalog."""
        with self.superuser(self._setup.database) as connection:
            name = f"{STATUS_FUNCTIONS[self._setup.flavour]}(text)"
            if connection.execute("SELECT to_regprocedure(%s) IS NULL", (name,)).fetchone() == (True,):
                self._make_metadata(connection)

    def _of_database(self, statement: str) -> None:
        with self.superuser() as connection:
            connection.execute(statement.format(self._setup.database).encode())


def _clone(clone: PostgresServer, source: LogicalServer) -> str:
    """Make *clone* a stopped copy of *source*, up to the beginning of a new slot; return that position."""
    with source.superuser(source._setup.database) as connection:
        found = connection.execute("SELECT EXISTS (SELECT FROM pg_publication)").fetchone()
        if found == (False,):
            publish = "CREATE PUBLICATION {} FOR ALL TABLES"
            connection.execute(sql.SQL(publish).format(sql.Identifier(PUBLICATION)))
        source.drop_slot()
        clone.clone_from(source, follow=source)
        # At this point: recovery cannot stop before the copy is consistent.
        query = "SELECT lsn FROM pg_create_logical_replication_slot(%s, 'pgoutput')"
        row = connection.execute(query, (SLOT,)).fetchone()
        assert row is not None
    auto = clone.data_dir / "postgresql.auto.conf"
    clone.write_file(auto.name, auto.read_text(encoding="utf-8") + CLONE_CONF.format(lsn=row[0]))
    source.position()  # a record that follows, before which recovery stops
    clone.start()
    try:
        wait_until(lambda: not clone.is_replica(), timeout_s=CATCH_UP_TIMEOUT_S, what=f"{clone.name} is at {row[0]}")
    finally:
        clone.stop()
    return str(row[0])


def _rows(server: LogicalServer, query: LiteralString) -> set[str]:
    return {str(name) for (name,) in server.execute(query, database=server._setup.database)}


def _copy(source: Path, target: Path, give: Callable[[Path], None] = lambda _: None) -> None:
    """Copy a data directory; *give* is called with every path of the copy."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("postmaster.*", "pg_upgrade_output.d"))
    for path in (target, *target.rglob("*")):
        give(path)
