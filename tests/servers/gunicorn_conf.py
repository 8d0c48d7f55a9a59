"""``gunicorn -c python:tests.servers.gunicorn_conf``: as docs/servers.md has it."""

from bgpool.integrations.gunicorn import post_worker_init

__all__ = ["post_worker_init"]
