"""Every command in the docs is valid: the CLI parses it, the extra exists, and the shell parses it."""

from __future__ import annotations

import configparser
import itertools
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main

from bgpool.cli.app import app
from tests.docs.pages import PAGES, ROOT, blocks, inline_commands

pytestmark = pytest.mark.once

#: The languages of blocks. No test here would check a block without a language.
LANGUAGES = {"python", "sh", "sql", "text", "ini", "yaml"}
#: Other projects' programs. Only the shell's syntax of their commands is checked.
FOREIGN = {"aws", "install", "kubectl", "openssl", "printenv", "psql", "python3", "django-admin", "sudo"}
#: Keywords of the shell.
SHELL = {"for", "done", "export", "."}
#: Programs that run the command that follows them.
BEFORE = {"ssh", "sudo", "kubectl"}
#: The values for the placeholders in running text.
PLACEHOLDER = {
    "ID": "1",
    "DIR": "/tmp",
    "N": "1",
    "SECONDS": "1",
    "DSN": "-",
    "NAME": "rds",
    "CMD": "true",
    "COMMAND": "true",
}

page_of = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def shell_lines(page: Path) -> list[str]:
    lines = [line for block in blocks(page, "sh") for line in block.text.splitlines()]
    return [line for line in lines if line.strip() and line.split()[0] not in SHELL and not line.startswith("#")]


def plain(command: str) -> list[str]:
    """Return the words of *command*, without the brackets of optional words and with values for placeholders."""
    words = shlex.split(re.sub(r"\.\.\.|[\[\]](?![^\s]*\")", "", command), comments=True)
    return [PLACEHOLDER.get(word, word) for word in words]


def check_bgpool(words: list[str], *, name_will_do: bool) -> None:
    """Check that the CLI parses *words*. No command is run."""
    if name_will_do and is_name(words):
        words = [*words, "--help"]
    with pytest.raises(SystemExit) as ended:
        COMMANDS.main(words)
    assert ended.value.code == 0, f"bgpool {shlex.join(words)}"


def is_name(words: list[str]) -> bool:
    """Return whether *words* are the name of a command, without arguments."""
    command = COMMANDS
    for word in words:
        command = getattr(command, "commands", {}).get(word)
    return command is not None


def _run_nothing(command: Any) -> Any:
    """Make *command* and its subcommands do nothing after parsing, and return it."""
    for below in getattr(command, "commands", {}).values():
        _run_nothing(below)
    if command.callback is not None:
        command.callback = lambda **_: None
    return command


COMMANDS = _run_nothing(typer.main.get_command(app))


def check_pip(words: list[str]) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = ", table, re.MULTILINE))
    for word in words:
        match = re.fullmatch(r"(?:bgpool|\.)\[(.*)\]", word)
        missing = set(match[1].split(",")) - extras if match else set()
        assert not missing, f"no such extra: {missing}"


def check(command: str, *, name_will_do: bool = False) -> None:
    """Check that a command of the docs is valid; with *name_will_do* the name of a command is enough."""
    words = list(itertools.takewhile(lambda word: word not in ("|", "||", "&&"), plain(command)))
    _, behind, reader = command.partition("| bgpool ")
    if behind:
        check(f"bgpool {reader}")
    if words[0] in BEFORE and "bgpool" in words:
        words = words[words.index("bgpool") :]
    match words:
        case ["bgpool", *words]:
            check_bgpool(words, name_will_do=name_will_do)
        case ["pip", "install", *words]:
            check_pip(words)
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), target
        case ["tox", "run", "-e", name]:
            assert f"[testenv:{name}]" in (ROOT / "tox.ini").read_text(encoding="utf-8")
        case [program, *_]:
            assert program in FOREIGN, f"{program}: no test checks this program"


@page_of
def test_every_block_has_a_known_language(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.place}: {block.language!r}"
    # The parser has found every fence.
    assert page.read_text(encoding="utf-8").count("```") == 2 * len(blocks(page))


@page_of
def test_headings_of_a_page_are_unique(page: Path) -> None:
    """Of two equal headings, links reach the first only."""
    headings = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("## ")]
    assert len(headings) == len(set(headings)), headings


@page_of
def test_shell_blocks(page: Path) -> None:
    for block in blocks(page, "sh"):
        done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{block.place}: {done.stderr}"
    for line in shell_lines(page):
        check(line)


@page_of
def test_units_of_systemd(page: Path) -> None:
    for block in blocks(page, "ini"):
        unit = configparser.ConfigParser(interpolation=None)
        unit.read_string(block.text)
        program, *words = shlex.split(unit["Service"]["ExecStart"])
        assert Path(program).is_absolute(), block.place
        assert Path(program).name == "bgpool", block.place
        check_bgpool(words, name_will_do=False)


@page_of
def test_commands_in_running_text(page: Path) -> None:
    for command in inline_commands(page):
        check(command, name_will_do=True)


def test_programs_that_the_pages_name_exist() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in re.findall(r"\b(?:benchmarks|tests)/[\w/]+(?:\.py)?", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    "wrong",
    [
        "bgpool lab sceneries",
        "bgpool demo --wrokers 4",
        "bgpool demo --workers many",
        "bgpool monitor",
        "bgpool wacht",
        'pip install "bgpool[clip]"',
        'pip install ".[clip]"',
        "make denmo",
        "tox run -e dogs",
        "rm -rf /",
    ],
)
def test_invalid_commands_are_found(wrong: str) -> None:
    with pytest.raises(AssertionError):
        check(wrong)
