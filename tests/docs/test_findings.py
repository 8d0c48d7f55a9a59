"""The scripts in ``findings`` have one form, and the table of the folder's README lists them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

pytestmark = pytest.mark.once

FOLDER = ROOT / "findings"
SCRIPTS = sorted(FOLDER.glob("*.sh"))


def title(script: Path) -> str:
    """The first sentence of the script's header, without line breaks."""
    lines = script.read_text(encoding="utf-8").splitlines()[1:]
    return " ".join(line[1:].strip() for line in lines[: lines.index("#")])


def test_the_table_lists_every_script() -> None:
    rows = re.findall(r"^\| \[(.+)\]\((.+)\) \| (.+) \|$", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE)
    assert rows == [(script.name, script.name, title(script)) for script in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_has_the_form_of_the_others(script: Path) -> None:
    lines = script.read_text(encoding="utf-8").splitlines()
    header = lines[1 : next(number for number, line in enumerate(lines) if line.startswith("set -eu"))]
    assert lines[0] == "#!/usr/bin/env bash"
    assert all(line.startswith("#") for line in header)
    keys = re.findall(r"^# (Versions|Behaviour|Expected|Seen)\b", "\n".join(header), re.MULTILINE)
    assert keys == ["Versions", "Behaviour", "Expected", "Seen"]
    assert os.access(script, os.X_OK)
