"""The monitor: one elected process per host and bg_id, the only one that queries the deployment's metadata."""

from __future__ import annotations

__all__ = ["be_monitor", "is_monitor"]

_is_monitor = False


def be_monitor() -> None:
    """Mark this process, and its children, as a monitor and nothing else.

    A monitor imports an application's module if that makes the password. Pools that the module creates, and perhaps
    uses while it loads, are plain pools: no caller may wait for the end of a switchover that this very process must
    publish.
    """
    global _is_monitor
    _is_monitor = True


def is_monitor() -> bool:
    """Return whether this process is a monitor and nothing else."""
    return _is_monitor
