"""The monitor: one elected process per host and bg_id, the only one that talks to the deployment's metadata."""

from __future__ import annotations

__all__ = ["be_monitor", "is_monitor"]

_is_monitor = False


def be_monitor() -> None:
    """Say that this process is a monitor and nothing else, and so are its children.

    It imports an application's module where that makes the password. Pools that the module makes, and perhaps uses
    while it loads, are plain pools: nobody is to wait for a switchover whose end this process is to tell.
    """
    global _is_monitor
    _is_monitor = True


def is_monitor() -> bool:
    """Whether this process is a monitor and nothing else."""
    return _is_monitor
