"""MariaDB and MySQL: the lab recognizes the family of a program and uses that family's commands and options."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bgpool.cli.app import app
from bgpool.core.engine import Engine
from bgpool.lab import LabError, Pair, ProgramsError
from bgpool.lab.binaries import Programs
from bgpool.lab.mysql.conf import setup_script
from bgpool.lab.mysql.family import Family, Upstream
from bgpool.lab.mysql.mariadb import SCRIPTS, MariaDB
from bgpool.lab.mysql.mysql import MySQL
from bgpool.lab.mysql.programs import find_family
from bgpool.lab.server import Setup
from bgpool.lab.server_factories import find_servers

MARIADB = "mariadbd  Ver 10.11.14-MariaDB-0+deb12u2 for debian-linux-gnu on x86_64 (Debian 12)"
MYSQL = "/usr/sbin/mysqld  Ver 8.4.3 for Linux on x86_64 (MySQL Community Server - GPL)"
UPSTREAM = Upstream("127.0.0.2", 20000, "replica", "secret")


def install(place: Path, said: str, server: str = "mysqld", *, scripts: bool = False, messages: bool = False) -> Path:
    """Create a server program below *place* that prints its version, and its accompanying files."""
    for directory in (place / "sbin", place / "share" / "mysql" / "english"):
        directory.mkdir(parents=True, exist_ok=True)
    program = place / "sbin" / server
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    share = place / "share" / "mysql"
    for name in SCRIPTS if scripts else ():
        (share / f"mysql_{name}").touch()
    if messages:
        (share / "english" / "errmsg.sys").touch()
    return place


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the servers' account can enter: pytest's own are below one that it cannot enter."""
    with tempfile.TemporaryDirectory(prefix="installed-") as made:
        directory = Path(made)
        directory.chmod(0o755)
        yield directory


@pytest.mark.parametrize(
    ("said", "mariadb", "mysql"),
    [
        (MARIADB, (10, 11, 14), None),
        ("mysqld  Ver 10.6.18-MariaDB-log for Linux on x86_64 (MariaDB Server)", (10, 6, 18), None),
        ("/x/mariadbd  Ver 11.8.9-MariaDB-4 from Debian for debian-linux-gnu on x86_64 (--)", (11, 8, 9), None),
        (MYSQL, None, (8, 4, 3)),
        ("/usr/sbin/mysqld  Ver 8.0.40-0ubuntu0.24.04.1 for Linux on x86_64 ((Ubuntu))", None, (8, 0, 40)),
        ("/usr/sbin/mysqld  Ver 9.7.4-2 for Linux on x86_64 ((Debian))", None, (9, 7, 4)),
        ("postgres (PostgreSQL) 16.4", None, None),
    ],
)
def test_versions_are_recognized(said: str, mariadb: tuple[int, ...] | None, mysql: tuple[int, ...] | None) -> None:
    assert MariaDB.version_in(said) == mariadb
    assert MySQL.version_in(said) == mysql


def test_mariadb_is_preferred(place: Path) -> None:
    install(place, MYSQL)
    assert find_servers(Engine.MYSQL, place) == "MySQL 8.4.3"
    install(place, MARIADB, "mariadbd", scripts=True)
    assert find_servers(Engine.MYSQL, place) == "MariaDB 10.11.14"


def test_mariadb_named_mysqld_is_recognized(place: Path) -> None:
    assert isinstance(find_family(install(place, MARIADB, scripts=True)), MariaDB)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("mysqld  Ver 8.0.19 for Linux on x86_64 (MySQL)", "is MySQL 8.0.19: the lab needs 8.0.23 or newer"),
        ("mariadbd  Ver 10.5.1-MariaDB for Linux on x86_64", "is MariaDB 10.5.1: the lab needs 10.6 or newer"),
        (MARIADB, "has no system_tables.sql and no performance_tables.sql"),
        ("hello", "is neither MariaDB nor MySQL: 'hello'"),
    ],
)
def test_an_unusable_server_is_refused_with_the_reason(place: Path, said: str, problem: str) -> None:
    with pytest.raises(ProgramsError) as failed:
        find_family(install(place, said))
    assert f"{place / 'sbin' / 'mysqld'} {problem}" in str(failed.value)
    assert "apt-get install" in str(failed.value)


def test_mysql_gets_the_directory_of_its_messages(place: Path) -> None:
    def messages() -> list[str]:
        command = find_family(place).command(Path("/data"), Path("/tmp"))
        return [argument for argument in command if argument.startswith("--lc-messages-dir")]

    install(place, MYSQL)
    assert messages() == []
    install(place, MYSQL, messages=True)
    assert messages() == [f"--lc-messages-dir={place / 'share' / 'mysql'}"]


def families() -> list[Family]:
    programs = Programs(Path("/usr/sbin"))
    return [MariaDB(programs, "mariadbd", (10, 11, 14), Path("/share"), ()), MySQL(programs, "mysqld", (8, 4, 3), None)]


def test_statements_avoid_words_that_the_newest_mysql_has_dropped() -> None:
    _, mysql = families()
    words = " ".join((*mysql.options, *mysql.follow(UPSTREAM), mysql.stop_receiving, *mysql.stop_following))
    for dropped in ("master", "slave", "--expire-logs-days", "--binlog-format", "mysql_native_password"):
        assert dropped not in words.lower()


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_every_family_has_options_and_grants(family: Family) -> None:
    assert "locked" in family.ways
    assert UPSTREAM.address in family.follow(UPSTREAM)[0]
    assert len(set(family.options)) == len(family.options)
    setup = Setup("rds", "app", {"app": "a", "monitor": "m"}, ["app"], ["monitor"], "l")
    script = setup_script(setup, family.replication_grants)
    assert f"GRANT {family.replication_grants} ON *.* TO 'replica'@'%';\n" in script
    assert "GRANT SELECT ON mysql.rds_topology TO 'monitor'@'%';\n" in script


def test_a_replica_of_mysql_may_connect_while_its_source_is_offline() -> None:
    assert "CONNECTION_ADMIN" in families()[1].replication_grants


def test_a_way_of_shutting_that_the_servers_do_not_have_is_refused(place: Path) -> None:
    with pytest.raises(ValueError, match=r"shut must be one of 'locked'.* not 'gone'"):
        Pair(engine="mysql", shut="gone")  # type: ignore[arg-type]  # must be refused
    with pytest.raises(ValueError, match="'locked' for PostgreSQL, not 'offline'"):
        Pair(shut="offline")
    install(place, MARIADB, scripts=True)
    with pytest.raises(LabError, match=r"MariaDB 10\.11\.14 cannot be shut by 'offline'; it has 'locked', 'open'"):
        Pair(engine="mysql", programs=place, shut="offline").open()
    command = ["lab", "run", "rds", "--engine", "mysql", "--programs", str(place), "--shut", "offline"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        "MariaDB 10.11.14 cannot be shut by 'offline'; it has 'locked', 'open'; "
        "name another directory with --programs DIR or $BGPOOL_LAB_MYSQL"
    )
