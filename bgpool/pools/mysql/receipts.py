"""The receipts table on MySQL and MariaDB: what it is to look like, and what units of work say to it.

A claim is an INSERT of the same id, and never a SELECT: while the same server may still be committing, only an INSERT
waits for it. The server goes on with a COMMIT whose client is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from bgpool.core.limits import RECEIPT_ID_CHARS

__all__ = ["DDL", "INSERT", "LOOK", "TAKEN", "WRITER", "look", "misfit", "quoted"]

DDL: Final = f"""\
CREATE TABLE {{table}} (
    id varchar({RECEIPT_ID_CHARS}) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
    unit varchar(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    KEY created_at (created_at)
) ENGINE=InnoDB;
GRANT SELECT, INSERT, DELETE ON {{table}} TO {{user}};
"""

#: No row where the table is not there, or nothing of it is granted.
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
    )
    FROM information_schema.tables AS t
    LEFT JOIN information_schema.columns AS i
        ON i.table_schema = t.table_schema AND i.table_name = t.table_name AND i.column_name = 'id'
    LEFT JOIN information_schema.columns AS u
        ON u.table_schema = t.table_schema AND u.table_name = t.table_name AND u.column_name = 'unit'
    WHERE t.table_schema = {schema} AND t.table_name = '{name}'
"""
INSERT: Final = "INSERT INTO {table} (id, unit) VALUES ('{id}', '{unit}')"
#: Which unit wrote the row, as it is committed, whatever the transaction's own snapshot has.
WRITER: Final = "SELECT unit FROM {table} WHERE id = '{id}' LOCK IN SHARE MODE"

#: The id is there: ER_DUP_ENTRY, and with the key's name ER_DUP_ENTRY_WITH_KEY_NAME.
TAKEN: Final = frozenset({1062, 1586})


def quoted(table: str) -> str:
    """*table*, as it is given, for statements."""
    return ".".join(f"`{part}`" for part in table.split("."))


def look(table: str) -> str:
    """LOOK for *table*."""
    schema, _, name = table.rpartition(".")
    return LOOK.format(schema=f"'{schema}'" if schema else "DATABASE()", name=name)


def misfit(row: Sequence[Any] | None) -> str:
    """What is wrong with the table, by the answer to LOOK; empty if nothing is."""
    if row is None:
        return "does not exist, or nothing of it is granted"
    engine, id_chars, collation, kind, unit_chars, keys = row
    if str(engine).lower() != "innodb":
        return f"is of the engine {engine}: it has to be InnoDB, whose rows are rolled back"
    is_exact = kind in ("varbinary",) or str(collation or "").endswith("_bin")
    if int(id_chars or 0) < RECEIPT_ID_CHARS or not is_exact:
        return f"has no column id varchar({RECEIPT_ID_CHARS}) COLLATE ascii_bin"
    if int(unit_chars or 0) < 32:
        return "has no column unit varchar(32)"
    return "" if keys else "has no primary or unique key on id alone"
