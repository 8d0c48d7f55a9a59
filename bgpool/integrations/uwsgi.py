"""In the application's module, after its pools were made::

from bgpool.integrations import uwsgi

uwsgi.install()
"""

from __future__ import annotations

import uwsgi
import uwsgidecorators

from bgpool.integrations import open_pools

__all__ = ["install"]


def install() -> None:
    """Have every worker's pools connect before its first request: after the fork, or now where it has happened.

    Waits for nothing; errors are logged, not raised. With lazy-apps the module is loaded in the worker itself.
    """
    if uwsgi.worker_id():
        open_pools()
    else:
        uwsgidecorators.postfork(open_pools)
