"""The run directory and its files: their paths, the required owner and permissions, and how to open them."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bgpool.base_errors import SegmentError

__all__ = [
    "MEMORY",
    "Exhausted",
    "RunFiles",
    "create_checked",
    "file_mode",
    "identity_of",
    "leads_to",
    "look_in",
    "memory_dir",
    "open_checked",
    "prepare_run_dir",
    "refused",
    "reserve",
    "temporary_dir",
]

#: The directory in memory that Linux has for all users.
MEMORY: Final = Path("/dev/shm")

#: The mode of a run directory that the users of a group share.
_SHARED_MODE: Final = 0o2770
_SAFELY: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_EXHAUSTION: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
_PLAIN_ID: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_STEM: Final = re.compile(rf"({_PLAIN_ID.pattern}|~[0-9a-f]{{32}})\.(segment|workers|history\.json)")


class Exhausted(SegmentError):
    """Descriptors or memory have run out. That says nothing about the file, which must not be replaced for it."""


def identity_of(file: int | str | Path) -> tuple[int, int]:
    """Return device and inode of a descriptor's file, or of the file that a path leads to.

    Raises:
        OSError: There is none, or the system refuses the query.
    """
    found = os.stat(file)  # noqa:PTH116  # also for a descriptor
    return found.st_dev, found.st_ino


def leads_to(path: str | Path, identity: tuple[int, int]) -> bool:
    """Return whether *path* leads to the file of *identity*; False if the system refuses the query."""
    try:
        return identity_of(path) == identity
    except OSError:
        return False


def refused(what: str, error: OSError) -> SegmentError:
    """Return the system's *error* as a SegmentError: "*what*: why"."""
    kind = Exhausted if error.errno in _EXHAUSTION else SegmentError
    return kind(f"{what}: {error.strerror}")


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of one bg_id in one run directory.

    Attributes:
        directory: The run directory; private to the user, or to a group.
        stem: The bg_id, or a digest of it if it is not suitable as a file name.
    """

    directory: Path
    stem: str

    @classmethod
    def of(cls, directory: Path, bg_id: str) -> RunFiles:
        """Return the files of *bg_id* in *directory*. This does not access the file system."""
        plain = _PLAIN_ID.fullmatch(bg_id)
        # The tilde ensures that no bg_id equals a digest.
        digest = hashlib.sha256(bg_id.encode()).hexdigest()[:32]
        return cls(directory, bg_id if plain else f"~{digest}")

    @classmethod
    def all_in(cls, directory: Path) -> tuple[RunFiles, ...]:
        """Return the files of every bg_id in *directory*, in the order of their names. Nothing is changed.

        Raises:
            SegmentError: The directory cannot be trusted or read. A directory that does not exist has no files.
        """
        try:
            directory.lstat()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise SegmentError(f"run directory {directory} cannot be used: {error.strerror}") from None
        _rights(directory)
        try:
            found = {match[1] for path in directory.iterdir() if (match := _STEM.fullmatch(path.name))}
        except OSError as error:
            raise SegmentError(f"run directory {directory} cannot be read: {error.strerror}") from None
        return tuple(cls(directory, stem) for stem in sorted(found))

    @property
    def segment(self) -> Path:
        """The mapped file that the monitor writes."""
        return self.directory / f"{self.stem}.segment"

    @property
    def workers(self) -> Path:
        """The mapped table with a row for every process that uses the bg_id."""
        return self.directory / f"{self.stem}.workers"

    def row(self, number: int) -> Path:
        """Return the lock of the process that owns row *number* of the table."""
        return self.directory / f"{self.stem}.row-{number}.lock"

    def all_rows(self) -> list[Path]:
        """Return the existing lock files of rows, held or not; none without a run directory.

        Raises:
            SegmentError: The directory cannot be read.
        """
        pattern = re.compile(rf"{re.escape(self.stem)}\.row-[0-9]{{1,6}}\.lock")
        try:
            return [path for path in self.directory.iterdir() if pattern.fullmatch(path.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise refused(f"{self.directory} cannot be read", error) from None

    @property
    def spawning(self) -> Path:
        """The lock of the process that is starting a monitor."""
        return self.directory / f"{self.stem}.spawning.lock"

    def turn(self, mark: str) -> Path:
        """Return the lock of the process that tries to start a monitor with *mark*'s parameters, pauses included."""
        return self.directory / f"{self.stem}.turn-{mark}.lock"

    @property
    def relay(self) -> Path:
        """The lock of the process that relays the monitor's notices to its own log."""
        return self.directory / f"{self.stem}.relay.lock"

    @property
    def log(self) -> Path:
        """The monitor's own log file."""
        return self.directory / f"{self.stem}.log"

    @property
    def history(self) -> Path:
        """The timelines of the last switchovers, as JSON."""
        return self.directory / f"{self.stem}.history.json"

    def samples(self, began_ns: int) -> Path:
        """Return the file with the workers' samples of the switchover that began at *began_ns*, on the wall clock."""
        return self.directory / f"{self.stem}.samples-{began_ns}.json"

    @property
    def pending_samples(self) -> Path:
        """The path from which the names of pending sample files are derived."""
        return self.directory / f"{self.stem}.samples"

    def all_samples(self) -> list[Path]:
        """Return the existing sample files, the oldest first; none if the directory cannot be read."""
        pattern = re.compile(rf"{re.escape(self.stem)}\.samples-([0-9]{{1,20}})\.json")
        try:
            found = [(path, pattern.fullmatch(path.name)) for path in self.directory.iterdir()]
        except OSError:
            return []
        return [path for path, _ in sorted(((p, int(m[1])) for p, m in found if m), key=lambda pair: pair[1])]

    def tenure(self, term: int) -> Path:
        """Return the lock that the monitor of *term* holds during its tenure."""
        return self.directory / f"{self.stem}.term-{term}.lock"


