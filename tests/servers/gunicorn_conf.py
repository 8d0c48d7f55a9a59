"""``gunicorn -c python:tests.servers.gunicorn_conf``: the configuration from docs/servers.md."""

from bgpool.integrations.gunicorn import post_worker_init

__all__ = ["post_worker_init"]
