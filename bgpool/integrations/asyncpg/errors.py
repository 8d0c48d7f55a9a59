"""bgpool's errors as asyncpg's: an application can catch either class.

None has a ``sqlstate`` in its class body: asyncpg would register the class for all errors with that code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import asyncpg

from bgpool import errors

__all__ = [
    "CommitOutcomeUnknown",
    "GreenHostRejected",
    "InheritedConnection",
    "PasswordFailed",
    "PoolClosed",
    "SwitchoverHoldTimeout",
    "SwitchoverInterrupted",
    "like",
    "note_connecting",
    "was_connecting",
]


class SwitchoverHoldTimeout(errors.SwitchoverHoldTimeout, asyncpg.PostgresConnectionError):
    """bgpool.SwitchoverHoldTimeout, and an asyncpg.PostgresConnectionError."""


class GreenHostRejected(errors.GreenHostRejected, asyncpg.PostgresConnectionError):
    """bgpool.GreenHostRejected, and an asyncpg.PostgresConnectionError."""


class SwitchoverInterrupted(errors.SwitchoverInterrupted, asyncpg.PostgresConnectionError):
    """bgpool.SwitchoverInterrupted, and an asyncpg.PostgresConnectionError."""


class CommitOutcomeUnknown(errors.CommitOutcomeUnknown, asyncpg.PostgresConnectionError):
    """bgpool.CommitOutcomeUnknown, and an asyncpg.PostgresConnectionError."""


class PasswordFailed(errors.PasswordFailed, asyncpg.PostgresConnectionError):
    """bgpool.PasswordFailed, and an asyncpg.PostgresConnectionError."""


class InheritedConnection(errors.InheritedConnection, asyncpg.InterfaceError):
    """bgpool.InheritedConnection, and an asyncpg.InterfaceError."""


class PoolClosed(errors.PoolClosed, asyncpg.InterfaceError):
    """bgpool.PoolClosed, and an asyncpg.InterfaceError."""


_OURS: Final[Mapping[Callable[..., Exception], type[Exception]]] = {
    kind.__mro__[1]: kind
    for kind in (
        SwitchoverHoldTimeout,
        GreenHostRejected,
        SwitchoverInterrupted,
        CommitOutcomeUnknown,
        PasswordFailed,
        InheritedConnection,
        PoolClosed,
    )
}


def like(error: BaseException | None, kind: Callable[..., Exception], text: str) -> Exception:
    """Return an error of *kind* with *text* that is also asyncpg's, with the SQLSTATE of *error*."""
    new: Any = _OURS.get(kind, kind)(text)
    if isinstance(error, asyncpg.PostgresError):
        new.sqlstate = error.sqlstate
    found: Exception = new
    return found


#: Errors that asyncpg's connect raises and that are not asyncpg's; an application may also have raised them.
_OTHERS: Final = (OSError, asyncio.TimeoutError)


def note_connecting(error: BaseException) -> None:
    """Mark *error* as a failure to connect, if its class does not show that."""
    if isinstance(error, _OTHERS):
        error.bgpool_connecting = True  # type: ignore[union-attr]  # errors take attributes


def was_connecting(error: BaseException) -> bool:
    """Return whether *error* was marked as a failure to connect."""
    return getattr(error, "bgpool_connecting", False) is True
