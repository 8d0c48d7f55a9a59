"""The Celery broker of these tests, based on files."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["on_files"]


def on_files() -> dict[str, Any]:
    """Return the configuration of an application whose broker is ``filesystem://``, in the server's own directory."""
    directory = os.environ["APP_BROKER"]
    return {
        "broker_transport_options": {
            "data_folder_in": directory,
            "data_folder_out": directory,
            "control_folder": directory,
            "polling_interval": 0.01,
        },
        "worker_prefetch_multiplier": 1,
        "worker_hijack_root_logger": False,
    }
