"""Follow each start of docs/index.md as a reader does: write each file, and run each command."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, blocks

pytestmark = [pytest.mark.lab, pytest.mark.slow]

PAGE = ROOT / "docs" / "index.md"
#: The section that every start needs.
BEFORE = "Before the first start"
#: Each start, and the packages that its `pip install` adds to those of the extra `lab`.
STARTS = {
    "Plain pool": [],
    "SQLAlchemy": ["sqlalchemy"],
    "Django": ["django", "dj_database_url", "gunicorn"],
    "FastAPI": ["fastapi", "uvicorn"],
    "Celery": ["celery"],
    "MySQL": [],
}
#: The starts in every test run. The others take as long, and differ only in the framework.
ALWAYS = {"Plain pool", "Django"}
#: Options for a switchover of half the length.
QUICK = ["--scale", "0.5", "--warm-up", "0.5", "--cool-down", "0.5"]
#: Commands that prepare the machine. They are not run here; test_commands.py checks them.
PREPARE = {"pip", "sudo", "python3", "."}
#: The end of the title of a block that is appended to a file.
AT_THE_END = ", at the end"


@pytest.fixture
def port() -> int:
    """Return a port on which no process listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def directory() -> Iterator[Path]:
    """Provide the reader's empty directory."""
    with tempfile.TemporaryDirectory(prefix="bgpool-start-") as name:
        yield Path(name)


@pytest.fixture
def environment(port: int) -> dict[str, str]:
    """Return a reader's environment: this interpreter's commands come first, and the servers listen on *port*."""
    hidden = ("PG", "MYSQL", "BGPOOL", "DATABASE_URL", "DJANGO", "COLUMNS", "FORCE_COLOR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    lab = {name: value for name, value in os.environ.items() if name.startswith("BGPOOL_LAB_")}
    return (
        kept
        | lab
        | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
            "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{port}",
            "UVICORN_PORT": str(port),
        }
    )


def section(heading: str) -> list[Block]:
    return [block for block in blocks(PAGE) if block.heading == heading]


def write(block: Block, directory: Path) -> None:
    path = directory / block.title.removesuffix(AT_THE_END)
    before = path.read_text(encoding="utf-8") if block.title.endswith(AT_THE_END) else ""
    path.write_text(before + block.text, encoding="utf-8")


def shape(text: str) -> str:
    """Return *text* without the differences between runs: numbers, and blanks at the ends of lines."""
    return "\n".join(re.sub(r"\d+", "0", line).rstrip() for line in text.splitlines())


@pytest.mark.parametrize(
    "start",
    [start if start in ALWAYS else pytest.param(start, marks=pytest.mark.full) for start in STARTS],
)
def test_a_start_works_as_the_page_says(start: str, directory: Path, environment: dict[str, str], port: int) -> None:
    for package in STARTS[start]:
        pytest.importorskip(package)
    output, rehearsed = "", False
    for block in [*section(BEFORE), *section(start)]:
        if block.title:
            write(block, directory)
        for line in block.text.splitlines() if block.language == "sh" else []:
            words = shlex.split(line.replace(":8000", f":{port}"))
            if words[0] in PREPARE:
                continue
            if words[:2] == ["bgpool", "rehearse"]:
                words[2:2] = QUICK
                rehearsed = True
            done = subprocess.run(
                words, cwd=directory, env=environment, capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, done.stderr
            output = f"{done.stderr}\n{done.stdout}"
    assert rehearsed
    assert output.rstrip().endswith("WENT THROUGH")
    assert "Traceback" not in output
    assert "holding callers" in output or start == "Celery"
    for block in section(start):
        for line in block.text.splitlines() if block.language == "text" else []:
            assert line == "…" or shape(line) in shape(output), f"the output has no such line: {line!r}"


def test_every_start_is_in_the_list_at_the_top() -> None:
    top = PAGE.read_text(encoding="utf-8").partition("\n## ")[0]
    listed = re.findall(r"^\| .* \| \[(.*)\]\(#", top, re.MULTILINE)
    assert listed == list(STARTS)
    assert [heading for heading in STARTS if not any("rehearse" in block.text for block in section(heading))] == []
