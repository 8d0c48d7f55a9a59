"""Every parameter that a page names is in the table of parameters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT

pytestmark = pytest.mark.once

_TABLE = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8").partition("\n|---|")[2].partition("\n\n")[0]
NAMES = set(re.findall(r"^\| `(bg_\w+)` \|", _TABLE, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_parameters_of_a_page_exist(page: Path) -> None:
    named = set(re.findall(r"\bbg_[a-z]\w*[a-z]\b", page.read_text(encoding="utf-8")))
    assert named - {"bg_id", "bg_ids"} <= NAMES
