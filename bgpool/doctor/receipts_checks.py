"""Checks of the receipts table with the application's login on one server: whether units can use it, and old rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from bgpool.core.engine import Engine
from bgpool.core.phase import Role
from bgpool.doctor.case import Case
from bgpool.doctor.findings import Checks, Finding, Verdict, failed, not_checked, ok, warning
from bgpool.doctor.server import QueryFailed, Server
from bgpool.dsn import Dsn
from bgpool.pools.mysql import receipts as mysql
from bgpool.pools.postgres import receipts as postgres
from bgpool.pools.receipts import REMEDY

__all__ = ["DEFAULT_TABLE", "ReceiptsTable", "ddl_of", "of_application", "receipts_checks"]

#: The table's name if none is configured.
DEFAULT_TABLE: Final = "bgpool_receipts"

#: The maximum of rows beyond the retention to count, by the index on created_at.
MANY: Final = 10_000

#: The number of rows that are too old, up to MANY, and the age of the oldest row in seconds: both by the index.
_AGES_POSTGRES: Final = """
    SELECT (SELECT count(*) FROM (
                SELECT FROM {table} WHERE created_at < now() - interval '{retention_s} s' LIMIT {many}) AS old),
           (SELECT extract(epoch FROM now() - created_at)::float8 FROM {table} ORDER BY created_at LIMIT 1),
           (SELECT reltuples::bigint FROM pg_catalog.pg_class WHERE oid = to_regclass('{table}'))
"""
_AGES_MYSQL: Final = """
    SELECT (SELECT COUNT(*) FROM (
                SELECT 1 FROM {table} WHERE created_at < NOW() - INTERVAL {retention_s} SECOND LIMIT {many}) AS old),
           (SELECT TIMESTAMPDIFF(SECOND, created_at, NOW()) FROM {table} ORDER BY created_at LIMIT 1),
           (SELECT table_rows FROM information_schema.tables
            WHERE table_schema = {schema} AND table_name = '{name}')
"""

#: True if green receives the table's rows, as a physical replica or by its subscription; without either it is
#: promoted.
_ARRIVES: Final = f"""
    SELECT pg_is_in_recovery() OR ({postgres.REACHES.strip()}) OR NOT {postgres.SUBSCRIBES}
"""

receipts_checks: Final[Checks[ReceiptsTable]] = Checks()


@dataclass
class ReceiptsTable:
    """The receipts table on one server.

    Attributes:
        server: The server, with the application's own login, read-only.
        name: The table's name, optionally with a schema.
        retention_s: The time for which rows are kept, in seconds.
    """

    server: Server
    name: str
    retention_s: int

    @property
    def engine(self) -> Engine:
        """The server's engine."""
        return self.server.case.dsn.engine

    @property
    def place(self) -> str:
        """The table and its location, for texts."""
        database = self.server.identity.database or str(self.server.case.dsn.params.get("database") or "")
        return f"{self.name} in database {database}, as {self.server.identity.account}"

    @cached_property
    def misfit(self) -> str:
        """The reason for which units cannot use it; empty if they can.

        Raises:
            EarlyVerdict: The server did not answer.
        """
        if self.engine is Engine.POSTGRESQL:
            look = postgres.LOOK.format(table=postgres.quoted(self.name))
            return postgres.misfit(self.server.query(look)[0])
        rows = self.server.query(mysql.look(self.name))
        if why := mysql.misfit(_texts(rows[0]) if rows else None):
            return why
        return self._refused("INSERT INTO {table} (id, unit) VALUES ('', '')")

    @cached_property
    def no_deletion(self) -> str:
        """The reason for which units cannot delete its old rows; empty if they can.

        Raises:
            EarlyVerdict: The server did not answer.
        """
        if self.engine is Engine.POSTGRESQL:
            return postgres.no_deletion(
                self.server.query(postgres.CAN_DELETE.format(table=postgres.quoted(self.name)))[0]
            )
        rows = self.server.query(mysql.can_delete(self.name))
        return mysql.no_deletion(rows[0]) or self._refused("DELETE FROM {table} WHERE id = ''")

    @property
    def arrives(self) -> bool:
        """True if this server, as green, receives rows that are inserted on blue."""
        if self.engine is Engine.MYSQL or self.server.role is Role.SOURCE:
            return True
        return bool(self.server.query(_ARRIVES.format(table=postgres.quoted(self.name)))[0][0])

    @property
    def stops_replication(self) -> bool:
        """True if this is a logical green without the table: its replication would stop at the first row for it."""
        if self.engine is Engine.MYSQL or self.server.role is Role.SOURCE:
            return False
        ((lacks,),) = self.server.query(postgres.LACKS.format(table=postgres.quoted(self.name)))
        return bool(lacks)

    def ages(self) -> tuple[int, float | None, int]:
        """Return the rows beyond the retention, up to MANY; the oldest row's age in seconds; an estimate of all rows.

        It uses the index on created_at, which must exist.
        """
        if self.engine is Engine.POSTGRESQL:
            query = _AGES_POSTGRES.format(table=postgres.quoted(self.name), retention_s=self.retention_s, many=MANY)
        else:
            schema, _, name = self.name.rpartition(".")
            query = _AGES_MYSQL.format(
                table=mysql.quoted(self.name),
                retention_s=self.retention_s,
                many=MANY,
                schema=f"'{schema}'" if schema else "DATABASE()",
                name=name,
            )
        old, oldest_s, rows = self.server.query(query)[0]
        return int(old), None if oldest_s is None else float(oldest_s), max(0, int(rows or 0))

    def _refused(self, statement: str) -> str:
        """Return the reason for which MySQL refuses *statement*, without executing it; empty if it does not."""
        try:
            self.server.query("EXPLAIN " + statement.format(table=mysql.quoted(self.name)))
        except QueryFailed as error:
            return f"is not granted: {error}" if error.code in ("1142", "1044", "1143") else ""
        return ""


