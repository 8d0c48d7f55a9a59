"""The application with the hook of uWSGI."""

from __future__ import annotations

from bgpool.integrations import uwsgi
from tests.servers.app import pool, wsgi

uwsgi.install()

__all__ = ["pool", "wsgi"]
