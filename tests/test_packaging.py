"""The package's metadata: bounds of dependencies, the version, and the files that are tested."""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import bgpool

ROOT = Path(__file__).parents[1]

#: The extras that ``tox run -e lowest`` cannot install, with the factor of the environment that has them.
ELSEWHERE = {"django": "django"}


@pytest.fixture(scope="module")
def project() -> Any:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(factor: str) -> dict[str, Version]:
    """The versions that tox's environment ``lowest`` installs, or ``lowest-FACTOR``."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    found: dict[str, Version] = {}
    for line in tox["testenv:lowest{,-quick,-django}"]["deps"].split("\n"):
        condition, _, text = line.rpartition(": ")
        if "==" in text and condition in ("", factor or "!django"):
            name, _, version = text.partition("==")
            found[canonicalize_name(name)] = Version(version)
    return found


def lower_bounds(texts: list[str]) -> dict[str, Version]:
    """The lower bounds of the requirements in *texts*."""
    found: dict[str, Version] = {}
    for requirement in map(Requirement, texts):
        for specifier in requirement.specifier:
            if specifier.operator == ">=":
                found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


def test_every_lower_bound_is_what_the_lowest_environment_installs(project: Any) -> None:
    extras = project["optional-dependencies"]
    here = [text for name, texts in extras.items() if name not in ELSEWHERE for text in texts]
    bounds = lower_bounds(project["dependencies"] + here)
    assert {name: pins("").get(name) for name in bounds} == bounds
    for extra, factor in ELSEWHERE.items():
        bounds = lower_bounds(extras[extra])
        assert {name: pins(factor).get(name) for name in bounds} == bounds


def test_every_dependency_has_a_lower_bound(project: Any) -> None:
    texts = [text for texts in project["optional-dependencies"].values() for text in texts] + project["dependencies"]
    bounded = lower_bounds(texts)
    names = {canonicalize_name(Requirement(text).name) for text in texts}
    assert names - bounded.keys() == {"bgpool"}


def test_the_lowest_environment_installs_nothing_else(project: Any) -> None:
    texts = [text for texts in project["optional-dependencies"].values() for text in texts] + project["dependencies"]
    assert pins("").keys() - {"opentelemetry-sdk"} == lower_bounds(texts).keys()


def test_every_python_that_is_declared_has_quick_tests(project: Any) -> None:
    declared = re.findall(r"Python :: 3\.(\d+)", "\n".join(project["classifiers"]))
    environments = re.search(r"^\[testenv:py\{([\d,]+)\}-quick\]", (ROOT / "tox.ini").read_text("utf-8"), re.MULTILINE)
    assert environments is not None
    assert [f"3{minor}" for minor in declared] == environments[1].split(",")


def test_the_version_stands_in_one_place(project: Any) -> None:
    assert project["dynamic"] == ["version"]
    assert "version" not in project
    text = (ROOT / "bgpool" / "_version.py").read_text(encoding="utf-8") if (ROOT / "bgpool").is_dir() else ""
    assert not text or f'__version__ = "{bgpool.__version__}"' in text


def test_the_intended_package_is_tested() -> None:
    """``make package`` tests the installed wheel, every other run the checkout."""
    package = Path(bgpool.__file__).parent
    if "BGPOOL_TESTS_INSTALLED" in os.environ:
        assert package.parent.name == "site-packages"
        assert not (ROOT / "bgpool").exists()
    else:
        assert package == ROOT / "bgpool"
