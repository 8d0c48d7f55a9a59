"""The case that the doctor examines: a DSN and everything that follows from it without network access."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from bgpool.aliases import may_be_alias, real_endpoint
from bgpool.core.endpoints import parse_endpoint
from bgpool.core.engine import Engine
from bgpool.dsn import Dsn, parse
from bgpool.errors import SegmentError
from bgpool.monitor.config import MonitorConfig
from bgpool.resolver import Resolver, make_resolver
from bgpool.segment import table
from bgpool.segment.paths import RunFiles, look_in, open_checked
from bgpool.segment.presence import WorkerRow, workers
from bgpool.settings import Settings

__all__ = ["CHECK_TIMEOUT_S", "Alias", "Case"]

#: The limit of every connect and every query, in seconds; the same as for a monitoring connection.
CHECK_TIMEOUT_S: Final = 10

#: The default min_size, and so max_size, of a pool. Source: psycopg_pool.
_MAX_SIZE: Final = 4

#: Source: gunicorn's settings.
_GUNICORN_TIMEOUT_S: Final = 30.0

#: Shorter secrets occur in many words.
_SECRET_CHARS: Final = 4
_SECRETS: Final = ("password", "sslpassword", "ssl_key_password")


def gunicorn_timeout_s(arguments: str) -> float | None:
    """Return gunicorn's timeout of a busy worker from $GUNICORN_CMD_ARGS; 0 for never, None if not known."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("-t", "--timeout", type=float, default=_GUNICORN_TIMEOUT_S)
    parser.add_argument("-k", "--worker-class", default="sync")
    parser.add_argument("--threads", type=int, default=1)
    try:
        given, _ = parser.parse_known_args(shlex.split(arguments))
    except (argparse.ArgumentError, ValueError, SystemExit):
        return None
    # Other worker classes send their heartbeat independently of requests.
    return given.timeout if given.worker_class == "sync" and given.threads == 1 else 0.0


@dataclass(frozen=True, slots=True)
class Alias:
    """The resolution of the DSN's host as an alias.

    Attributes:
        endpoint: The RDS or Aurora endpoint; None if there is none, or the look-up failed.
        failure: The reason of a failed look-up.
    """

    endpoint: str | None
    failure: str = ""


class Case:
    """A DSN, its settings, and its run directory."""

    dsn: Dsn
    settings: Settings

    def __init__(
        self,
        dsn: str,
        *,
        bg_id: str | None = None,
        options: Mapping[str, Any] | None = None,
        processes: int | None = None,
        max_size: int | None = None,
        busy_limit_s: float | None = None,
        of_django: bool = False,
        timeout_s: int = CHECK_TIMEOUT_S,
    ) -> None:
        """Read a DSN.

        Args:
            dsn: See get_pool; including ``bg_`` parameters.
            bg_id: The bg_id; None for the DSN's.
            options: Further options of get_pool, which a DSN cannot contain.
            processes: The number of processes with pools, on all hosts together; None for those in the run directory.
            max_size: The size of each one's pool; None for the largest of those in the run directory.
            busy_limit_s: The time in seconds after which the application server ends a busy worker, 0 for never; None
                for the value that the processes on this host report, or else $GUNICORN_CMD_ARGS.
            of_django: True if Django connects, and the DSN was made from its settings.
            timeout_s: The limit of every connect and every query, in seconds, >= 2.

        Raises:
            ConfigurationError: It is invalid. The text contains no secret.
        """
        own = {} if bg_id is None else {"bg_id": bg_id}
        self.dsn, self.settings, _ = parse(dsn, {**(options or {}), **own})
        self._max_size: Final = max_size
        self._busy_limit_s: Final = busy_limit_s
        self.of_django: Final = of_django
        self.timeout_s: Final = timeout_s
        self.run_dir: Final = look_in(self.settings.bg_run_dir)
        self.files: Final = RunFiles.of(self.run_dir, self.settings.bg_id)
        self.config: Final = MonitorConfig.of(self.dsn, self.settings, self.run_dir)
        self.resolver: Final[Resolver] = make_resolver(self.settings.bg_resolver)
        self._processes: Final = processes

    @property
    def processes(self) -> int:
        """The number of processes with a pool: as given, else those in the run directory, at least one."""
        return self._processes or max(1, len(self.rows))

    @property
    def max_size(self) -> int:
        """The maximum of connections of one process's pools; the current number if it keeps connections itself."""
        seen = max((row.usage.max_size or row.usage.in_use + row.usage.idle for row in self.rows), default=0)
        return self._max_size or seen or _MAX_SIZE

    @property
    def says_processes(self) -> str:
        """The source of that number."""
        if self._processes:
            return "given"
        return "seen on this host" if self.rows else "none is seen on this host"

    @cached_property
    def alias(self) -> Alias:
        """The resolution of the DSN's host; queries DNS once, for ALIAS_TIMEOUT_S at most."""
        if self.settings.endpoint is not None:
            return Alias(self.settings.endpoint)
        host = self.dsn.endpoint
        if parse_endpoint(host) is not None:
            return Alias(host)
        if not may_be_alias(host):
            return Alias(None)
        try:
            return Alias(real_endpoint(host, self.settings.bg_resolver))
        except (OSError, ValueError) as error:
            return Alias(None, str(error))

    @cached_property
    def rows(self) -> tuple[WorkerRow, ...]:
        """The processes on this host that use the bg_id; none without a trusted table."""
        # Opening a broken table would replace it, and the doctor must not change anything.
        try:
            fd = open_checked(self.files.workers, os.O_RDONLY)
        except (OSError, SegmentError):
            return ()
        try:
            whole = os.fstat(fd).st_size == table.FILE_BYTES and os.pread(fd, 8, 0) == table.MAGIC
        finally:
            os.close(fd)
        try:
            return workers(self.files) if whole else ()
        except SegmentError:
            return ()

    @property
    def busy_limit_s(self) -> float | None:
        """The time after which the application server ends a busy worker, in seconds; 0 for never, None if unknown."""
        if self._busy_limit_s is not None:
            return self._busy_limit_s
        # A process also knows its server's configuration file.
        if seen := [row.usage.busy_limit_ms / 1000 for row in self.rows if row.usage.busy_limit_ms]:
            return min(seen)
        arguments = os.environ.get("GUNICORN_CMD_ARGS")
        return gunicorn_timeout_s(arguments) if arguments is not None else None

    @property
    def application(self) -> Mapping[str, Any]:
        """The application's parameters, without those that run statements or reject a read-only server."""
        params = {name: value for name, value in self.dsn.params.items() if name not in ("init_command", "hostaddr")}
        return params | {"target_session_attrs": "any"} if self.dsn.engine is Engine.POSTGRESQL else params

    def real_name(self, host: str) -> str:
        """Return the name that a monitoring connection to *host* verifies: certificates are issued for endpoints."""
        return self.alias.endpoint or host if host == self.dsn.host else host

    def without_secrets(self, text: str) -> str:
        """Return *text* of a driver without any password of the DSN or the bus that it may quote."""
        for secret in self.config.fleet.secrets if self.config.fleet is not None else ():
            text = text.replace(secret, "***") if len(secret) >= _SECRET_CHARS else text
        for params in (self.dsn.params, self.config.params):
            secrets = [params.get(name) for name in _SECRETS] + [(params.get("ssl") or {}).get("password")]
            for secret in (str(secret or "") for secret in secrets):
                if len(secret) >= _SECRET_CHARS:
                    text = text.replace(secret, "***")
        return text

    def __repr__(self) -> str:
        return f"<Case {self.dsn!r} in {Path(self.run_dir)}>"
