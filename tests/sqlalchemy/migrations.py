"""A project whose tables Alembic keeps: files as ``alembic init`` makes them, and commands as people type them."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["Project", "Ran"]

_LIMIT_S = 60.0

#: The setting for env.py with the models.
_FILLED_IN = {
    "target_metadata = None": "from models import Base, ours\n\ntarget_metadata = Base.metadata",
    "target_metadata=target_metadata": "target_metadata=target_metadata, include_name=ours",
}

_MAIN = """
import shlex, sys
from alembic.config import main

for command in sys.argv[1:]:
    main(shlex.split(command), prog="alembic")
"""

_MODELS = '''\
from sqlalchemy import Integer, String
from sqlalchemy.orm import DeclarativeBase, mapped_column


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customer"
    id = mapped_column(Integer, primary_key=True)
    name = mapped_column(String(40), nullable=False)


def ours(name, kind, parents):
    """The database has tables of others, too."""
    return kind != "table" or name.startswith("customer")
'''

_ADD_TABLE = """\
revision = "{revision}"
down_revision = "{after}"

import sqlalchemy as sa
from alembic import op


def upgrade():
    op.create_table("{table}", sa.Column("id", sa.Integer, primary_key=True))


def downgrade():
    op.drop_table("{table}")
"""


class Ran(NamedTuple):
    """Completed commands.

    Attributes:
        output: Their output.
        ended_s: The time of their end, on the monotonic clock, in seconds.
    """

    status: int
    output: str
    ended_s: float


class Project:
    """A directory with alembic.ini, env.py, models and revisions."""

    def __init__(self, directory: Path, url: str, environment: Mapping[str, str]) -> None:
        """Have Alembic make the files in *directory*, which must not exist, and fill in what its comments ask for."""
        self.directory = directory
        self._environment = dict(environment)
        directory.mkdir()
        made = self.alembic("init migrations")
        assert made.status == 0, made.output
        ini = directory / "alembic.ini"
        # "%" begins an interpolation in an ini file.
        setting = f"sqlalchemy.url = {url.replace('%', '%%')}"
        text, count = re.subn(r"(?m)^sqlalchemy\.url = .*$", lambda _: setting, ini.read_text())
        assert count == 1
        ini.write_text(text)
        env = directory / "migrations" / "env.py"
        text = env.read_text()
        assert "engine_from_config" in text
        assert "poolclass=pool.NullPool" in text
        text = text.replace(
            "target_metadata = None", "from models import Base, ours\n\ntarget_metadata = Base.metadata"
        )
        env.write_text(
            text.replace("target_metadata=target_metadata", "target_metadata=target_metadata, include_name=ours")
        )
        (directory / "models.py").write_text(_MODELS)

    def alembic(self, *commands: str) -> Ran:
        """Run command lines of Alembic's, one after another, until one fails."""
        return self.end(self.begin(*commands))

    def begin(self, *commands: str) -> subprocess.Popen[str]:
        """Start them: in one process, which is what most of their time goes into."""
        return subprocess.Popen(
            [sys.executable, "-c", _MAIN, *commands],
            cwd=self.directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self, command: subprocess.Popen[str]) -> Ran:
        """Wait for commands; what takes too long is killed."""
        try:
            output, _ = command.communicate(timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            command.kill()
            output, _ = command.communicate()
        return Ran(command.returncode, output, time.monotonic())

    def add_revision(self, revision: str, after: str, table: str) -> None:
        """Write a revision that adds a table which no model has."""
        path = self.directory / "migrations" / "versions" / f"{revision}.py"
        path.write_text(_ADD_TABLE.format(revision=revision, after=after, table=table))
