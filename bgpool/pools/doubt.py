"""The reasons for which a lost connection may have committed data: the text of the error, and the advice."""

from __future__ import annotations

from typing import Final

__all__ = [
    "COMMITTED_BEFORE",
    "DURING_COMMIT",
    "ENDED_BY_FUNCTION",
    "IN_AUTOCOMMIT",
    "IN_PIPELINE",
    "MAY_COMMIT",
    "NO_DOUBT",
    "PREPARED",
    "XA_PREPARED",
]

#: No data can have been committed.
NO_DOUBT: Final = ""
DURING_COMMIT: Final = "was cut during COMMIT; find out whether it took effect"
IN_AUTOCOMMIT: Final = "was cut in autocommit; find out whether the statement took effect"
IN_PIPELINE: Final = "cut a pipeline that may have committed; find out which part of it took effect"
COMMITTED_BEFORE: Final = (
    "stopped executemany() in autocommit, where each of its statements commits by itself, and some of them have; find "
    "out which took effect"
)
MAY_COMMIT: Final = "cut a statement that may have committed by itself; find out whether it took effect"
ENDED_BY_FUNCTION: Final = (
    "cut a unit of work whose function may have ended the transaction itself (COMMIT as text, DDL, a procedure); find "
    "out what of it took effect"
)
PREPARED: Final = (
    "cut a two-phase transaction that may be prepared: do not run it again, look for it in pg_prepared_xacts and "
    "finish it by its id"
)
XA_PREPARED: Final = (
    "cut an XA transaction that may be prepared: do not run it again, look for it with XA RECOVER and finish it by its "
    "id"
)
