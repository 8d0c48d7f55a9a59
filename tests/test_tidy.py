"""The house stays tidy: layers import downwards, the core is pure, and exceptions to the rules have a reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import bgpool

pytestmark = pytest.mark.once

PACKAGE = Path(bgpool.__file__).parent

#: Each layer may import itself and those before it; of two in one line, neither imports the other.
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
    # Django's management commands are a command line as well.
    {"management"},
    {"__main__"},
]
#: What would make the core depend on anything but its arguments.
IMPURE = {"time", "os", "io", "socket", "threading", "subprocess", "random", "asyncio", "pathlib", "mmap", "ctypes"}
#: What decides for callers, and what tells them of it: of a pool whose callers await as of one for threads.
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
    """The part of bgpool that *name* belongs to; ``__init__`` for its public names."""
    parts = name.split(".")
    known = set().union(*LAYERS)
    return parts[1] if len(parts) > 1 and parts[1] in known else "__init__"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers(path: Path) -> None:
    mine = part_of(path)
    for name in imports(path):
        if name.split(".")[0] != "bgpool":
            continue
        other = imported_part(name)
        beside = other in LAYERS[layer_of(mine)] and other != mine and "settings" not in LAYERS[layer_of(mine)]
        assert layer_of(other) <= layer_of(mine), f"{path.name} imports {name} from a layer above"
        assert not beside, f"{path.name} imports {name} from beside"


@pytest.mark.parametrize("path", sorted((PACKAGE / "pools").rglob("*.py")), ids=lambda path: path.stem)
def test_workers_know_no_bus(path: Path) -> None:
    """Only a monitor, the doctor and the command line talk to a fleet: a worker would have one connection more."""
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
def test_what_is_decided_is_written_once(path: Path) -> None:
    """A module of the pools that knows of asyncio decides nothing, and one that decides knows nothing of it."""
    found = set(imports(path))
    if any(name.split(".")[0] in ("asyncio", "anyio", "trio", "uvloop") for name in found):
        assert not {name for name in found if name.rpartition(".")[2] in DECISIONS}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_printed_and_exceptions_have_reasons(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if part_of(path) not in ("cli", "management"):
        assert not re.search(r"^\s*print\(", text, re.MULTILINE)
    for line in text.splitlines():
        mark = re.search(r"# (?:type: ignore|noqa)\S*(.*)", line)
        assert mark is None or mark[1].strip().startswith("#"), f"no reason given: {line}"
