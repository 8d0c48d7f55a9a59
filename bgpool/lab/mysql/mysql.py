"""MySQL, from 8.0.23 on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from bgpool.lab.binaries import Programs
from bgpool.lab.mysql.conf import COMMON, SMALL
from bgpool.lab.mysql.family import Family, ShutMode, Upstream

__all__ = ["MySQL"]

MAKE_TIMEOUT_S: Final = 120.0

TINY: Final = (
    *SMALL,
    "--loose-innodb-redo-log-capacity=8M",
    "--loose-mysqlx=0",
    # LOAD_FILE reads anywhere. The compiled-in directory may not exist, and then no server starts.
    "--secure-file-priv=",
)


@dataclass(frozen=True, slots=True)
class MySQL(Family):
    """A MySQL server.

    Attributes:
        share: The directory of its error messages and character sets; None for the program's default.
    """

    share: Path | None

    name = "MySQL"
    # The first version with CHANGE REPLICATION SOURCE TO.
    oldest = (8, 0, 23)

    @staticmethod
    def version_in(said: str) -> tuple[int, ...] | None:
        """Read the version from ``mysqld  Ver 8.4.3 for Linux on x86_64 (MySQL Community Server - GPL)``."""
        found = re.search(r"Ver (\d+)\.(\d+)\.(\d+)(?!\S*MariaDB)", said)
        return tuple(map(int, found.groups())) if found else None

    @classmethod
    def found(cls, programs: Programs, server: str, version: tuple[int, ...]) -> MySQL:
        """Return the family with the installation's error messages: the program may be built for another place."""
        share = programs.bin_dir.parent / "share"
        names = ("mysql", f"mysql-{version[0]}.{version[1]}", ".")
        places = (share / name for name in names)
        return cls(
            programs, server, version, next((p for p in places if (p / "english" / "errmsg.sys").is_file()), None)
        )

    def command(self, data_dir: Path, temporary_dir: Path) -> tuple[str, ...]:
        """See `Family`."""
        command = (self.server, "--no-defaults", f"--datadir={data_dir}", f"--tmpdir={temporary_dir}")
        if self.share is None:
            return command
        return *command, f"--lc-messages-dir={self.share}", f"--character-sets-dir={self.share / 'charsets'}"

    def make_template(self, data_dir: Path, temporary_dir: Path) -> None:
        """Initialize it with the server, including keys and certificates, which the servers on copies share."""
        self.programs.run(
            *self.command(data_dir, temporary_dir), "--initialize-insecure", *TINY, "--skip-log-bin",
            timeout_s=MAKE_TIMEOUT_S,
        )  # fmt: skip
        # The server's UUID, which must be different on every server for replication.
        (data_dir / "auto.cnf").unlink()

    @property
    def options(self) -> tuple[str, ...]:
        """See `Family`."""
        return (
            *TINY, *COMMON, "--gtid-mode=ON", "--enforce-gtid-consistency=ON", "--loose-replica-net-timeout=10",
            # A killed replica receives again what it had received but not replayed: its log may end in an incomplete
            # event.
            "--relay-log-recovery=1",
        )  # fmt: skip

    @property
    def offers_tls(self) -> bool:
        """True."""
        return True

    @property
    def replication_grants(self) -> str:
        """See `Family`. With CONNECTION_ADMIN the role can connect while the server is offline, too."""
        return "REPLICATION SLAVE, CONNECTION_ADMIN"

    ways = MappingProxyType(
        {
            "locked": ShutMode("read_only", locks_accounts=True),
            "open": ShutMode("read_only"),
            "super-read-only": ShutMode("super_read_only"),
            "offline": ShutMode("read_only", refusing="offline_mode"),
        }
    )

    def follow(self, upstream: Upstream) -> tuple[str, ...]:
        """See `Family`. Without TLS, the source's public key is used for a password that the source has not cached."""
        return (
            f"CHANGE REPLICATION SOURCE TO SOURCE_HOST='{upstream.address}', SOURCE_PORT={upstream.port}, "
            f"SOURCE_USER='{upstream.role}', SOURCE_PASSWORD='{upstream.password}', GET_SOURCE_PUBLIC_KEY=1, "
            "SOURCE_AUTO_POSITION=1, SOURCE_CONNECT_RETRY=1, SOURCE_HEARTBEAT_PERIOD=1",
            "START REPLICA",
        )

    stop_receiving = "STOP REPLICA IO_THREAD"
    stop_following = ("STOP REPLICA", "RESET REPLICA ALL")
    replica_status = "SHOW REPLICA STATUS"
    position = "SELECT @@GLOBAL.gtid_executed"
    wait_position = "SELECT WAIT_FOR_EXECUTED_GTID_SET(%s, %s)"
    arrived_column = "Retrieved_Gtid_Set"
