"""Checks of this host: software, run directory, monitor. Nothing is created or changed."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import stat
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

import psycopg

from bgpool._version import __version__
from bgpool.core.limits import HEARTBEAT_STALE_S, HISTORY_BYTES
from bgpool.core.observations import BLIND, Visibility
from bgpool.core.phase import Role
from bgpool.doctor.case import Case
from bgpool.doctor.findings import Checks, Verdict, failed, not_checked, ok, warning
from bgpool.errors import ConfigurationError, SegmentError
from bgpool.report.reasons import of_deployment
from bgpool.segment import layout, table
from bgpool.segment.paths import MEMORY, file_mode, look_in, memory_dir, temporary_dir
from bgpool.segment.reader import SegmentMap
from bgpool.settings import DISABLE, is_disabled

__all__ = ["existing", "host_checks"]

host_checks: Final[Checks[Case]] = Checks()

#: Two segments while one monitor follows another, the table, the monitor's two logs of 1 MB, and the history.
NEEDED_BYTES: Final = 2 * layout.FILE_BYTES + table.FILE_BYTES + 2_000_000 + HISTORY_BYTES
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_ELSEWHERE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "lustre", "fuse.sshfs"})
_TESTED: Final = ((3, 10), (3, 15))


@host_checks.check("software", "Which versions are these?")
def _software(_case: Case) -> Verdict:
    resolver = "with" if importlib.util.find_spec("dns") else "without"
    text = (
        f"bgpool {__version__}, Python {platform.python_version()}, "
        f"psycopg {version('psycopg')} ({psycopg.pq.__impl__}, libpq {psycopg.pq.version()}), "
        f"psycopg_pool {version('psycopg_pool')}, PyMySQL {version('PyMySQL')}, DBUtils {version('DBUtils')}, "
        f"{resolver} dnspython"
    )
    first, last = _TESTED
    if first <= sys.version_info[:2] <= last:
        return ok(text)
    return warning(text, f"bgpool is tested with Python {first[0]}.{first[1]} to {last[0]}.{last[1]}")


@host_checks.check("disabled", "Is bgpool switched on?")
def _disabled(_case: Case) -> Verdict:
    value = os.environ.get(DISABLE, "")
    try:
        disabled = is_disabled()
    except ConfigurationError as error:
        return failed(str(error), f"unset {DISABLE}")
    if disabled:
        return failed(
            f"{DISABLE}={value}: every pool with this environment is a plain pool", f"unset {DISABLE} and restart"
        )
    return ok(f"{DISABLE} is not set" if not value else f"{DISABLE}={value}")


@host_checks.check("run directory", "Is there a run directory that no other user can write to?")
def _run_directory(case: Case) -> Verdict:
    path, user = case.run_dir, os.geteuid()
    try:
        found = path.lstat()
    except FileNotFoundError:
        parent = existing(path)
        if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
            return ok(f"{path} is not there yet and can be made, in {parent}")
        return failed(f"{path} is not there, and user {user} cannot make it in {parent}", _another(path))
    except OSError as error:
        return failed(f"{path}: {error.strerror}", _another(path))
    try:
        file_mode(path)
    except SegmentError as error:
        mend = f"chmod 0700 {shlex.quote(str(path))}; or " if _is_ours_to_chmod(found) else ""
        return failed(str(error), mend + _another(path))
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return failed(f"user {user} may not write to {path}", f"have the user join its group; or {_another(path)}")
    return ok(f"{path}, mode {found.st_mode & 0o7777:04o}, owner {found.st_uid}")


def _is_ours_to_chmod(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def _another(path: Path) -> str:
    """Return the remedy that needs no other user if *path* cannot be used: another directory."""
    for parent in dict.fromkeys((memory_dir(), temporary_dir())):
        place = look_in(parent)
        if place != path and os.access(existing(place), os.W_OK | os.X_OK):
            return f"set BGPOOL_RUN_DIR={shlex.quote(str(parent))} (or bg_run_dir), and {place} is used"
    return f"set BGPOOL_RUN_DIR (or bg_run_dir) to a directory that user {os.geteuid()} can write to"


@host_checks.check("file system", "Is the run directory in memory?")
def _file_system(case: Case) -> Verdict:
    place = existing(case.run_dir)
    kind = _file_system_of(place)
    if kind is None:
        return not_checked("this system does not tell what is mounted where")
    shm = memory_dir() == MEMORY
    elsewhere = f"BGPOOL_RUN_DIR={MEMORY}/bgpool-{os.geteuid()}" if shm else "have BGPOOL_RUN_DIR name a tmpfs"
    if kind in _ELSEWHERE:
        return failed(f"{place} is on {kind}: mappings and locks are not this host's own", elsewhere)
    if kind not in _IN_MEMORY:
        return warning(f"{place} is on {kind}: a heartbeat may have to wait for a disk", elsewhere)
    return ok(f"{place} is on {kind}")


@host_checks.check("room", "Is there room for its files?")
def _room(case: Case) -> Verdict:
    place = existing(case.run_dir)
    try:
        usage, files = shutil.disk_usage(place), os.statvfs(place)
    except OSError as error:
        return not_checked(f"{place}: {error.strerror}")
    text = f"{usage.free / 1e6:.1f} MB free in {place}, {NEEDED_BYTES / 1e6:.1f} MB needed for each bg_id"
    if files.f_files and not files.f_favail:
        return failed(
            f"no file more can be made in {place}", "remove some, or have BGPOOL_RUN_DIR name another directory"
        )
    if usage.free < NEEDED_BYTES:
        return failed(text, "make room, or have BGPOOL_RUN_DIR name another directory")
    return ok(text)


@host_checks.check("monitor", "Is a monitor alive?")
def _monitor(case: Case) -> Verdict:
    try:
        mapped = SegmentMap(case.files)
    except FileNotFoundError:
        if not case.rows:
            return not_checked(
                f"no process uses bg_id {case.settings.bg_id!r} on this host yet; the first checkout starts one"
            )
        return _no_monitor(case, "none has ever written")
    except SegmentError as error:
        return failed(str(error), "see run directory; a segment of another boot goes away with the first checkout")
    age_s = mapped.heartbeat_age_s()
    if age_s > HEARTBEAT_STALE_S:
        if not case.rows:
            return not_checked(
                f"no process uses bg_id {case.settings.bg_id!r} on this host now; the first checkout starts one"
            )
        return _no_monitor(case, f"the last heartbeat is {age_s:.1f} s old")
    return ok(f"pid {mapped.header.pid}, term {mapped.header.term}, processes: {len(case.rows)}")


@host_checks.check("ready", "Has the monitor seen all that a switchover of this DSN takes?")
def _ready(case: Case) -> Verdict:
    try:
        mapped = SegmentMap(case.files)
        found = mapped.read()
    except (FileNotFoundError, SegmentError):
        found = None
    if found is None or mapped.heartbeat_age_s() > HEARTBEAT_STALE_S:
        return not_checked("there is no monitor, see monitor")
    snapshot, endpoint = found[1], case.alias.endpoint or case.dsn.endpoint
    if snapshot.hosts and snapshot.host(endpoint) is None:
        blue = ", ".join(host.name for host in snapshot.hosts_of(Role.SOURCE))
        return failed(
            f"the monitor of bg_id {case.settings.bg_id!r} does not watch {endpoint or 'the local socket'}, but {blue}",
            "give this database a bg_id of its own, or connect to an endpoint of that deployment",
        )
    host = snapshot.host(endpoint)
    if host is not None and host.port not in (0, case.dsn.port):
        return warning(
            f"the DSN has port {case.dsn.port}, {endpoint} has port {host.port}: a pool behind a proxy takes no part",
            "connect to the endpoint itself, or leave switchovers to the proxy",
        )
    if missing := tuple(of_deployment(snapshot)):
        return warning(
            f"not ready: {'; '.join(missing)}",
            "wait until it is; if it stays so, the findings above and below tell why",
        )
    return ok(f"{snapshot.phase.name}, blue endpoints with their green ones: {len(snapshot.twins)}")


@host_checks.check("parameters", "Does the monitor watch with parameters that show it the metadata, and do this DSN's?")
def _parameters(case: Case) -> Verdict:
    try:
        found = SegmentMap(case.files).read()
    except (FileNotFoundError, SegmentError):
        found = None
    if found is None or not found[1].observations:
        return not_checked("no monitor has said what it watches with")
    current, parameters = found[1].observations[-1], case.config.parameters
    text = f"the monitor watches with those of {current.parameters}: {current.visibility.text}"
    mine = next((s for s in found[1].observations if s.parameters == parameters and s.visibility in BLIND), None)
    if mine is None or mine.visibility is Visibility.EMPTY:
        return ok(text)
    own = f"; with those of this DSN, {parameters}: {mine.visibility.text}" if mine is not current else ""
    return warning(f"{text}{own}", "see login, extension and grants of blue; or state others with monitoring=")


def _no_monitor(case: Case, why: str) -> Verdict:
    return failed(
        f"none, though {len(case.rows)} processes use bg_id {case.settings.bg_id!r}: {why}",
        f"see {case.files.log}; a worker tries to start one every few seconds",
    )


def existing(path: Path) -> Path:
    """Return *path*, or the nearest existing directory above it."""
    return next(place for place in (path, *path.parents) if place.exists())


def _file_system_of(path: Path) -> str | None:
    """Return the type of the file system of *path*, by Linux's name."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    found, real = None, path.resolve()
    for line in lines:
        left, _, right = line.partition(" - ")
        mounted = Path(left.split()[4].replace("\\040", " "))
        # Of several mounts at one place the last one is visible; deeper ones come later or are longer.
        if real.is_relative_to(mounted) and (found is None or len(mounted.parts) >= found[0]):
            found = (len(mounted.parts), right.split()[0])
    return found[1] if found else None
