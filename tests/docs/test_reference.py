"""Every public name is on a page of the reference, and every exception has its section on the page of errors."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import bgpool

PACKAGE = Path(bgpool.__file__).parent
DOCS = Path(__file__).parents[2] / "docs"
ERRORS = [
    name
    for name in bgpool.__all__
    if isinstance(value := getattr(bgpool, name), type) and issubclass(value, bgpool.Error)
]


def public(path: Path) -> list[str]:
    """The names of ``__all__`` in the module at *path*, which is not imported: some need a server around them."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def names() -> list[str]:
    """The public names of bgpool, of what applications import from its packages, and of the integrations."""
    integrations = PACKAGE / "integrations"
    modules = {
        "bgpool": PACKAGE / "__init__.py",
        "bgpool.lab": PACKAGE / "lab" / "__init__.py",
        "bgpool.metrics": PACKAGE / "metrics" / "__init__.py",
        "bgpool.metrics.prometheus": PACKAGE / "metrics" / "prometheus.py",
        "bgpool.testing": PACKAGE / "testing.py",
        "bgpool.integrations": integrations / "__init__.py",
        **{f"bgpool.integrations.{path.stem}": path for path in integrations.glob("*.py") if path.stem in OF_SERVERS},
        **{f"bgpool.integrations.{path.parent.name}": path for path in integrations.glob("*/__init__.py")},
    }
    return [f"{module}.{name}" for module, path in modules.items() for name in public(path)]


#: The modules of bgpool.integrations that applications and servers import; drivers is for the others.
OF_SERVERS = ("celery", "dbutils", "fastapi", "gunicorn", "uwsgi")
#: Modules, whose names are on a page.
MODULES = {"bgpool.auth": "bgpool.auth.RdsIam"}


def test_every_public_name_is_in_the_reference() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "reference").glob("*.md")))
    generated = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    # DBUtils' own names, and the version, are named alone.
    named = set(re.findall(r"`([\w.]+)`", text))
    found = names()
    assert len(found) > 60
    for name in found:
        short = name.removeprefix("bgpool.integrations.dbutils.")
        assert MODULES.get(name, name) in generated or short in named, f"{name} is on no page of docs/reference"


def test_every_page_of_the_reference_is_in_the_navigation() -> None:
    navigation = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    for path in (DOCS / "reference").glob("*.md"):
        assert f" reference/{path.name}\n" in navigation


@pytest.mark.parametrize("name", ERRORS)
def test_every_exception_has_a_row_and_a_section(name: str) -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    assert f"[`{name}`](#{name.lower()})" in page
    section = page.split(f"\n### `{name}`\n")[1].split("\n### ")[0].split("\n## ")[0]
    if name not in ("Error", "SwitchoverError"):
        for heading in ("**When:**", "**Applied:**", "**The application**", "```python", "**The operator**"):
            assert heading in section
