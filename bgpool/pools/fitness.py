"""The rule by which an open connection looks closed to its user, which then replaces it."""

from __future__ import annotations

from bgpool.pools.recipe import Aware

__all__ = ["looks_closed"]


def looks_closed(connection: Aware) -> bool:
    """Return whether *connection*, which is open, must not be used for another transaction.

    Another library's pool, a thread-local or an ORM keeps connections by its own rules, but it replaces a closed one. A
    connection never looks closed within a transaction: psycopg's ``with conn`` commits nothing on a closed connection,
    and raises no error.
    """
    generation = getattr(connection, "bgpool_generation", None)
    if generation is None:
        # The connection is still being opened.
        return False
    if generation.live[0] and not generation.retired and not connection.bgpool_unfit:
        # It was not cut either: only connections of an ended generation are cut.
        return False
    if generation.inherited:
        # A transaction on it is the parent's as well.
        return True
    if not connection.bgpool_is_idle:
        return False
    takes_no_writes = connection.bgpool_unfit and bool(connection.bgpool_refused)
    return connection.bgpool_cut or takes_no_writes or generation.is_over()
