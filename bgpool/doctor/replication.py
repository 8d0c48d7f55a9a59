"""Both servers, and the objects in their catalogues that replication does or does not transfer to green."""

from __future__ import annotations

from enum import Enum
from functools import cached_property
from typing import Final

from bgpool.core.engine import Engine
from bgpool.core.phase import PHASE_OF_STATUS, Phase, Role
from bgpool.core.topology import counting_row
from bgpool.doctor.findings import EarlyVerdict, not_checked
from bgpool.doctor.schemas import Column, SchemaObject
from bgpool.doctor.server import Server

__all__ = ["OWN", "Kind", "Replication"]

#: A condition on pg_class c and pg_namespace n: permanent objects of users, not of extensions. rdsadmin is AWS's
#: own user.
OWN: Final = """
    n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relpersistence <> 't'
    AND pg_catalog.pg_get_userbyid(c.relowner) <> 'rdsadmin'
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid
                    AND d.deptype = 'e')
"""
#: Columns as name, type, and whether they are required.
_THINGS: Final = f"""
    SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), c.relkind::text, coalesce(
               (SELECT pg_catalog.array_agg(ARRAY[a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod),
                                       (a.attnotnull AND NOT a.atthasdef AND a.attidentity = '')::text]
                                 ORDER BY a.attnum)
                FROM pg_catalog.pg_attribute a
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind <> 'S'),
               ARRAY[]::text[])
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') AND {OWN}
    UNION ALL
    SELECT pg_catalog.format('%I.%I', n.nspname, t.typname), 'e',
           pg_catalog.array_agg(ARRAY[e.enumlabel::text, '', 'false'] ORDER BY e.enumsortorder)
    FROM pg_catalog.pg_enum e JOIN pg_catalog.pg_type t ON t.oid = e.enumtypid
    JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                      WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.objid = t.oid
                      AND d.deptype = 'e')
    GROUP BY n.nspname, t.typname
    ORDER BY 1
"""


class Kind(Enum):
    """The kind of replication from blue to green."""

    LOGICAL = "logical"
    PHYSICAL = "physical"
    UNKNOWN = "unknown"


class Replication:
    """Blue's server and green's.

    Attributes:
        green: Green's server; None if blue's metadata name none.
    """

    def __init__(self, blue: Server, green: Server | None) -> None:
        self.blue: Final = blue
        self.green: Final = green

    @property
    def engine(self) -> Engine:
        """The servers' engine."""
        return self.blue.case.dsn.engine

    @property
    def place(self) -> str:
        """The examined database, for texts."""
        return f"database {self.blue.identity.database}"

    @cached_property
    def unknown(self) -> str:
        """The reason for which the kind of replication is not known; empty if it is known."""
        if self.blue.failure:
            return "blue cannot be asked, see login"
        if self.green is None:
            return "there is no green yet"
        if self.green.failure:
            return "green cannot be asked, see login"
        rows = [counting_row(self.blue.answer.rows or (), role) for role in Role]
        phases = {PHASE_OF_STATUS.get(row.status.strip().upper()) for row in rows if row is not None}
        # Afterwards green is a primary in any case.
        return "" if phases == {Phase.CREATED} else "the deployment is not AVAILABLE, see status"

    @cached_property
    def kind(self) -> Kind:
        """Green's kind. A physical replica is in recovery until it is promoted; MySQL's replicas are logical.

        Raises:
            EarlyVerdict: Green did not answer.
        """
        if self.engine is Engine.MYSQL:
            return Kind.LOGICAL
        if self.unknown or self.green is None:
            return Kind.UNKNOWN
        return Kind.PHYSICAL if self.green.answer.replica else Kind.LOGICAL

    @property
    def logical_green(self) -> Server:
        """Green's server.

        Raises:
            EarlyVerdict: It is no logical replica, or its kind is not known: there is nothing to compare.
        """
        if self.green is None or self.kind is Kind.UNKNOWN:
            raise EarlyVerdict(not_checked(f"{self.unknown}: nothing to compare with"))
        return self.green

    @cached_property
    def things(self) -> tuple[dict[str, SchemaObject], dict[str, SchemaObject]]:
        """Return the relations and enums of both sides, by qualified name, in the order of their names.

        Raises:
            EarlyVerdict: One of the servers did not answer, or there is nothing to compare.
        """
        return _things(self.blue), _things(self.logical_green)


def _things(server: Server) -> dict[str, SchemaObject]:
    return {
        name: SchemaObject(
            kind, tuple(Column(column, type_, required == "true") for column, type_, required in columns)
        )
        for name, kind, columns in server.query(_THINGS)
    }
