"""uWSGI: pools connect before a worker's first request. In the application's module, after its pools were created::

from bgpool.integrations import uwsgi

uwsgi.install()
"""

from __future__ import annotations

import uwsgi
import uwsgidecorators

from bgpool.integrations import begin_worker

__all__ = ["install"]


def install() -> None:
    """Open every worker's pools before its first request: after the fork, or now if the fork has already happened.

    Does not wait; errors are logged, not raised. With lazy-apps the module is loaded in the worker itself. A warning is
    logged if ``harakiri`` may end a worker while a caller is held.
    """
    if uwsgi.worker_id():
        _begin()
    else:
        uwsgidecorators.postfork(_begin)


def _begin() -> None:
    harakiri = uwsgi.opt.get("harakiri", b"")
    text = harakiri.decode() if isinstance(harakiri, bytes) else str(harakiri)
    begin_worker(int(text) if text.isdecimal() else None)
