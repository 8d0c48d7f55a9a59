"""The example project as its README starts it: its own tests, and the rehearsal on each engine."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from bgpool.core.engine import Engine
from bgpool.lab import Pair
from tests.cli.conftest import PROGRAM
from tests.docs.pages import ROOT, blocks
from tests.engines import Kit
from tests.servers.harness import free_port

pytestmark = [pytest.mark.lab]

EXAMPLE = ROOT / "docs/examples/django"
ROLE = "tester"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Without what concerns these tests, with the commands of this Python first."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "BGPOOL_", "DJANGO_"))
    }
    return inherited | {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "BGPOOL_RUN_DIR": str(tmp_path / "run"),
    }


def test_its_own_tests_pass_and_start_no_monitor(
    kit: Kit, pair: Pair, environment: dict[str, str], tmp_path: Path
) -> None:
    mysql = kit.engine is Engine.MYSQL
    pair.blue.execute(
        f"CREATE USER {ROLE} IDENTIFIED BY 'secret'"
        if mysql
        else f"CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD 'secret'"
    )
    if mysql:
        pair.blue.execute(f"GRANT ALL ON test_app.* TO {ROLE}")
    url = make_url(pair.dsn).set(username=ROLE, password="secret").update_query_dict({"bg_id": "shop"})
    more = {"DATABASE_URL": url.render_as_string(hide_password=False), "BGPOOL_RESOLVER": pair.resolver}
    try:
        done = subprocess.run(
            [sys.executable, "manage.py", "test", "--noinput"],
            cwd=EXAMPLE,
            env=environment | more,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        pair.blue.execute("DROP DATABASE IF EXISTS test_app")
        pair.blue.execute(f"DROP {'USER' if mysql else 'ROLE'} {ROLE}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ran 2 tests" in done.stderr
    assert not (tmp_path / "run").exists() or list((tmp_path / "run").iterdir()) == []


def rehearsals(page: Path) -> list[str]:
    """The rehearsals that *page* proposes."""
    lines = [line for block in blocks(page, "sh") for line in block.text.splitlines()]
    return [line for line in lines if line.startswith("bgpool rehearse")]


REHEARSALS = rehearsals(EXAMPLE / "README.md")
#: The second of them makes its tables itself.
OF_PAGE = rehearsals(ROOT / "docs/django.md")


def test_the_readme_and_the_page_propose_the_same_rehearsal() -> None:
    assert REHEARSALS[0] == OF_PAGE[0]
    assert ["manage.py migrate" in line for line in OF_PAGE] == [False, True]
    assert [" --engine mysql " in line for line in REHEARSALS] == [False, True]


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("line", [*REHEARSALS, OF_PAGE[1]], ids=["postgresql", "mysql", "migrated"])
def test_the_rehearsal_that_the_readme_or_the_page_proposes(line: str, environment: dict[str, str]) -> None:
    port = free_port()
    words = shlex.split(line.replace(":8000", f":{port}"))
    command = [*PROGRAM, "rehearse", "--json", "--scale", "0.5", *words[2:]]
    del environment["BGPOOL_RUN_DIR"]  # the rehearsal's own
    done = subprocess.run(
        command,
        cwd=EXAMPLE,
        env=environment | {"GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{port}"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["went_through"]
    assert report["outcome"] == "completed"
    assert report["requests"]["failed"] == 0
    assert report["requests"]["answered"] > 100
    assert report["connections_on_green"] > 0
    assert report["connections_on_blue"] == 0
