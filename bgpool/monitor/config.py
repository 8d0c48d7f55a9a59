"""What a monitor needs to know, and how it gets it: over a pipe, because it holds a password."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import msgpack

from bgpool.core.machine import Rules
from bgpool.core.plan import Intervals, Target
from bgpool.settings import Dsn, Settings

__all__ = ["MonitorConfig"]


@dataclass(frozen=True, slots=True)
class MonitorConfig:
    """One deployment to watch.

    Attributes:
        run_dir: Where the segment lives.
        host, port: The application's endpoint, where the metadata is looked for first.
        params: Parameters of the monitoring connections, password included; never shown.
        resolver: As the parameter bg_resolver.
    """

    bg_id: str
    run_dir: str
    host: str
    port: int
    resolver: str
    interval_baseline_ms: int
    interval_increased_ms: int
    interval_high_ms: int
    switchover_timeout_ms: int
    release_on_blue_dns_update: bool
    params: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, dsn: Dsn, settings: Settings, run_dir: Path) -> MonitorConfig:
        """The configuration that a pool's own parameters come to."""
        return cls(
            bg_id=settings.bg_id,
            run_dir=str(run_dir),
            host=dsn.host,
            port=dsn.port,
            resolver=settings.bg_resolver,
            interval_baseline_ms=settings.bg_interval_baseline_ms,
            interval_increased_ms=settings.bg_interval_increased_ms,
            interval_high_ms=settings.bg_interval_high_ms,
            switchover_timeout_ms=settings.bg_switchover_timeout_ms,
            release_on_blue_dns_update=settings.bg_release_on_blue_dns_update,
            params={name: str(value) for name, value in dsn.monitoring.items()},
        )

    def dump(self) -> bytes:
        """For the pipe."""
        packed: bytes = msgpack.packb({f.name: getattr(self, f.name) for f in fields(self)})
        return packed

    @classmethod
    def load(cls, data: bytes) -> MonitorConfig:
        """From the pipe, whose other end is a process of the same user and version."""
        return cls(**msgpack.unpackb(data))

    @property
    def rules(self) -> Rules:
        """What the state machine goes by."""
        return Rules(self.switchover_timeout_ms, self.release_on_blue_dns_update)

    @property
    def intervals(self) -> Intervals:
        """How often to ask."""
        return Intervals(self.interval_baseline_ms, self.interval_increased_ms, self.interval_high_ms)

    @property
    def entrance(self) -> Target:
        """Where to look for the metadata while nothing is known."""
        return Target(self.host, self.port)
