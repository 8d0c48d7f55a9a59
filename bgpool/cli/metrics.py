"""``bgpool monitor --metrics``."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Final

from bgpool.base_errors import ConfigurationError
from bgpool.logs import log_fields

__all__ = ["serve"]

_logger: Final = logging.getLogger("bgpool.metrics")
_ADDRESS: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]*)):([0-9]{1,5})")


def serve(address: str, bg_id: str, run_dir: Path) -> None:
    """Serve Prometheus at *address*, ``[HOST]:PORT``, with metrics of *bg_id*; exits with a message if it is in use.

    Raises:
        ConfigurationError: The address is invalid, or a library is missing.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found[3]) > 65535:
        raise ConfigurationError(f"--metrics {address}: allowed is [HOST]:PORT, as :9187, 0.0.0.0:9187 or [::1]:9187")
    try:
        from bgpool.metrics import prometheus
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"--metrics needs {error.name}: pip install 'bgpool[prometheus]'") from None
    host = found[1] or found[2] or "127.0.0.1"
    try:
        port = prometheus.serve(prometheus.Collector(bg_id, run_dir), host, int(found[3]))
    except OSError as error:
        sys.exit(f"--metrics {address}: {error.strerror or error}")
    _logger.info(
        "metrics are served at http://%s:%d/metrics",
        f"[{host}]" if ":" in host else host,
        port,
        extra=log_fields("metrics_server_started", bg_id=bg_id),
    )
