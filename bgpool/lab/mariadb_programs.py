"""Where MariaDB is: found, not bundled.

The server and the scripts of its system tables are enough. ``mariadb-install-db`` wants more than Debian's
``mariadb-server-core`` holds, and takes ten times as long as the scripts alone.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bgpool.core.engine import Engine
from bgpool.lab.binaries import VERSION_TIMEOUT_S, Account, Programs, account_for
from bgpool.lab.errors import LabError
from bgpool.lab.places import PATH, directories, place_of, unusable

__all__ = ["MariadbPrograms", "find_mariadb"]

SERVERS: Final = ("mariadbd", "mysqld")
PLACES: Final = ("/usr/sbin", "/usr/libexec", "/usr/local/sbin", "/usr/local/libexec", "/usr/local/mysql/bin")
OPTIONAL_ROOT: Final = Path("/opt")
SCRIPTS: Final = ("system_tables.sql", "performance_tables.sql")
"""``mysql_`` goes before these names, from version 11 on ``mariadb_``."""

ACCOUNTS: Final = ("mysql", "nobody")
"""Who runs MariaDB when the lab is root's: the first of these that exists."""

OLDEST: Final = (10, 6)
"""The first with JSON_TABLE, which the metadata are made with."""

HINT: Final = (
    "apt-get install mariadb-server-core (Debian, Ubuntu), dnf install mariadb-server (Fedora, RHEL) or "
    "brew install mariadb"
)


@dataclass(frozen=True, slots=True)
class MariadbPrograms:
    """MariaDB's server and what it needs to begin.

    Attributes:
        programs: As whom to run it.
        server: What it is called: ``mariadbd``, or ``mysqld``.
        share: Its error messages, and the scripts.
        scripts: They make the system tables.
    """

    programs: Programs
    server: str
    share: Path
    scripts: tuple[Path, ...]

    def command(self, data_dir: Path, temporary_dir: Path) -> tuple[str, ...]:
        """The server to start on *data_dir*, and its first arguments.

        Args:
            data_dir: Its data.
            temporary_dir: For it alone: a server that starts removes what looks like tables there.
        """
        return (
            self.server, "--no-defaults", f"--datadir={data_dir}", f"--tmpdir={temporary_dir}",
            f"--lc-messages-dir={self.share}",
        )  # fmt: skip

    @property
    def product(self) -> str:
        """What it is, such as ``MariaDB 10.11.14``."""
        return self.programs.product


def find_mariadb(place: str | Path | None = None) -> MariadbPrograms:
    """Find MariaDB and the account to run it as.

    Args:
        place: A directory that holds the server, or a ``bin`` or ``sbin`` with it; ``"path"`` for the PATH and then
            `PLACES` and ``/opt/*/bin``; None for what ``$BGPOOL_LAB_MYSQL`` says of these, or else as ``"path"``.

    Raises:
        ProgramsError: It was not found, cannot be run, or is too old.
        LabError: The lab is root's and none of `ACCOUNTS` exists.
    """
    chosen = place_of(Engine.MYSQL, place)
    candidates = list(dict.fromkeys(_on_path() if chosen in (None, PATH) else _below(chosen)))
    for candidate in candidates:
        scripts = _scripts_of(candidate) if candidate.is_file() else ()
        if scripts:
            account = account_for("MariaDB", ACCOUNTS)
            programs = Programs(candidate.parent, account, _product(candidate, account))
            return MariadbPrograms(programs, candidate.name, scripts[0].parent, scripts)
    looked_at = ", ".join(map(str, candidates)) or "nowhere to look"
    problem = f"no MariaDB server with its {' and '.join(SCRIPTS)} found; looked at: {looked_at}. {HINT}"
    raise unusable(Engine.MYSQL, problem)


def _product(server: Path, account: Account | None) -> str:
    """What *server* says that it is."""
    try:
        programs = Programs(server.parent, account)
        said = programs.run(server.name, "--no-defaults", "--version", timeout_s=VERSION_TIMEOUT_S).strip()
    except LabError as error:
        raise unusable(Engine.MYSQL, str(error)) from error
    found = re.search(r"Ver ((\d+)\.(\d+)[\d.]*)\S*-MariaDB", said)
    if found is None or (int(found[2]), int(found[3])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise unusable(Engine.MYSQL, f"the lab needs MariaDB {oldest} or newer; {server} is {said[:200]!r}. {HINT}")
    return f"MariaDB {found[1]}"


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


def _scripts_of(server: Path) -> tuple[Path, ...]:
    """The scripts that came with *server*, in the order in which they are run; none if any is missing."""
    share = server.parent.parent / "share"
    for directory in (share / "mysql", share / "mariadb", share):
        for prefix in ("mariadb_", "mysql_"):
            scripts = tuple(directory / f"{prefix}{name}" for name in SCRIPTS)
            if all(script.is_file() for script in scripts):
                return scripts
    return ()
