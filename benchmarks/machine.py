"""On what the figures were measured: they mean nothing without it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bgpool._version import __version__
from bgpool.lab.binaries import find_programs
from bgpool.lab.errors import LabError
from bgpool.lab.mysql.programs import find_family

__all__ = ["machine", "versions"]

_PACKAGES = (
    "psycopg", "psycopg-pool", "PyMySQL", "DBUtils", "filelock", "msgpack", "SQLAlchemy", "aws-advanced-python-wrapper",
)  # fmt: skip


def machine() -> dict[str, str]:
    """The processor, how many of them, the memory and the system."""
    cpu = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "?")
    memory_kb = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "processor": f"{cpu} ({platform.machine()})",
        "cores": str(os.cpu_count()),
        "memory": f"{memory_kb / 2**20:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Of everything that takes part, by name; what is not installed is left out."""
    found = {"Python": platform.python_version(), "bgpool": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    for name, find in (("PostgreSQL", _postgres), ("MariaDB", _mariadb)):
        try:
            found[name] = _said(find())
        except (LabError, OSError, subprocess.SubprocessError):
            continue
    return found


def _postgres() -> Path:
    return find_programs().bin_dir / "postgres"


def _mariadb() -> Path:
    found = find_family()
    return found.programs.bin_dir / found.server


def _said(program: Path) -> str:
    """The first word with which *program* tells its version that begins with a digit."""
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    return next((word.rstrip(",") for word in text.split() if word[0].isdigit()), text.strip())


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
