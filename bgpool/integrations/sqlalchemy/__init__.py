"""SQLAlchemy through switchovers: ``create_engine("postgresql+bgpool://…?bg_id=ledger")``, or ``mysql+bgpool://``.

SQLAlchemy keeps its own pool, and everything of it means what it means there. bgpool holds a checkout before it takes a
place in the pool, makes the connections, and has a stale one replaced when it is checked out. A unit of work that a
switchover cuts is called again: see run and transactional.

The same PostgreSQL URL is for create_async_engine, whose units of work are arun's.
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

# Behind the check, for they need SQLAlchemy.
from bgpool.integrations.sqlalchemy.units import run, transactional  # see above


def __getattr__(name: str) -> Any:
    # Not imported with the others: it needs greenlet, which SQLAlchemy can do without.
    if name == "arun":
        from bgpool.integrations.sqlalchemy.async_units import arun  # see above

        return arun
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
