"""The receipts table on MySQL and MariaDB: its required form, and the statements of units of work.

A claim is an INSERT of the same id, and never a SELECT: if the same server may still be committing, only an INSERT
waits for that. The server continues a COMMIT whose client is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from bgpool.core.limits import RECEIPT_ID_CHARS

__all__ = [
    "CAN_DELETE", "DDL", "DELETE", "INSERT", "LOCK", "LOOK", "OLD", "TAKEN", "UNLOCK", "WAIT", "WAIT_AS_BEFORE",
    "WAIT_FOR_ROW", "WRITER", "can_delete", "lock_of", "look", "misfit", "no_deletion", "quoted",
]  # fmt: skip

DDL: Final = f"""\
CREATE TABLE {{table}} (
    id varchar({RECEIPT_ID_CHARS}) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    unit varchar(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    KEY created_at (created_at)
) ENGINE=InnoDB;
GRANT SELECT, INSERT, DELETE ON {{table}} TO {{user}};
"""

#: Returns no row if the table does not exist, or no right on it is granted. The last column is its database.
LOOK: Final = """
    SELECT t.engine, i.character_maximum_length, i.collation_name, i.data_type, u.character_maximum_length, (
        SELECT count(*) FROM information_schema.statistics AS s
        WHERE s.table_schema = t.table_schema AND s.table_name = t.table_name
            AND s.column_name = 'id' AND s.seq_in_index = 1 AND s.non_unique = 0 AND s.sub_part IS NULL
            AND NOT EXISTS (
                SELECT 1 FROM information_schema.statistics AS o
                WHERE o.table_schema = s.table_schema AND o.table_name = s.table_name
                    AND o.index_name = s.index_name AND o.seq_in_index > 1
            )
    ), t.table_schema
    FROM information_schema.tables AS t
    LEFT JOIN information_schema.columns AS i
        ON i.table_schema = t.table_schema AND i.table_name = t.table_name AND i.column_name = 'id'
    LEFT JOIN information_schema.columns AS u
        ON u.table_schema = t.table_schema AND u.table_name = t.table_name AND u.column_name = 'unit'
    WHERE t.table_schema = {schema} AND t.table_name = '{name}'
"""
#: Sets the session's time limit for a row lock, in seconds; and restores the old one after that.
WAIT_FOR_ROW: Final = (
    "SET @bgpool_wait = @@SESSION.innodb_lock_wait_timeout, SESSION innodb_lock_wait_timeout = {wait_s}"
)
WAIT_AS_BEFORE: Final = "SET SESSION innodb_lock_wait_timeout = @bgpool_wait"
INSERT: Final = "INSERT INTO {table} (id, unit) VALUES ('{id}', '{unit}')"
#: Returns the attempt that wrote the row, as it is committed, independent of the transaction's own snapshot.
WRITER: Final = "SELECT unit FROM {table} WHERE id = '{id}' LOCK IN SHARE MODE"

#: Returns the facts that are needed before old rows are deleted: whether the server takes no writes, the session's time
#: limits for locks, and the index that leads to old rows.
CAN_DELETE: Final = """
    SELECT @@GLOBAL.read_only, @@SESSION.lock_wait_timeout, @@SESSION.innodb_lock_wait_timeout, (
        SELECT s.index_name FROM information_schema.statistics AS s
        WHERE s.table_schema = {schema} AND s.table_name = '{name}'
            AND s.column_name = 'created_at' AND s.seq_in_index = 1 AND s.index_type = 'BTREE' LIMIT 1
    )
"""
#: Returns whether no other session deletes old rows; none will until UNLOCK, or until the session ends.
LOCK: Final = "SELECT GET_LOCK({lock}, 0)"
UNLOCK: Final = "DO RELEASE_LOCK({lock})"
#: Sets the session's time limits for locks, in seconds: of tables, which is a year by default, and of rows.
WAIT: Final = "SET SESSION lock_wait_timeout = {}, SESSION innodb_lock_wait_timeout = {}"
#: Returns the ids of the oldest rows among those that are older than the retention. The read locks nothing, so that no
#: gap is locked into which units insert. The second condition is exact even in the hour in which clocks are set back.
OLD: Final = """
    SELECT id FROM {table} FORCE INDEX (`{index}`)
    WHERE created_at < NOW() - INTERVAL {retention_s} SECOND
        AND UNIX_TIMESTAMP(created_at) < UNIX_TIMESTAMP() - {retention_s}
    ORDER BY created_at LIMIT {most}
"""
#: Deletes by the key, row by row, and the same rows on every replica.
DELETE: Final = "DELETE FROM {table} WHERE id IN ({ids})"

#: The id exists: ER_DUP_ENTRY, and with the key's name ER_DUP_ENTRY_WITH_KEY_NAME.
TAKEN: Final = frozenset({1062, 1586})


@cache
def quoted(table: str) -> str:
    """Return *table*, as the user gives it, quoted for statements."""
    return ".".join(f"`{part}`" for part in table.split("."))


def look(table: str) -> str:
    """Return LOOK for *table*."""
    return LOOK.format(**_place(table))


def can_delete(table: str) -> str:
    """Return CAN_DELETE for *table*."""
    return CAN_DELETE.format(**_place(table))


def lock_of(table: str) -> str:
    """Return the name of the lock of *table* for LOCK and UNLOCK, an expression."""
    place = _place(table)
    # A name has at most 64 characters. MySQL has no MD5 and SHA1 from 9.6 on, unless a component is installed.
    return f"CONCAT('bgpool:', LEFT(SHA2(CONCAT({place['schema']}, '.', '{place['name']}'), 256), 40))"


def _place(table: str) -> dict[str, str]:
    schema, _, name = table.rpartition(".")
    return {"schema": f"'{schema}'" if schema else "DATABASE()", "name": name}


def misfit(row: Sequence[Any] | None) -> str:
    """Return the problem with the table, by the answer to LOOK; empty if there is none."""
    if row is None:
        return "does not exist, or no right on it is granted"
    engine, id_chars, collation, kind, unit_chars, keys, _ = row
    if str(engine).lower() != "innodb":
        return f"is of the engine {engine}: it must be InnoDB, whose rows are rolled back"
    is_exact = kind in ("varbinary",) or str(collation or "").endswith("_bin")
    if int(id_chars or 0) < RECEIPT_ID_CHARS or not is_exact:
        return f"has no column id varchar({RECEIPT_ID_CHARS}) COLLATE ascii_bin"
    if int(unit_chars or 0) < 32:
        return "has no column unit varchar(32)"
    return "" if keys else "has no primary or unique key on id alone"


def no_deletion(row: Sequence[Any]) -> str:
    """Return the reason for which old rows cannot be deleted, by the answer to CAN_DELETE; empty if they can."""
    return "" if row[3] else "has no index on created_at"
