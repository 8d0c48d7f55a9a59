"""What a host's pools and deployments come to, as metrics: for Prometheus, and through OpenTelemetry's API.

Everything is read from the mapped files and from the pools themselves: no database is asked, and a checkout counts
nothing for it. Off unless asked for; what each metric means is in docs/metrics.md.
"""

from __future__ import annotations

from typing import Any

from bgpool.errors import ConfigurationError

__all__ = ["instrument"]


def instrument(meter_provider: Any = None) -> None:
    """Report this process's pools through OpenTelemetry; to be called once, before or after the pools are made.

    What is true of the host is reported by one of its processes. In a server that forks, call it where the SDK is set
    up: in the worker.

    Args:
        meter_provider: Whose meter; None for the global one.

    Raises:
        ConfigurationError: OpenTelemetry's API is not installed.
    """
    try:
        from bgpool.metrics import otel
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"metrics need {error.name}: pip install 'bgpool[otel]'") from None
    otel.instrument(meter_provider)
