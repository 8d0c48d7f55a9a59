"""The oldest versions that tell of a deployment, as pure functions of what servers say of themselves.

Source: the AWS wrapper's page on its Blue/Green plugin, "Blue/Green Support Behaviour and Version Compatibility".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from bgpool.monitor.dialects import mysql, postgres

__all__ = [
    "AURORA_MYSQL",
    "AURORA_POSTGRES",
    "RDS_MYSQL",
    "RDS_POSTGRES",
    "extension_will_do",
    "minimum",
    "version_will_do",
]

AURORA_POSTGRES: Final = postgres.AURORA.name
RDS_POSTGRES: Final = postgres.RDS.name
AURORA_MYSQL: Final = mysql.AURORA.name
RDS_MYSQL: Final = mysql.RDS.name

#: Major → the first minor version; a newer major will do, an older one never. RDS for MySQL has no minimum.
_MINIMUMS: Final[Mapping[str, Mapping[int, int]]] = {
    AURORA_POSTGRES: {17: 5, 16: 9, 15: 13, 14: 18, 13: 21},
    RDS_POSTGRES: {17: 1, 16: 5, 15: 9, 14: 14, 13: 17, 12: 21},
    AURORA_MYSQL: {3: 7},
}
_EXTENSION: Final = (1, 7)


def version_will_do(product: str, version: str) -> bool | None:
    """Whether *version* of *product* tells of deployments; None where the text is no version.

    Args:
        product: One of the four names above.
        version: As the server writes it: ``16.14 (Debian …)``, ``3.07.1``, ``8.0.mysql_aurora.3.07.1``.
    """
    minimums = _MINIMUMS.get(product)
    if minimums is None:
        return True
    found = _numbers(version)
    if found is None:
        return None
    major, minor = found
    return minor >= minimums[major] if major in minimums else major > max(minimums)


def minimum(product: str) -> str:
    """The minimum in words."""
    minimums = _MINIMUMS.get(product)
    if minimums is None:
        return "no minimum"
    minor = ".{:02}" if product == AURORA_MYSQL else ".{}"
    return ", ".join(f"{major}{minor.format(least)}" for major, least in minimums.items()) + " or above"


def extension_will_do(version: str) -> bool | None:
    """Whether *version* of rds_tools tells of deployments; None where the text is no version."""
    found = _numbers(version)
    return None if found is None else found >= _EXTENSION


def _numbers(version: str) -> tuple[int, int] | None:
    match = re.match(r"(\d+)(?:\.(\d+))?", version.rpartition("mysql_aurora.")[2].strip(), re.ASCII)
    return (int(match[1]), int(match[2] or 0)) if match else None