def memory_dir() -> Path:
    """Return the default location of run directories: /dev/shm, or else the temporary directory."""
    return MEMORY if os.access(MEMORY, os.W_OK | os.X_OK) else temporary_dir()


def temporary_dir() -> Path:
    """Return the system's directory for temporary files; /tmp if none can be written."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        # The caller then fails to create anything in it, with an error that names it, and the pool is a plain pool.
        return Path("/tmp")


def look_in(run_dir: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the run directory of this user. Nothing is created.

    It depends only on values that a service and a login of the same user have in common, so that each finds the other's
    segment.

    Args:
        run_dir: The parameter bg_run_dir; None for ``$BGPOOL_RUN_DIR``, else memory_dir().
        environ: The environment.

    Returns:
        The directory as given. If other users can write to it (an emptyDir, a tmpfs, /dev/shm), ``bgpool-<uid>`` in it,
            which prepare_run_dir() makes private.
    """
    chosen = run_dir or environ.get("BGPOOL_RUN_DIR")
    if not chosen:
        return _private_in(memory_dir())
    directory = Path(chosen).absolute()
    return _private_in(directory) if _others_can_write(directory) else directory


def prepare_run_dir(directory: Path) -> bool:
    """Create *directory* if it does not exist, and check that only this user, or the configured group, can write to it.

    Returns:
        True if this call created it.

    Raises:
        SegmentError: It cannot be created, is a link or not a directory, has another owner, or is open to others.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        made = _make_private(directory)
    except OSError as error:
        raise SegmentError(f"run directory {directory} cannot be used: {error.strerror}") from None
    _rights(directory)
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise SegmentError(f"run directory {directory} cannot be written by user {os.geteuid()}")
    return made


def file_mode(directory: Path) -> int:
    """Return the mode of files in *directory*: 0600, or 0660 if a group shares it.

    Raises:
        SegmentError: See prepare_run_dir.
    """
    return 0o600 if _rights(directory) is None else 0o660


def open_checked(path: Path, flags: int) -> int:
    """Open a file of the run directory without following a link or blocking on a FIFO.

    Args:
        path: The file.
        flags: The flags of os.open; with O_CREAT the file is created with the permissions that its directory implies.

    Returns:
        A file descriptor that is not inherited.

    Raises:
        FileNotFoundError: The file does not exist.
        SegmentError: It is not a regular file, has another owner, or others can read or write it.
        Exhausted: The file may be valid, but the process cannot open any more files.
    """
    while True:
        try:
            fd = os.open(path, flags & ~os.O_CREAT | _SAFELY)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
        except OSError as error:
            raise refused(f"{path} cannot be opened", error) from None
        else:
            break
        try:
            return create_checked(path, flags)
        except FileExistsError:
            continue  # Another process was faster: check its file.
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise SegmentError(f"{path} is not a regular file")
        _check_file(found, path)
    except SegmentError:
        os.close(fd)
        raise
    return fd


def create_checked(path: Path, flags: int = os.O_RDWR) -> int:
    """Create a new file of the run directory, and open it.

    Raises:
        FileExistsError: It already exists.
        SegmentError: It cannot be created.
    """
    mode = file_mode(path.parent)
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | _SAFELY, mode)
    except FileExistsError:
        raise
    except OSError as error:
        raise refused(f"{path} cannot be made", error) from None
    try:
        os.fchmod(fd, mode)  # Independent of the umask.
    except OSError as error:
        os.close(fd)
        raise refused(f"{path} cannot be made", error) from None
    return fd


def reserve(fd: int, size: int) -> None:
    """Extend an empty file to *size* bytes of zeros, and allocate the space.

    The zeros are written: every kernel and file system supports that, while some refuse posix_fallocate.

    Raises:
        OSError: There is not enough space.
    """
    left = memoryview(bytes(size))
    while left:
        left = left[os.write(fd, left) :]


def _private_in(directory: Path) -> Path:
    return directory / f"bgpool-{os.geteuid()}"


def _others_can_write(directory: Path) -> bool:
    """Return whether other users can write to *directory* and it is not a group's run directory."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    mode = stat.S_IMODE(found.st_mode)
    return stat.S_ISDIR(found.st_mode) and bool(mode & 0o022) and mode != _SHARED_MODE


