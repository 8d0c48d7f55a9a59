"""Run directories in mounts that other users write to: one private directory in them, the same for all processes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import bgpool
from bgpool.cli.timeline import _files
from bgpool.doctor.case import Case
from bgpool.errors import SegmentError
from bgpool.metrics.prometheus import Collector
from bgpool.report import find
from bgpool.segment.paths import RunFiles, look_in, memory_dir, open_checked, prepare_run_dir
from bgpool.testing import deployment

DSN = "postgresql://app@127.0.0.1:1/app"
OWN = f"bgpool-{os.geteuid()}"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as several users")


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    """An emptyDir of Kubernetes."""
    mount = tmp_path / "mount"
    mount.mkdir()
    mount.chmod(0o777)
    return mount


@pytest.fixture(params=[0o000, 0o022, 0o177, 0o777], ids="umask {:03o}".format)
def umask(request: pytest.FixtureRequest, mount: Path) -> Iterator[None]:
    # After the mount, in which only root could otherwise create files.
    del mount
    if request.param == 0o777 and os.geteuid() != 0:
        pytest.skip("a directory without any right cannot be opened by its owner")
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.parametrize("mode", [0o777, 0o2777, 0o1777, 0o2775, 0o770], ids="{:04o}".format)
def test_a_shared_mount_gets_a_private_directory(mount: Path, mode: int) -> None:
    mount.chmod(mode)
    assert look_in(mount) == mount / OWN
    assert prepare_run_dir(look_in(mount)) is True
    assert prepare_run_dir(look_in(mount)) is False
    assert stat.S_IMODE((mount / OWN).stat().st_mode) == 0o700
    assert stat.S_IMODE(mount.stat().st_mode) == mode, "bgpool must not change it"
    # What a command prints can be given to another one.
    assert look_in(mount / OWN) == mount / OWN


@pytest.mark.parametrize("mode", [0o700, 0o2770, 0o755, 0o750], ids="{:04o}".format)
def test_a_private_or_group_directory_is_used_unchanged(mount: Path, mode: int) -> None:
    mount.chmod(mode)
    assert look_in(mount) == mount


def test_a_link_is_not_followed(mount: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(mount)
    assert look_in(link) == link
    with pytest.raises(SegmentError, match="not a directory"):
        prepare_run_dir(link)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("parent_mode", [0o777, 0o2777], ids="{:04o}".format)
def test_the_mode_does_not_depend_on_the_umask(mount: Path, parent_mode: int) -> None:
    mount.chmod(parent_mode)
    directory = look_in(mount)
    prepare_run_dir(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_directory_that_another_process_is_just_making(mount: Path) -> None:
    directory = look_in(mount)
    directory.mkdir()
    directory.chmod(0o600)  # made under umask 0177, not yet put right
    assert prepare_run_dir(directory) is False
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize("by_environment", [True, False], ids=["$BGPOOL_RUN_DIR", "argument"])
def test_pools_commands_and_tests_agree(mount: Path, by_environment: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given = None if by_environment else mount
    options = {} if given is None else {"bg_run_dir": str(given)}
    if by_environment:
        monkeypatch.setenv("BGPOOL_RUN_DIR", str(mount))
    expected = RunFiles.of(mount / OWN, "1")
    assert bgpool.get_pool(DSN, **options).participant.files == expected
    assert find("1", given)[0].files == expected
    assert bgpool.status("1", given).run_dir == str(mount / OWN)
    assert _files("1", given) == expected
    assert Case(DSN + (f"?bg_run_dir={mount}" if given else "")).files == expected
    assert Collector("1", given)._files == expected
    with deployment(mount) as tested:
        assert tested.run_dir == mount / OWN
        assert find(None, given)[0].files == expected


def test_without_a_word_from_the_user_it_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BGPOOL_RUN_DIR", raising=False)
    assert look_in() == memory_dir() / OWN


@as_root
def test_a_directory_that_another_user_put_in_place(mount: Path) -> None:
    directory = look_in(mount)
    prepare_run_dir(directory)
    files = RunFiles.of(directory, "1")
    os.close(open_checked(files.log, os.O_RDWR | os.O_CREAT))
    # Without the sticky bit any user may rename it.
    directory.rename(mount / "away")
    directory.mkdir(mode=0o700)
    os.chown(directory, 12345, 12345)
    files.log.touch(0o600)
    os.chown(files.log, 12345, 12345)
    for look in (lambda: prepare_run_dir(directory), lambda: find("1", mount), lambda: open_checked(files.log, 0)):
        with pytest.raises(SegmentError, match="belongs to user 12345"):
            look()
