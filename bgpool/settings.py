"""The parameters: parsing, bounds and explanation of every ``bg_`` name.

Names, units and defaults are those that users of the AWS wrapper know. They are keywords of get_pool or part of the
DSN's query string; a keyword wins.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from bgpool.core.endpoints import normalise_host, parse_endpoint
from bgpool.logs import log_fields
from bgpool.plain_errors import ConfigurationError

__all__ = ["ALWAYS", "DISABLE", "Settings", "is_disabled", "read_flag"]

_logger: Final = logging.getLogger("bgpool.settings")

_DAY_MS: Final = 24 * 60 * 60 * 1000
_YEAR_S: Final = 365 * 24 * 60 * 60

#: Values of bg_receipts.
_SWITCHOVER: Final = "switchover"
ALWAYS: Final = "always"

#: A table's name, with a schema or without. Nothing that would have to be escaped: it is part of statements.
_TABLE: Final = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_]{0,62}\.)?[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)

#: The environment variable that makes every pool of a process a plain one.
DISABLE: Final = "BGPOOL_DISABLE"


def _milliseconds(least: int, most: int) -> Callable[[str, object], int]:
    def parse_ms(name: str, value: object) -> int:
        number = value
        if isinstance(value, str) and value.strip().isdecimal():
            number = int(value)
        if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
            raise ConfigurationError(f"{name}={value!r}: a whole number of ms from {least} to {most} is allowed")
        return number

    return parse_ms


def read_flag(name: str, value: object) -> bool:
    """The flag that *value* is: itself, or one of the words for yes and no.

    Raises:
        ConfigurationError: It is neither; the text names *name*.
    """
    if isinstance(value, bool):
        return value
    words = {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }
    word = value.strip().lower() if isinstance(value, str) else ""
    if word not in words:
        raise ConfigurationError(f"{name}={value!r}: true or false is allowed")
    return words[word]


def is_disabled() -> bool:
    """Whether ``$BGPOOL_DISABLE`` switches bgpool off in this process.

    Raises:
        ConfigurationError: It is neither a word for yes nor one for no. Empty counts as not set.
    """
    value = os.environ.get(DISABLE, "")
    return bool(value.strip()) and read_flag(f"${DISABLE}", value)


def _bg_id(name: str, value: object) -> str:
    number = value
    if isinstance(number, float) and math.isfinite(number):
        # 1.0 is the same number as 1.
        number = int(number) if number.is_integer() else str(number)
    if isinstance(number, bool) or not isinstance(number, (str, int)) or not str(number).strip():
        raise ConfigurationError(f"{name}={value!r}: a number or a string that is not blank is allowed")
    text = str(number).strip().lower()
    if text != text.encode(errors="replace").decode():
        raise ConfigurationError(f"{name}={value!r}: text that can be written as UTF-8 is allowed")
    if "://" in text and "@" in text:
        # It would be in logs and in the names of files.
        raise ConfigurationError(f"{name}: the name of a deployment is allowed, not a DSN (it is not repeated here)")
    if len(text) > 200:
        raise ConfigurationError(f"{name}={value!r}: at most 200 characters are allowed")
    return text


def _table(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or _TABLE.fullmatch(value) is None:
        raise ConfigurationError(
            f"{name}={value!r}: the name of a table, or schema.table, of letters, digits and _ is allowed, such as "
            "bgpool_receipts"
        )
    return value


def _receipts(name: str, value: object) -> str:
    word = value.strip().lower() if isinstance(value, str) else ""
    if word not in (_SWITCHOVER, ALWAYS):
        raise ConfigurationError(f"{name}={value!r}: {_SWITCHOVER} or {ALWAYS} is allowed")
    return word


def _retention(name: str, value: object) -> int:
    number = value
    if isinstance(value, str) and value.strip().isdecimal():
        number = int(value)
    if isinstance(number, bool) or not isinstance(number, int) or not 600 <= number <= _YEAR_S:
        raise ConfigurationError(f"{name}={value!r}: a whole number of seconds from 600 to {_YEAR_S} is allowed")
    return number


def _resolver(name: str, value: object) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if "\0" in text or (text != "system" and not text.startswith(("hosts:", "dns://"))):
        raise ConfigurationError(f"{name}={value!r}: system, hosts:FILE or dns://HOST:PORT is allowed")
    return text


def _endpoint(name: str, value: object) -> str | None:
    if value is None:
        return None
    host = normalise_host(value) if isinstance(value, str) else ""
    if parse_endpoint(host) is None:
        # Nothing but a name is repeated: a whole DSN has a password.
        is_safe = not isinstance(value, (str, bytes)) or re.fullmatch(r"[\w.-]+", host, re.ASCII)
        shown = repr(value) if is_safe else f"<{type(value).__name__}>"
        raise ConfigurationError(
            f"{name}={shown}: the name of an RDS or Aurora endpoint is allowed, "
            "such as ledger.c0abc.eu-west-1.rds.amazonaws.com"
        )
    return host


def _directory(name: str, value: object) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)) or not str(value).strip() or "\0" in str(value):
        raise ConfigurationError(f"{name}={value!r}: the path of a directory is allowed")
    return Path(value).absolute()


def _parameter(default: Any, parse: Callable[[str, object], Any], usual: tuple[int, int] | None = None) -> Any:
    return field(default=default, metadata={"parse": parse, "usual": usual})


@dataclass(frozen=True, slots=True)
class Settings:
    """Every ``bg_`` parameter. docs/parameters.md explains each.

    Attributes:
        bg_id: Which Blue/Green Deployment; the same for every connection to it, stripped and lower-cased.
        bg_connect_timeout_ms: Longest hold of a checkout, in ms.
        bg_interval_baseline_ms: Between readings of the status while no deployment is seen, in ms.
        bg_interval_increased_ms: The same while there is one.
        bg_interval_high_ms: The same during a switchover.
        bg_switchover_timeout_ms: Longest switchover before it counts as done, in ms.
        bg_suspend_new_blue_connections: Hold new blue connections in IN_PROGRESS too.
        bg_drop_blue_connections: Cut blue connections in use when the grace is over.
        bg_drain_timeout_ms: That grace, in ms.
        bg_release_on_blue_dns_update: Let moved DNS alone end the hold.
        bg_receipts_table: The table in which units of work leave receipts; None for none.
        bg_receipts: ``switchover``, to leave them during a switchover alone, or ``always``.
        bg_receipts_retention_s: How long receipts are kept, in seconds.
        bg_resolver: ``system``, ``hosts:FILE`` or ``dns://HOST:PORT``; default ``$BGPOOL_RESOLVER``, else system.
        bg_run_dir: Where the segment lives; None for the default of segment/paths.py.
        endpoint: The RDS or Aurora endpoint that the DSN's host stands for, where that is an alias.
    """

    bg_id: str = _parameter("1", _bg_id)
    bg_connect_timeout_ms: int = _parameter(30_000, _milliseconds(0, _DAY_MS))
    bg_interval_baseline_ms: int = _parameter(60_000, _milliseconds(1, _DAY_MS), (1, 900_000))
    bg_interval_increased_ms: int = _parameter(1_000, _milliseconds(1, _DAY_MS), (500, 2_000))
    bg_interval_high_ms: int = _parameter(100, _milliseconds(1, _DAY_MS), (50, 500))
    bg_switchover_timeout_ms: int = _parameter(180_000, _milliseconds(1, _DAY_MS))
    bg_suspend_new_blue_connections: bool = _parameter(False, read_flag)
    bg_drop_blue_connections: bool = _parameter(True, read_flag)
    bg_drain_timeout_ms: int = _parameter(1_000, _milliseconds(0, _DAY_MS))
    bg_release_on_blue_dns_update: bool = _parameter(True, read_flag)
    bg_receipts_table: str | None = _parameter(None, _table)
    bg_receipts: str = _parameter(_SWITCHOVER, _receipts)
    bg_receipts_retention_s: int = _parameter(86_400, _retention)
    bg_resolver: str = _parameter("system", _resolver)
    bg_run_dir: Path | None = _parameter(None, _directory)
    endpoint: str | None = _parameter(None, _endpoint)

    @classmethod
    def from_mapping(cls, given: Mapping[str, object]) -> Settings:
        """Settings from parameters by name.

        Raises:
            ConfigurationError: A name that is not known, or a value out of its domain.
        """
        known = {f.name: f for f in fields(cls)}
        for name in given:
            if name not in known:
                raise ConfigurationError(f"unknown parameter {name!r}: allowed are {', '.join(known)}")
        values = {name: known[name].metadata["parse"](name, value) for name, value in given.items()}
        if "bg_resolver" not in given and (resolver := os.environ.get("BGPOOL_RESOLVER")):
            values["bg_resolver"] = _resolver("BGPOOL_RESOLVER", resolver)
        for name, value in values.items():
            usual = known[name].metadata["usual"]
            if usual is not None and not usual[0] <= value <= usual[1]:
                _logger.warning(
                    "%s=%d is outside the usual %d to %d ms", name, value, *usual, extra=log_fields("unusual_parameter")
                )
        return cls(**values)
