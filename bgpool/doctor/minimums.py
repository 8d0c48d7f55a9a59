"""The oldest versions that report a deployment, as pure functions of the servers' version texts.

Source: the AWS wrapper's page on its Blue/Green plugin, "Blue/Green Support Behaviour and Version Compatibility".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bgpool.monitor.dialects import mysql, postgres

__all__ = [
    "AURORA_MYSQL",
    "AURORA_POSTGRES",
    "RDS_MYSQL",
    "RDS_POSTGRES",
    "DjangoNeeds",
    "extension_will_do",
    "minimum",
    "of_django",
    "version_will_do",
]

AURORA_POSTGRES: Final = postgres.AURORA.name
RDS_POSTGRES: Final = postgres.RDS.name
AURORA_MYSQL: Final = mysql.AURORA.name
RDS_MYSQL: Final = mysql.RDS.name

#: Major → the first minor version. A newer major version is supported, an older one never. RDS for MySQL has no
#: minimum.
_MINIMUMS: Final[Mapping[str, Mapping[int, int]]] = {
    AURORA_POSTGRES: {17: 5, 16: 9, 15: 13, 14: 18, 13: 21},
    RDS_POSTGRES: {17: 1, 16: 5, 15: 9, 14: 14, 13: 17, 12: 21},
    AURORA_MYSQL: {3: 7},
}
_EXTENSION: Final = (1, 7)

#: Django's version → product → the oldest version that it supports.
#: Source: minimum_database_version in Django's django/db/backends/*/features.py.
_DJANGO: Final[Mapping[tuple[int, int], Mapping[str, tuple[int, ...]]]] = {
    (5, 2): {"PostgreSQL": (14,), "MariaDB": (10, 5), "MySQL": (8, 0, 11)},
    (6, 0): {"PostgreSQL": (14,), "MariaDB": (10, 6), "MySQL": (8, 0, 11)},
    (6, 1): {"PostgreSQL": (15,), "MariaDB": (10, 11), "MySQL": (8, 4)},
}


@dataclass(frozen=True, slots=True)
class DjangoNeeds:
    """Django's requirement for a server.

    Attributes:
        needed, found: A product and a version, for texts.
        enough: True if Django connects.
    """

    needed: str
    found: str
    enough: bool


def version_will_do(product: str, version: str) -> bool | None:
    """Return whether *version* of *product* reports deployments; None if the text is no version.

    Args:
        product: One of the four names above.
        version: The server's text: ``16.14 (Debian …)``, ``3.07.1``, ``8.0.mysql_aurora.3.07.1``.
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
    """Return the minimum as a text."""
    minimums = _MINIMUMS.get(product)
    if minimums is None:
        return "no minimum"
    minor = ".{:02}" if product == AURORA_MYSQL else ".{}"
    return ", ".join(f"{major}{minor.format(least)}" for major, least in minimums.items()) + " or above"


def extension_will_do(version: str) -> bool | None:
    """Return whether *version* of rds_tools reports deployments; None if the text is no version."""
    found = _numbers(version)
    return None if found is None else found >= _EXTENSION


def of_django(django: str, server: str) -> DjangoNeeds | None:
    """Return the requirement of the version *django* for *server*; None if one of them is not known.

    Args:
        django: For example ``5.2.19``.
        server: See `bgpool.doctor.server.Identity.runs`: ``PostgreSQL 16.14``, ``version 10.11.19-MariaDB``.
    """
    version = re.search(r"\d+(?:\.\d+)*", server, re.ASCII)
    minimums = _DJANGO.get(_numbers(django) or (0, 0))
    if minimums is None or version is None:
        return None
    others = "MariaDB" if "mariadb" in server.lower() else "MySQL"
    product = "PostgreSQL" if server.startswith("PostgreSQL") else others
    least, found = minimums[product], version[0]
    enough = tuple(map(int, found.split("."))) >= least
    return DjangoNeeds(f"{product} {'.'.join(map(str, least))}", f"{product} {found}", enough)


def _numbers(version: str) -> tuple[int, int] | None:
    match = re.match(r"(\d+)(?:\.(\d+))?", version.rpartition("mysql_aurora.")[2].strip(), re.ASCII)
    return (int(match[1]), int(match[2] or 0)) if match else None
