"""Rules for the code: layers import downwards, the core is pure, and exceptions from the linters have a reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import bgpool

pytestmark = pytest.mark.once

PACKAGE = Path(bgpool.__file__).parent

#: The layers, lowest first. A layer may import itself and lower layers. Two parts in one line do not import each other.
LAYERS = [
    {"_version"},
    {"base_errors"},
    {"errors"},
    {"core"},
    {"logs"},
    {
        "settings",
        "resolver",
        "aliases",
        "signals",
        "sockets",
        "descriptors",
        "tls",
        "mysql_logins",
        "mysql_driver",
        "mysql",
        "green_threads",
    },
    {"failures"},
    {"dsn"},
    {"auth", "callables"},
    {"segment"},
    {"report"},
    {"fleet"},
    {"monitor", "pools"},
    {"registry"},
    {"doctor"},
    {"__init__"},
    {"integrations", "metrics", "testing"},
    {"lab"},
    {"cli"},
    # Django's management commands are a command line, too.
    {"management"},
    {"__main__"},
]
#: Modules that would make the core depend on more than its arguments.
IMPURE = {"time", "os", "io", "socket", "threading", "subprocess", "random", "asyncio", "pathlib", "mmap", "ctypes"}
#: The functions that decide for callers, and the errors that callers get; the same for threads and for asyncio.
DECISIONS = {
    "decide", "step", "outcome_of", "saved", "doubt_of", "note_applied", "CommitOutcomeUnknown",
    "GreenHostRejected", "InheritedConnection", "SwitchoverHoldTimeout", "SwitchoverInterrupted",
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(part: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if part in names)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return "management" if "management" in parts else parts[0].removesuffix(".py")


def imported_part(name: str) -> str:
    """Return the part of bgpool that *name* belongs to; ``__init__`` for its public names."""
    parts = name.split(".")
    known = set().union(*LAYERS)
    return parts[1] if len(parts) > 1 and parts[1] in known else "__init__"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers_import_downwards(path: Path) -> None:
    mine = part_of(path)
    for name in imports(path):
        if name.split(".")[0] != "bgpool":
            continue
        other = imported_part(name)
        same = other in LAYERS[layer_of(mine)] and other != mine and "settings" not in LAYERS[layer_of(mine)]
        assert layer_of(other) <= layer_of(mine), f"{path.name} imports {name} from a layer above"
        assert not same, f"{path.name} imports {name} from the same layer"


@pytest.mark.parametrize("path", sorted((PACKAGE / "pools").rglob("*.py")), ids=lambda path: path.stem)
def test_pools_do_not_import_the_bus(path: Path) -> None:
    """Only a monitor, the doctor and the CLI connect to a fleet's bus. A worker would open one more connection."""
    for name in imports(path):
        assert name.split(".")[0] not in ("redis", "valkey"), f"{path.name} imports {name}"
        assert not name.startswith("bgpool.fleet"), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=lambda path: path.name)
def test_core_is_pure(path: Path) -> None:
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in IMPURE, f"{path.name} imports {name}"
        assert top != "bgpool" or name.startswith("bgpool.core"), f"{path.name} imports {name}"
    assert not re.search(r"\b(now|today|utcnow)\(\)", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted((PACKAGE / "pools").rglob("*.py")), ids=lambda path: path.stem)
def test_decisions_do_not_depend_on_asyncio(path: Path) -> None:
    """A module of the pools that imports asyncio imports no decision. So each decision is written once."""
    found = set(imports(path))
    if any(name.split(".")[0] in ("asyncio", "anyio", "trio", "uvloop") for name in found):
        assert not {name for name in found if name.rpartition(".")[2] in DECISIONS}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_prints_and_exceptions_have_reasons(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if part_of(path) not in ("cli", "management"):
        assert not re.search(r"^\s*print\(", text, re.MULTILINE)
    for line in text.splitlines():
        mark = re.search(r"# (?:type: ignore|noqa)\S*(.*)", line)
        assert mark is None or mark[1].strip().startswith("#"), f"no reason given: {line}"
