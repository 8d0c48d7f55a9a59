"""bgpool, as its README shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bgpool
from benchmarks.builds import is_current, statuses
from benchmarks.clients import POOL_TIMEOUT_S, Config

# Imported here and not at the first use, so that the workers share it after the fork, as with the other clients.
from bgpool import get_pool
from bgpool.lab.ledger import INSERT_SQL, Key
from bgpool.segment.paths import RunFiles
from bgpool.segment.reader import Reader, SegmentMap

__all__ = ["Plain", "Retry", "bg_options", "helpers", "is_ready"]


def bg_options(config: Config) -> dict[str, Any]:
    """Return bgpool's parameters in addition to the DSN, for every client on bgpool."""
    return {
        "bg_id": config.bg_id,
        "bg_resolver": config.resolver,
        "bg_run_dir": _run_dir(config),
        "bg_interval_baseline_ms": config.baseline_ms,
        "bg_interval_increased_ms": config.increased_ms,
        "bg_interval_high_ms": config.high_ms,
    }


class Plain:
    """``with pool.connection()``."""

    def __init__(self, config: Config) -> None:
        """Make the pool and open it."""
        self._pool = get_pool(
            config.dsn,
            **bg_options(config),
            min_size=config.size,
            max_size=config.size,
            timeout=POOL_TIMEOUT_S,
        )
        self._pool.open()

    def write(self, key: Key) -> None:
        """See Client."""
        with self._pool.connection() as connection:
            connection.execute(INSERT_SQL, key)

    def close(self) -> None:
        """See Client."""
        self._pool.close(timeout=1.0)


class Retry(Plain):
    """A unit of work, which is run again if that is safe."""

    def write(self, key: Key) -> None:
        """See Client."""
        self._pool.run(_insert, key)


def _insert(connection: Any, key: Key) -> None:
    connection.execute(INSERT_SQL, key)


def helpers(config: Config) -> list[int]:
    """Return the process id of the monitor, if there is one."""
    if build := _other_build(config):
        return [status["monitor"]["pid"] for status in statuses(build, _run_dir(config)) if status["monitor"]]
    try:
        return [SegmentMap(_files(config)).header.pid]
    except (FileNotFoundError, bgpool.SegmentError):
        return []


def is_ready(config: Config) -> bool:
    """Return whether the monitor reports that a switchover may begin."""
    if build := _other_build(config):
        return any(status["ready"] for status in statuses(build, _run_dir(config)))
    snapshot = Reader(_files(config)).refresh().snapshot
    return snapshot is not None and snapshot.ready


def _other_build(config: Config) -> Path | None:
    """Return the directory of the build, if it is not this one. The segment's format may differ between builds."""
    build = Path(config.build) if config.build else None
    return build if build is not None and not is_current(build) else None


def _files(config: Config) -> RunFiles:
    return RunFiles.of(_run_dir(config), config.bg_id)


def _run_dir(config: Config) -> Path:
    return Path(config.directory) / "run"
