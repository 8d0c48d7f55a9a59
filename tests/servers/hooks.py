"""The application with bgpool's hook for uWSGI."""

from __future__ import annotations

from bgpool.integrations import uwsgi
from tests.servers.app import pool, wsgi

uwsgi.install()

__all__ = ["pool", "wsgi"]
