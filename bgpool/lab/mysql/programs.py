"""The search for MariaDB or MySQL, which are found on the machine and not bundled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bgpool.core.engine import Engine
from bgpool.lab.binaries import VERSION_TIMEOUT_S, Programs, account_for
from bgpool.lab.errors import LabError
from bgpool.lab.mysql.family import Family
from bgpool.lab.mysql.mariadb import MariaDB
from bgpool.lab.mysql.mysql import MySQL
from bgpool.lab.program_paths import PATH, directories, place_of, unusable

__all__ = ["FAMILIES", "find_family"]

FAMILIES: Final[tuple[type[Family], ...]] = (MariaDB, MySQL)
"""In the order of preference."""

SERVERS: Final = ("mariadbd", "mysqld")
PLACES: Final = ("/usr/sbin", "/usr/libexec", "/usr/local/sbin", "/usr/local/libexec", "/usr/local/mysql/bin")
OPTIONAL_ROOT: Final = Path("/opt")

ACCOUNTS: Final = ("mysql", "nobody")
"""The accounts that run the servers when the lab is root's: the first of these that exists."""

HINT: Final = (
    "apt-get install mariadb-server-core (Debian, Ubuntu), dnf install mariadb-server (Fedora, RHEL) or "
    "brew install mariadb"
)


def find_family(place: str | Path | None = None) -> Family:
    """Find a server of MariaDB or MySQL, and the account to run it as; MariaDB if both exist.

    Args:
        place: A directory with the server, or with a ``bin`` or ``sbin`` that has it; ``"path"`` for the PATH and then
            `PLACES` and ``/opt/*/bin``. None for the value of ``$BGPOOL_LAB_MYSQL``, or else the same as ``"path"``.

    Raises:
        ProgramsError: None was found that the lab can use; the message names every place, and the problem with each
            program that was there.
        LabError: The lab is root's and none of `ACCOUNTS` exists.
    """
    chosen = place_of(Engine.MYSQL, place)
    candidates = list(dict.fromkeys(_on_path() if chosen in (None, PATH) else _below(chosen)))
    account = account_for("MySQL", ACCOUNTS)
    found: list[Family] = []
    refused: list[str] = []
    for candidate in filter(Path.is_file, candidates):
        try:
            family = _family_of(Programs(candidate.parent, account), candidate)
        except LabError as error:
            refused.append(str(error))
            continue
        if isinstance(family, FAMILIES[0]):
            return family
        found.append(family)
    if found:
        return found[0]
    looked_at = ", ".join(map(str, candidates)) or "nowhere to look"
    reasons = "".join(f"; {reason}" for reason in refused)
    raise unusable(Engine.MYSQL, f"no MariaDB or MySQL server found; looked at: {looked_at}{reasons}. {HINT}")


def _family_of(programs: Programs, server: Path) -> Family:
    """Return the family of the program *server*.

    Raises:
        LabError: It cannot be run, is of no known family, too old, or not complete.
    """
    said = programs.run(server.name, "--no-defaults", "--version", timeout_s=VERSION_TIMEOUT_S).strip()
    for family in FAMILIES:
        version = family.version_in(said)
        if version is not None:
            family.check(version, server)
            return family.found(programs, server.name, version)
    raise LabError(f"{server} is neither MariaDB nor MySQL: {said[:200]!r}")


def _on_path() -> Iterator[Path]:
    for name in SERVERS:
        on_path = shutil.which(name)
        if on_path is not None:
            yield Path(on_path).resolve()
        for directory in (*map(Path, PLACES), *sorted(OPTIONAL_ROOT.glob("*/bin"))):
            yield directory / name


def _below(place: str) -> Iterator[Path]:
    for name in SERVERS:
        for directory in directories(Engine.MYSQL, place):
            yield (directory / name).resolve()
