"""All exceptions that bgpool raises.

The errors of a switchover are also instances of the drivers' ``OperationalError``. So the handlers and retry decorators
that an application already has treat them correctly: as a short outage of the database.
"""

from __future__ import annotations

import psycopg
import psycopg_pool
import pymysql

from bgpool.base_errors import ConfigurationError, Error, SegmentError

__all__ = [
    "Error",
    "ConfigurationError",
    "SegmentError",
    "SwitchoverError",
    "SwitchoverHoldTimeout",
    "GreenHostRejected",
    "SwitchoverInterrupted",
    "CommitOutcomeUnknown",
    "InheritedConnection",
    "PoolTimeout",
    "TooManyRequests",
    "PoolClosed",
    "PasswordFailed",
]


class SwitchoverError(Error, psycopg.OperationalError, pymysql.OperationalError):
    """The base class of the errors that a switchover causes; an ``OperationalError`` of both drivers."""


class SwitchoverHoldTimeout(SwitchoverError):
    """A checkout was held for the longest allowed time, and the switchover was not over. Nothing was sent."""


class GreenHostRejected(SwitchoverError):
    """The pool's endpoint is green's and the switchover is over. Nothing was sent. Connect to the blue name."""


class SwitchoverInterrupted(SwitchoverError):
    """A transaction was cut by the switchover and did not commit. Run it again on a new connection."""


class CommitOutcomeUnknown(SwitchoverError):
    """The connection was cut during COMMIT, or in autocommit mode: the database may or may not have applied the change.

    The text says whether it was a COMMIT or autocommit, and what to check. A two-phase transaction may still be
    prepared.
    """


class InheritedConnection(SwitchoverError):
    """A connection that was checked out before a fork was used in the child. It belongs to the parent."""


class PoolTimeout(Error, pymysql.OperationalError, psycopg_pool.PoolTimeout):
    """No connection was available in time: all were in use, or none could be opened. The text says which, and why."""


class TooManyRequests(Error, pymysql.OperationalError, psycopg_pool.TooManyRequests):
    """The number of waiting callers has reached ``max_waiting``."""


class PoolClosed(Error, pymysql.OperationalError, psycopg_pool.PoolClosed):
    """The pool was closed. Nothing was sent."""


class PasswordFailed(Error, psycopg.OperationalError, pymysql.OperationalError):
    """The password callable failed. Both drivers treat it as a failed connection. Nothing was sent."""
