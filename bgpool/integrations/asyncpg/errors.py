"""bgpool's errors as asyncpg's: who catches either finds them.

None of them has a ``sqlstate`` in its body: asyncpg would take the class for the one of all errors with that code.
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
    """A *kind* of error with *text* that is asyncpg's as well, with the SQLSTATE of *error*."""
    new: Any = _OURS.get(kind, kind)(text)
    if isinstance(error, asyncpg.PostgresError):
        new.sqlstate = error.sqlstate
    found: Exception = new
    return found


#: What asyncpg's connect raises that is none of its own errors, and that an application may have raised as well.
_OTHERS: Final = (OSError, asyncio.TimeoutError)


def note_connecting(error: BaseException) -> None:
    """Note that *error* says that no connection could be made, if it does not say so by its class."""
    if isinstance(error, _OTHERS):
        error.bgpool_connecting = True  # type: ignore[union-attr]  # errors take attributes


def was_connecting(error: BaseException) -> bool:
    """Whether *error* was noted so."""
    return getattr(error, "bgpool_connecting", False) is True
