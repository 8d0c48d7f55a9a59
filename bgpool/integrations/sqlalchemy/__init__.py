"""SQLAlchemy through switchovers: ``create_engine("postgresql+bgpool://…?bg_id=ledger")``, or ``mysql+bgpool://``.

SQLAlchemy keeps its own pool, and all of the pool's options keep their meaning. bgpool holds a checkout before it takes
a place in the pool, opens the connections, and has a stale one replaced when it is checked out. A unit of work that a
switchover cuts is called again: see run and transactional.

The same PostgreSQL URL works with create_async_engine; its units of work are run by arun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bgpool.integrations.sqlalchemy.async_units import arun

__all__ = ["arun", "run", "transactional"]

try:
    from sqlalchemy import __version__ as _version
except ImportError as error:
    raise ImportError(
        "bgpool.integrations.sqlalchemy needs SQLAlchemy 2.0 or 2.1: pip install 'bgpool[sqlalchemy]'"
    ) from error

if int(_version.split(".")[0]) < 2:
    raise ImportError(f"bgpool.integrations.sqlalchemy needs SQLAlchemy 2.0 or 2.1, and this is {_version}")

# Imported after the check, because they need SQLAlchemy.
from bgpool.integrations.sqlalchemy.units import run, transactional  # see above


def __getattr__(name: str) -> Any:
    # Imported on demand: it needs greenlet, which is optional for SQLAlchemy.
    if name == "arun":
        from bgpool.integrations.sqlalchemy.async_units import arun  # see above

        return arun
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
