"""The choice of the lab's servers: the configured directory, or an error that names the problem with it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bgpool.cli.app import app
from bgpool.core.engine import Engine
from bgpool.lab import LabError, Pair, ProgramsError
from bgpool.lab.binaries import PROGRAMS, WHEEL, find_programs
from bgpool.lab.program_paths import VARIABLES
from bgpool.lab.server_factories import find_servers

COMMANDS = (("demo",), ("lab", "run", "rds"), ("lab", "chaos", "--seconds", "1"), ("rehearse",))

each_engine = pytest.mark.parametrize("engine", Engine, ids=lambda engine: engine.value)


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def place() -> Path:
    """A directory with a ``bin`` that all accounts may enter."""
    try:
        return Path(find_programs().bin_dir).parent
    except ProgramsError:
        # The wheel does not exist for this Python or C library.
        return Path(find_programs("path").bin_dir).parent


def programs_that_say(directory: Path, text: str, *names: str) -> Path:
    """Return *directory*, with programs of those names that print *text*."""
    directory.mkdir()
    for name in names:
        (directory / name).write_text(f"#!/bin/sh\necho '{text}'\n")
        (directory / name).chmod(0o755)
    return directory


def test_a_directory_with_a_bin_or_the_bin_itself_is_accepted(place: Path) -> None:
    usual = find_servers(Engine.POSTGRESQL, place / "bin")
    assert usual.startswith("PostgreSQL ")
    if importlib.util.find_spec(WHEEL) is not None:
        assert find_servers(Engine.POSTGRESQL) == usual
    assert find_servers(Engine.POSTGRESQL, place) == find_servers(Engine.POSTGRESQL, str(place / "bin")) == usual


def test_the_variable_names_it_and_the_argument_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = programs_that_say(tmp_path / "named", "postgres (PostgreSQL) 17.2 (Debian)", *PROGRAMS)
    given = programs_that_say(tmp_path / "given", "postgres (PostgreSQL) 19beta1", *PROGRAMS)
    monkeypatch.setenv("BGPOOL_LAB_POSTGRESQL", str(named))
    assert find_servers(Engine.POSTGRESQL) == "PostgreSQL 17.2"
    assert find_servers(Engine.POSTGRESQL, given) == "PostgreSQL 19beta1"
    monkeypatch.setenv("BGPOOL_LAB_POSTGRESQL", "")
    if importlib.util.find_spec(WHEEL) is None:
        with pytest.raises(ProgramsError, match=r"bgpool\[demo\]"):
            find_servers(Engine.POSTGRESQL)
        return
    assert find_servers(Engine.POSTGRESQL) not in ("PostgreSQL 17.2", "PostgreSQL 19beta1")


@each_engine
def test_a_missing_or_empty_directory_is_refused(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (tmp_path / "gone", tmp_path):
        with pytest.raises(ProgramsError) as failed:
            find_servers(engine, place)
        assert str(place) in str(failed.value)
        assert f'programs="DIRECTORY" or ${VARIABLES[engine]}' in str(failed.value)
        assert "\n" not in str(failed.value)
    monkeypatch.setenv(VARIABLES[engine], str(tmp_path / "gone"))
    with pytest.raises(LabError, match="gone' is not a directory"), Pair(engine=engine):
        pass


@pytest.mark.parametrize("said", ["postgres (PostgreSQL) 12.22", "not a server at all"])
def test_a_program_that_is_not_postgresql_or_too_old_is_refused(said: str, tmp_path: Path) -> None:
    place = programs_that_say(tmp_path / "bin", said, *PROGRAMS)
    with pytest.raises(ProgramsError, match="PostgreSQL 13 or newer") as failed:
        find_servers(Engine.POSTGRESQL, tmp_path)
    assert f"{place / 'postgres'} is '{said}'" in str(failed.value)


@each_engine
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_commands_name_their_option(command: tuple[str, ...], engine: Engine, tmp_path: Path) -> None:
    place = str(tmp_path / "gone")
    rest = ["--log", str(tmp_path / "log"), "true"] if command[0] == "rehearse" else []
    done = CliRunner().invoke(app, [*command, "--engine", engine.value, "--programs", place, *rest])
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == (
        f"{place!r} is not a directory: the one with the servers' programs, or 'path'; "
        f"name another directory with --programs DIR or ${VARIABLES[engine]}"
    )


@pytest.mark.parametrize("tls", ["maybe", ""])
def test_an_unknown_tls_mode_is_refused(tls: str) -> None:
    done = CliRunner().invoke(app, ["lab", "run", "rds", "--tls", tls])
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == f"tls must be one of 'offered', 'verified', 'disabled', not {tls!r}"


@each_engine
def test_an_empty_name_is_refused(engine: Engine) -> None:
    with pytest.raises(ProgramsError, match="'' is not a directory"):
        find_servers(engine, "")


def test_make_mysql_names_the_remedy_if_the_download_fails(tmp_path: Path) -> None:
    programs = programs_that_say(tmp_path / "bin", "", "apt-get")
    (programs / "apt-get").write_text("#!/bin/sh\nexit 100\n")
    script = Path(__file__).parent.parent / "fetch_mysql.sh"
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", script, tmp_path / "mysql"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("make mysql MYSQLD=/path/to/mysqld\n")
    assert not (tmp_path / "mysql" / "bin" / "mysqld").exists()


def test_a_rehearsal_without_programs_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGPOOL_LAB_MYSQL", str(tmp_path))
    done = CliRunner().invoke(app, ["rehearse", "--engine", "mysql", "--log", str(tmp_path / "log"), "true"])
    assert done.exit_code == 3
    assert "--programs DIR" in done.stderr