def _make_private(directory: Path) -> bool:
    """Create *directory* with mode 0700, independent of the umask. Return whether it did not exist.

    Raises:
        OSError: It cannot be created.
    """
    try:
        directory.mkdir(mode=0o700)
        made = True
    except FileExistsError:
        made = False
    found = directory.lstat()
    mode = stat.S_IMODE(found.st_mode)
    # The umask, or a parent with the setgid bit, has changed the mode; or another process is between these two steps. A
    # directory that others can enter is not changed: it is refused.
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and mode != 0o700 and not mode & 0o077:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | _SAFELY)
        try:
            os.fchmod(fd, 0o700)
        finally:
            os.close(fd)
    return made


def _rights(directory: Path) -> int | None:
    """Return the group that shares *directory*; None if it is private to this user.

    Raises:
        SegmentError: It is not a directory, another user could have written to it, or its permissions are unclear.
    """
    try:
        found = directory.lstat()
    except OSError as error:
        raise SegmentError(f"run directory {directory} cannot be used: {error.strerror}") from None
    what, mode = f"run directory {directory}", stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode):
        link = ", but a link, which is not followed" if stat.S_ISLNK(found.st_mode) else ""
        raise SegmentError(f"{what} is not a directory{link}")
    # If a group shares it, root is a valid owner as well: root could write to it in any case.
    shared = mode == _SHARED_MODE
    if found.st_uid != os.geteuid() and not (shared and found.st_uid == 0):
        raise SegmentError(
            f"{what} belongs to user {found.st_uid}, not to {os.geteuid()}: run this as that user, or set "
            "BGPOOL_RUN_DIR (or bg_run_dir) to a directory that this user can write to"
        )
    if shared:
        return found.st_gid
    if mode & 0o077:
        raise SegmentError(
            f"{what} has mode {mode:04o}; allowed are 0700, and 2770 to share it with the users of its group"
        )
    return None


def _check_file(found: os.stat_result, path: Path) -> None:
    group, mode = _rights(path.parent), stat.S_IMODE(found.st_mode)
    if group is not None and found.st_gid != group:
        raise SegmentError(f"{path} belongs to group {found.st_gid}, not to its directory's {group}")
    if group is None and found.st_uid != os.geteuid():
        raise SegmentError(f"{path} belongs to user {found.st_uid}, not to {os.geteuid()}")
    if mode & (0o077 if group is None else 0o007):
        others = "group and others" if group is None else "others"
        raise SegmentError(f"{path} has mode {mode:04o}; no rights for {others} are allowed")
