"""The receipts table on PostgreSQL: its required form, and the statements of units of work.

Ids are part of the statements' text, because several statements that are sent at once take no parameters. They have
passed check_receipt_id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from bgpool.core.limits import RECEIPT_ID_CHARS

__all__ = [
    "CAN_DELETE", "CLAIM", "DDL", "DELETE", "DELETING", "LACKS", "LEAVE", "LOOK", "REACHES", "SUBSCRIBES", "WRITER",
    "misfit", "no_deletion", "quoted",
]  # fmt: skip

DDL: Final = f"""\
CREATE TABLE {{table}} (
    id varchar({RECEIPT_ID_CHARS}) COLLATE "C" PRIMARY KEY,
    unit varchar(32) COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON {{table}} (created_at);
GRANT SELECT, INSERT, DELETE ON {{table}} TO {{user}};
"""

#: Returns one row in any case, and no error if there is no table. The index is one that ON CONFLICT (id) can use. The
#: last column is the table's schema.
LOOK: Final = """
    SELECT c.relkind::text, c.relpersistence::text,
           has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT'),
           (SELECT format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = c.oid AND a.attname = 'id' AND NOT a.attisdropped),
           (SELECT format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = c.oid AND a.attname = 'unit' AND NOT a.attisdropped),
           EXISTS (
               SELECT FROM pg_catalog.pg_index i
               JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
               LEFT JOIN pg_catalog.pg_collation l ON l.oid = i.indcollation[0]
               WHERE i.indrelid = c.oid AND a.attname = 'id' AND i.indnkeyatts = 1
                     AND i.indisunique AND i.indimmediate AND i.indisvalid
                     AND i.indpred IS NULL AND i.indexprs IS NULL AND l.collisdeterministic IS NOT FALSE
           ),
           c.relhasrules OR EXISTS (
               SELECT FROM pg_catalog.pg_trigger t
               WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgtype & 7 = 7
           ),
           n.nspname::text
    FROM (SELECT to_regclass('{table}') AS oid) AS named LEFT JOIN pg_catalog.pg_class c ON c.oid = named.oid
    LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
"""
#: Returns whether a logical replica gets the table's rows: its subscription must contain the table.
REACHES: Final = """
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_subscription_rel WHERE srrelid = to_regclass('{table}') AND srsubstate = 'r'
    )
"""
#: The condition that the database is a logical replica. Its subscription need not contain any table yet.
SUBSCRIBES: Final = """\
EXISTS (
        SELECT FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid
        WHERE d.datname = current_database()
    )"""
#: Returns whether a logical replica has no such table: then the first row of it stops the replication for good.
LACKS: Final = f"""
    SELECT to_regclass('{{table}}') IS NULL AND {SUBSCRIBES}
"""
#: Returns a row if the receipt was inserted; none if the transaction has written nothing. It is one plain statement,
#: because it is planned again each time: with a WITH around it, it took twice as long.
LEAVE: Final = """
    INSERT INTO {table} (id, unit) SELECT '{id}', '{unit}' WHERE txid_current_if_assigned() IS NOT NULL
    ON CONFLICT (id) DO NOTHING RETURNING 1
"""
#: Returns how many rows were inserted: none if the id exists. Waits for a transaction that is about to commit it, but
#: no longer than the given time; then the caller's own lock_timeout is restored.
CLAIM: Final = """
    WITH own AS MATERIALIZED (
        SELECT lock_timeout, set_config('lock_timeout', '{wait_ms}', true) AS ours
        FROM (SELECT current_setting('lock_timeout') AS lock_timeout OFFSET 0) AS before
    ), written AS (
        INSERT INTO {table} (id, unit) SELECT '{id}', '{unit}' FROM own WHERE own.ours IS NOT NULL
        ON CONFLICT (id) DO NOTHING RETURNING 1
    )
    SELECT counted.rows, set_config('lock_timeout', own.lock_timeout, true)
    FROM (SELECT count(*) AS rows FROM written) AS counted, own
"""
#: Returns the attempt that wrote the row.
WRITER: Final = "SELECT unit::text FROM {table} WHERE id = '{id}'"

#: Begins the deletion of old rows, in a transaction of its own. It waits for no other session, and blocks none.
DELETING: Final = (
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '{lock_ms}ms'; "
    "SET LOCAL statement_timeout = '{statement_ms}ms'; SET LOCAL enable_seqscan = off; SELECT 1"
)
#: Returns whether old rows can be deleted, and whether no other session does it: none will until the transaction's end.
CAN_DELETE: Final = f"""
    SELECT current_setting('transaction_read_only') = 'on',
           has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'DELETE'),
           EXISTS (
               SELECT FROM pg_catalog.pg_index i
               JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
               JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid JOIN pg_catalog.pg_am m ON m.oid = x.relam
               WHERE i.indrelid = c.oid AND a.attname = 'created_at' AND m.amname = 'btree'
                     AND i.indisvalid AND i.indpred IS NULL
           ),
           pg_try_advisory_xact_lock({0x62677263}, c.oid::int4)
    FROM (SELECT to_regclass('{{table}}') AS oid) AS named LEFT JOIN pg_catalog.pg_class c ON c.oid = named.oid
"""
#: Returns how many rows were deleted: of those that are older than the retention the oldest, found by the index on
#: created_at.
DELETE: Final = """
    WITH gone AS (
        DELETE FROM {table} WHERE created_at < now() - interval '{retention_s} s' AND ctid = ANY (ARRAY(
            SELECT ctid FROM {table} WHERE created_at < now() - interval '{retention_s} s'
            ORDER BY created_at LIMIT {most}
        )) RETURNING 1
    )
    SELECT count(*) FROM gone
"""

_TEXT: Final = re.compile(r"text|character varying(?:\((\d+)\))?")


@cache
def quoted(table: str) -> str:
    """Return *table*, as the user gives it, quoted for statements."""
    return ".".join(f'"{part}"' for part in table.split("."))


def misfit(row: Sequence[Any]) -> str:
    """Return the problem with the table, by the answer to LOOK; empty if there is none."""
    kind, persistence, granted, id_type, unit_type, has_key, is_diverted, _ = row
    if kind is None:
        return "does not exist"
    if kind not in ("r", "p") or persistence != "p":
        return "is no ordinary, logged table"
    for name, found, least in (("id", id_type, RECEIPT_ID_CHARS), ("unit", unit_type, 32)):
        fits = _TEXT.fullmatch(found or "")
        if fits is None or (fits[1] is not None and int(fits[1]) < least):
            return f"has no column {name} varchar({least}), but {found or 'none'}"
    if not has_key:
        return "has no primary key or unique index on id alone"
    if is_diverted:
        return "has a rule, or a trigger before INSERT, which may leave a receipt out"
    return "" if granted else "is not granted: SELECT, INSERT and DELETE are needed"


def no_deletion(row: Sequence[Any]) -> str:
    """Return why old rows cannot be deleted, by the answer to CAN_DELETE for a table that fits; empty if they can."""
    _, granted, has_index, _ = row
    if not granted:
        return "is not granted: SELECT, INSERT and DELETE are needed"
    return "" if has_index else "has no index on created_at"
