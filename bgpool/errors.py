"""Every exception that bgpool raises, on one screen.

The errors of a switchover are also the drivers' own ``OperationalError``, so that the handlers and retry
decorators an application already has see them as what they are: the database was away for a moment.
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
    """The root of the errors that a switchover causes; a driver's ``OperationalError`` of either engine."""


class SwitchoverHoldTimeout(SwitchoverError):
    """A checkout was held for as long as it may be and the switchover had not passed. Nothing was sent."""


class GreenHostRejected(SwitchoverError):
    """The pool's endpoint is a green one and the switchover is over. Nothing was sent; connect to the blue name."""


class SwitchoverInterrupted(SwitchoverError):
    """A transaction was cut by the switchover and did not commit. Run it again on a new connection."""


class CommitOutcomeUnknown(SwitchoverError):
    """The connection was cut during COMMIT, or in autocommit: the database may or may not have applied it.

    The text says which of them, and what to find out; a two-phase transaction may still be prepared.
    """


class InheritedConnection(SwitchoverError):
    """A connection that was checked out before a fork was used in the child, where it belongs to the parent."""


class PoolTimeout(Error, pymysql.OperationalError, psycopg_pool.PoolTimeout):
    """No connection could be had in time: all were in use, or none could be opened. The text says which, and why."""


class TooManyRequests(Error, pymysql.OperationalError, psycopg_pool.TooManyRequests):
    """As many callers as ``max_waiting`` allows wait for a connection already."""


class PoolClosed(Error, pymysql.OperationalError, psycopg_pool.PoolClosed):
    """The pool was closed. Nothing was sent."""


class PasswordFailed(Error, psycopg.OperationalError, pymysql.OperationalError):
    """What makes passwords has made none; to either driver a connection that failed. Nothing was sent."""
