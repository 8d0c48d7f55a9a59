"""The machine and the versions of a measurement, without which its figures mean nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bgpool._version import __version__
from bgpool.core.engine import Engine
from bgpool.lab.errors import LabError
from bgpool.lab.server_factories import find_servers

__all__ = ["machine", "measured_on", "versions"]

_PACKAGES = (
    "psycopg", "psycopg-pool", "PyMySQL", "DBUtils", "filelock", "msgpack", "SQLAlchemy", "Django", "uvloop",
    "aws-advanced-python-wrapper",
)  # fmt: skip


def machine() -> dict[str, str]:
    """Return the processor, the number of cores, the memory and the system."""
    cpu = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "?")
    memory_kb = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "processor": f"{cpu} ({platform.machine()})",
        "cores": str(os.cpu_count()),
        "memory": f"{memory_kb / 2**20:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
    }


def measured_on() -> str:
    """Return the machine in one sentence, for the notes of a table that may be measured separately."""
    at = machine()
    return f"Measured on {at['processor']}, {at['cores']} cores."


def versions() -> dict[str, str]:
    """Return the version of everything that takes part and is installed, by name."""
    found = {"Python": platform.python_version(), "bgpool": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    for engine in Engine:
        try:
            name, _, number = find_servers(engine).partition(" ")
        except LabError:
            continue
        found[name] = number
    return found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
