"""Metrics of a host's pools and deployments: for Prometheus, and through OpenTelemetry's API.

All values are read from the mapped files and the pools: no database is queried, and a checkout does no additional
counting. Metrics are off by default. docs/metrics.md explains each metric.
"""

from __future__ import annotations

from typing import Any

from bgpool.errors import ConfigurationError

__all__ = ["instrument"]


def instrument(meter_provider: Any = None) -> None:
    """Report this process's pools through OpenTelemetry. Call it once, before or after the pools are created.

    Host-wide values are reported by one of the host's processes. In a server that forks, call this where the SDK is set
    up: in the worker.

    Args:
        meter_provider: The meter provider; None for the global one.

    Raises:
        ConfigurationError: OpenTelemetry's API is not installed.
    """
    try:
        from bgpool.metrics import otel
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"metrics need {error.name}: pip install 'bgpool[otel]'") from None
    otel.instrument(meter_provider)
