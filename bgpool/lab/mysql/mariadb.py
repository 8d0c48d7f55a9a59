"""MariaDB, from 10.6 on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bgpool.lab.binaries import Programs
from bgpool.lab.errors import LabError
from bgpool.lab.mysql.conf import COMMON, SMALL, SUPERUSER
from bgpool.lab.mysql.family import Family, ShutMode, Upstream

__all__ = ["MariaDB"]

MAKE_TIMEOUT_S: Final = 60.0

SCRIPTS: Final = ("system_tables.sql", "performance_tables.sql")
"""The names of scripts; their prefix is ``mysql_``, from version 11 on ``mariadb_``."""

ACCOUNT: Final = (
    f"""INSERT INTO mysql.global_priv VALUES ('localhost', '{SUPERUSER}', '{{"access":18446744073709551615}}');"""
)
"""The only superuser, without a password: the directory of the socket is closed to others."""

TINY: Final = (
    *SMALL,
    "--aria-pagecache-buffer-size=1M",
    "--innodb-log-file-size=8M",
    "--innodb-data-file-path=ibdata1:4M:autoextend",
    "--innodb-temp-data-file-path=ibtmp1:4M:autoextend",
)


@dataclass(frozen=True, slots=True)
class MariaDB(Family):
    """A MariaDB server.

    The program and the scripts of its system tables suffice. ``mariadb-install-db`` needs files that Debian's
    ``mariadb-server-core`` does not have, and takes ten times as long as the scripts alone.

    Attributes:
        share: The directory of its error messages.
        scripts: The scripts that make the system tables, in this order.
    """

    share: Path
    scripts: tuple[Path, ...]

    name = "MariaDB"
    # The first version with JSON_TABLE, which the metadata use.
    oldest = (10, 6)

    @staticmethod
    def version_in(said: str) -> tuple[int, ...] | None:
        """Read the version from ``mariadbd  Ver 10.11.6-MariaDB-0+deb12u1 for debian-linux-gnu``."""
        found = re.search(r"Ver (\d+)\.(\d+)\.(\d+)\S*-MariaDB", said)
        return tuple(map(int, found.groups())) if found else None

    @classmethod
    def found(cls, programs: Programs, server: str, version: tuple[int, ...]) -> MariaDB:
        """Return the family with the scripts of the same installation."""
        share = programs.bin_dir.parent / "share"
        for directory in (share / "mysql", share / "mariadb", share):
            for prefix in ("mariadb_", "mysql_"):
                scripts = tuple(directory / f"{prefix}{name}" for name in SCRIPTS)
                if all(script.is_file() for script in scripts):
                    return cls(programs, server, version, directory, scripts)
        raise LabError(f"{programs.bin_dir / server} has no {' and no '.join(SCRIPTS)} below {share}")

    def command(self, data_dir: Path, temporary_dir: Path) -> tuple[str, ...]:
        """See `Family`."""
        return (
            self.server, "--no-defaults", f"--datadir={data_dir}", f"--tmpdir={temporary_dir}",
            f"--lc-messages-dir={self.share}",
        )  # fmt: skip

    def make_template(self, data_dir: Path, temporary_dir: Path) -> None:
        """Run the scripts in a server that does nothing else."""
        statements = ["CREATE DATABASE mysql;", "USE mysql;"]
        statements += [script.read_text(encoding="utf-8") for script in self.scripts]
        self.programs.run(
            *self.command(data_dir, temporary_dir), "--bootstrap", *TINY, "--skip-log-bin", "--log-warnings=0",
            timeout_s=MAKE_TIMEOUT_S, stdin="\n".join((*statements, ACCOUNT, "")),
        )  # fmt: skip

    @property
    def options(self) -> tuple[str, ...]:
        """See `Family`."""
        return (
            *TINY,
            *COMMON,
            "--binlog-format=ROW",
            "--log-slave-updates",
            "--gtid-strict-mode",
            "--slave-net-timeout=10",
        )

    @property
    def offers_tls(self) -> bool:
        """True from 11.4 on."""
        return self.version >= (11, 4)

    @property
    def replication_grants(self) -> str:
        """See `Family`."""
        return "REPLICATION SLAVE"

    ways = MappingProxyType({"locked": ShutMode("read_only", locks_accounts=True), "open": ShutMode("read_only")})

    def follow(self, upstream: Upstream) -> tuple[str, ...]:
        """See `Family`."""
        return (
            f"CHANGE MASTER TO MASTER_HOST='{upstream.address}', MASTER_PORT={upstream.port}, "
            f"MASTER_USER='{upstream.role}', MASTER_PASSWORD='{upstream.password}', "
            "MASTER_USE_GTID=slave_pos, MASTER_CONNECT_RETRY=1, MASTER_HEARTBEAT_PERIOD=1",
            "START SLAVE",
        )

    stop_receiving = "STOP SLAVE IO_THREAD"
    stop_following = ("STOP SLAVE", "RESET SLAVE ALL")
    replica_status = "SHOW SLAVE STATUS"
    position = "SELECT @@GLOBAL.gtid_binlog_pos"
    wait_position = "SELECT MASTER_GTID_WAIT(%s, %s)"
    arrived_column = "Gtid_IO_Pos"
