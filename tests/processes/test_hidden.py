"""Hosts without /proc or /dev/shm: the pool and a switchover work, and log, status and doctor report it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bgpool
from bgpool import descriptors
from bgpool.descriptors import open_descriptors
from bgpool.doctor import Case
from bgpool.doctor.findings import Result
from bgpool.doctor.host_checks import host_checks
from bgpool.doctor.kernel_checks import kernel_checks
from bgpool.pools.participant import Participant
from bgpool.segment import paths
from tests.docs.pages import ROOT
from tests.processes.hidden import HIDE, without

DSN = "postgresql://app@127.0.0.1:1/app"
Hide = Callable[..., list[str]]


@pytest.fixture
def hide() -> Hide:
    """Return the command that runs another command without places, see tests.processes.hidden."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare(1)")
    tried = subprocess.run(without(["/proc"], ["true"]), capture_output=True, text=True, timeout=60)
    if tried.returncode:
        pytest.skip(f"no mount namespaces: {tried.stderr}")
    return without


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary directory outside /dev/shm that root's servers, which run under another account, can reach."""
    with tempfile.TemporaryDirectory(prefix="bgpool-test-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.lab
@pytest.mark.slow
@pytest.mark.parametrize(
    "places",
    [
        pytest.param([*HIDE], id="both"),
        *(pytest.param([place], id=place, marks=pytest.mark.full) for place in HIDE),
        pytest.param([], id="neither", marks=pytest.mark.full),
    ],
)
def test_a_switchover_succeeds(hide: Hide, places: list[str], temporary: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "BGPOOL_RUN_DIR"}
    done = subprocess.run(
        hide(places, [sys.executable, "-m", "tests.processes.hidden"]),
        cwd=ROOT,
        env={**environment, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["there"] == [place for place in HIDE if place not in places]
    assert found["clean"], found
    assert found["phase"] == "COMPLETED"
    assert found["monitors"] == [["alive", 1]]
    assert found["workers"] == 2
    logged = dict(found["log"])
    if "/proc" in places:
        assert found["lacks"] == ["boot id"]
        assert "boot id" in found["notes"]
        assert found["doctor"]["kernel"][0] == "warning"
        assert found["doctor"]["kernel"][1].startswith("boot id: it cannot be read")
        assert found["host"]["file system"][:2] == ["not checked", "this system does not tell what is mounted where"]
        assert logged.pop("system_call_refused").startswith("[bg_id: 'one'] boot id: it cannot be read: ")
        assert found["monitor_processes"] == 2, "without /proc, no two monitors are known to be compatible"
    else:
        assert found["lacks"] == []
        assert found["doctor"]["kernel"][0] == "ok"
        assert found["monitor_processes"] == 1
    if "/dev/shm" in places:
        assert found["run_dir"] == str(temporary / f"bgpool-{os.geteuid()}")
        assert (
            logged.pop("run_dir_created") == f"created run directory {found['run_dir']}, private to user {os.geteuid()}"
        )
    else:
        assert found["run_dir"] == f"/dev/shm/bgpool-{os.geteuid()}"
        logged.pop("run_dir_created", None)
    assert not logged, "no other warning is due"


def test_descriptors_are_found_one_by_one_without_a_directory_that_lists_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = open_descriptors()
    monkeypatch.setattr(descriptors, "_LISTS", (tmp_path / "gone", tmp_path / "gone"))
    with (tmp_path / "file").open("w") as file:
        found = open_descriptors()
        assert file.fileno() in found
    # The descriptor that was used for the first list may since have been assigned to the file.
    assert {*listed} - {*found} <= {max(listed)}
    assert file.name
    assert len(found) <= len(listed) + 1


def test_the_file_system_check_recommends_no_dev_shm_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BGPOOL_RUN_DIR", str(tmp_path))
    monkeypatch.setattr("bgpool.doctor.host_checks._file_system_of", lambda _path: "ext4")
    monkeypatch.setattr(paths, "MEMORY", tmp_path / "gone")
    finding = next(one for one in host_checks.run(Case(DSN), "this host") if one.check == "file system")
    assert (finding.result, finding.remedy) == (Result.WARNING, "have BGPOOL_RUN_DIR name a tmpfs")


def test_get_pool_needs_no_writable_temporary_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The case: a read-only root file system, without /dev/shm."""

    def refuse() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.delenv("BGPOOL_RUN_DIR", raising=False)
    monkeypatch.setattr(paths, "MEMORY", tmp_path / "gone")
    monkeypatch.setattr("tempfile.gettempdir", refuse)
    assert bgpool.get_pool(DSN, bg_id="nowhere").participant.files.directory == Path(f"/tmp/bgpool-{os.geteuid()}")


def test_a_pool_whose_run_directory_cannot_be_created_logs_once_that_it_is_a_plain_pool(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Member:
        pass

    (tmp_path / "file").touch()
    participant = Participant("1", tmp_path / "file" / "in" / "it", lambda _: None)
    member = Member()
    for one in (member, Member()):
        participant.join(one)  # type: ignore[arg-type]  # the participant only stores it
    participant.leave(member)  # type: ignore[arg-type]  # as above
    (record,) = caplog.records
    assert getattr(record, "event", "") == "plain_pool"
    assert record.getMessage() == (
        f"[bg_id: '1'] run directory {tmp_path}/file/in/it cannot be used: Not a directory; "
        "the pool works as a plain pool"
    )


def test_a_process_that_may_not_lock_files_logs_it_and_the_doctor_does_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Member:
        pass

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setenv("BGPOOL_RUN_DIR", str(tmp_path))
    monkeypatch.setattr("bgpool.pools.watcher.take", lambda _: None)
    participant, member = Participant("1", tmp_path, lambda _: None), Member()
    participant.join(member)  # type: ignore[arg-type]  # the participant only keeps it
    participant.leave(member)  # type: ignore[arg-type]  # as above
    (record,) = caplog.records
    assert getattr(record, "event", "") == "worker_not_listed"
    assert record.getMessage().endswith("cannot be locked: No locks available")
    finding = next(one for one in kernel_checks.run(Case(DSN), "this host") if one.check == "locks")
    assert finding.result is not Result.OK
    assert "cannot be locked: No locks available" in finding.text


def test_the_import_fails_where_the_system_is_not_posix() -> None:
    code = "import os; os.name = 'nt'; import bgpool"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    last = done.stderr.splitlines()[-1]
    assert last == "ImportError: bgpool needs a POSIX system (Linux; macOS is untested): os.name is 'nt'"
