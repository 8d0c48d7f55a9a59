"""Whether a connection that is open is to look closed to its user, who then replaces it."""

from __future__ import annotations

from bgpool.pools.recipe import Aware

__all__ = ["looks_closed"]


def looks_closed(connection: Aware) -> bool:
    """Whether *connection*, which is open, is not to be used for another transaction.

    A pool of somebody else's, a thread-local or an ORM keeps connections by rules of its own, but it replaces one that
    is closed. In the middle of a transaction none looks so: psycopg's ``with conn`` commits nothing on a connection
    that is closed, without an error.
    """
    generation = getattr(connection, "bgpool_generation", None)
    if generation is None:
        # Still being set up by the connect that makes it.
        return False
    if generation.live[0] and not generation.retired and not connection.bgpool_unfit:
        # Nor was it cut: only connections of a generation that has ended are.
        return False
    if generation.inherited:
        # The transaction is the parent's as well.
        return True
    if not connection.bgpool_is_idle:
        return False
    takes_no_writes = connection.bgpool_unfit and bool(connection.bgpool_refused)
    return connection.bgpool_cut or takes_no_writes or generation.is_over()
