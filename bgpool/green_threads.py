"""Green threads: detect the modules that gevent or eventlet has patched, and refuse what bgpool cannot run on."""

from __future__ import annotations

import sys
from typing import Final

from bgpool.base_errors import ConfigurationError

__all__ = ["check_threads", "patched_by", "sleeps_are_green"]

#: The modules whose patching matters, because threads start, sleep and wait with them; by gevent's names.
_GEVENTS: Final = ("threading", "time", "socket", "select")
#: The same by eventlet's names.
_EVENTLETS: Final = ("thread", "time", "socket", "select")


def sleeps_are_green() -> bool:
    """Return whether ``time.sleep`` is gevent's: then a call that sleeps in the kernel blocks all green threads."""
    return _gevent_has("time")


def patched_by() -> str:
    """Return the library that has patched threads, sockets or time in this process; empty if none has."""
    if any(map(_eventlet_has, _EVENTLETS)):
        return "eventlet"
    return "gevent" if any(map(_gevent_has, _GEVENTS)) else ""


def check_threads() -> None:
    """Refuse a process in which one waiting caller would block all others.

    Raises:
        ConfigurationError: eventlet has patched it, or gevent has patched only one of threads and time.
    """
    library = patched_by()
    if library == "eventlet":
        raise ConfigurationError(
            "eventlet.monkey_patch() was called in this process, and bgpool does not run on eventlet's green threads: "
            "use threads, processes, or gevent"
        )
    missing = [name for name in ("threading", "time") if not _gevent_has(name)]
    if library == "gevent" and missing:
        raise ConfigurationError(
            f"gevent has patched this process, but not {' and '.join(missing)}: a caller that waits would stop all "
            "green threads; call gevent.monkey.patch_all() with neither thread=False nor time=False, or not at all"
        )


def _gevent_has(module: str) -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched(module))


def _eventlet_has(module: str) -> bool:
    patcher = sys.modules.get("eventlet.patcher")
    return patcher is not None and bool(patcher.is_monkey_patched(module))