def ddl_of(dsn: Dsn, table: str) -> str:
    """Return the statements that create *table* for the user of *dsn*, in its database, for psql or mysql."""
    if dsn.engine is Engine.POSTGRESQL:
        database, user = dsn.params.get("dbname") or dsn.user, _doubled(dsn.user, '"')
        ddl = postgres.DDL.format(table=postgres.quoted(table), user=user)
        schema = table.rpartition(".")[0]
        if schema not in ("", "public"):
            ddl += f'GRANT USAGE ON SCHEMA "{schema}" TO {user};\n'
    else:
        database, user = dsn.params.get("database") or "", _doubled(dsn.user.replace("\\", "\\\\"), "'")
        name = mysql.quoted(table)
        if database and "." not in table:
            name = f"{_doubled(database, '`')}.{name}"
        ddl = mysql.DDL.format(table=name, user=f"{user}@'%'")
    where = f"in database {_line(database)}" if database else "in the application's database"
    return f"-- {where}, before the deployment is created; then set bg_receipts_table={table}\n{ddl}"


def of_application(case: Case, server: Server) -> list[Finding]:
    """Return the findings of the application's login about the table of *case* on *server*'s side."""
    name = case.settings.bg_receipts_table
    if name is None:
        return []
    own = Server(case, server.role, server.host, server.port, as_application=True)
    own.open()
    try:
        return receipts_checks.run(ReceiptsTable(own, name, case.settings.bg_receipts_retention_s), own.role.colour)
    finally:
        own.close()


@receipts_checks.check("receipts", "Can units of work use the receipts table?")
def _usable(table: ReceiptsTable) -> Verdict:
    if why := table.misfit:
        if table.stops_replication:
            return failed(
                f"{table.place}: it {why}: the first receipt on blue stops the replication to green",
                "take bg_receipts_table out of the application until both sides have the table: create it on blue and "
                "a new deployment; or create it on green first (bgpool receipts --sql), then on blue, and on green, "
                "as the subscription's owner: ALTER SUBSCRIPTION … REFRESH PUBLICATION",
            )
        return failed(
            f"{table.place}: it {why}; units of work go on without receipts",
            f"{REMEDY}; before the deployment is created, so that green has it, too",
        )
    if not table.arrives:
        return failed(
            f"{table.place}: green's subscription does not receive it, so that blue's receipts have no effect there",
            "on green, as the subscription's owner: ALTER SUBSCRIPTION … REFRESH PUBLICATION; or create a new "
            "deployment",
        )
    return ok(table.place)


@receipts_checks.check("old receipts", "Are old receipts deleted?")
def _old(table: ReceiptsTable) -> Verdict:
    if table.misfit:
        return not_checked("the table cannot be used")
    if why := table.no_deletion:
        return warning(f"{table.name} {why}: units of work delete no old rows, and it grows", REMEDY)
    old, oldest_s, rows = table.ages()
    if oldest_s is None:
        return ok("no rows")
    text = f"about {max(rows, old)} rows, the oldest {_age(oldest_s)} old; kept for {_age(table.retention_s)}"
    if old >= MANY:
        return warning(
            f"{text}; {MANY} or more are older: their deletion does not keep up, or no unit of work ran",
            "see whether there are fewer in an hour; to delete them by hand, in parts, is fine at any time",
        )
    return ok(f"{text}; {old} are older")


def _age(seconds: float) -> str:
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"


def _texts(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in row)


def _doubled(text: str, quote: str) -> str:
    return quote + text.replace(quote, 2 * quote) + quote


def _line(text: str) -> str:
    """Return *text* in a form for a comment, which must not contain line ends."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
