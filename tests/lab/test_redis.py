"""The lab's Redis: the account that it runs as, the data that it keeps, and its complete removal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bgpool.lab import LabError, ProgramsError
from bgpool.lab.redis import VARIABLE, RedisServer, find_redis
from bgpool.lab.waiting import wait_until

OWNER = """
import sys, time
from bgpool.lab.redis import RedisServer
server = RedisServer()
print(server.pid, server.home, flush=True)
time.sleep(60)
"""


@pytest.mark.lab
def test_it_runs_as_another_user_than_root_and_is_removed_completely() -> None:
    with RedisServer() as server:
        pid, home = server.pid, server.home
        assert pid is not None
        assert Path(f"/proc/{pid}").stat().st_uid != 0
        assert server.execute("SET", "key", "value") == b"OK"
        server.restart()
        assert server.execute("GET", "key") is None, "it keeps nothing"
        pid = server.pid
        child = os.fork()
        if child == 0:
            server.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert server.answers(), "a forked child leaves its parent's server alone"
    assert not Path(f"/proc/{pid}").exists()
    assert not home.parent.exists()
    server.close()


@pytest.mark.lab
def test_data_is_kept_with_appendonly() -> None:
    with RedisServer(settings={"appendonly": "yes", "appendfsync": "always"}) as server:
        server.execute("SET", "key", "value")
        server.kill()
        assert not server.answers()
        server.start()
        assert server.execute("GET", "key") == b"value"


@pytest.mark.lab
def test_it_ends_with_its_owner() -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, home = owner.stdout.readline().split()
        assert Path(f"/proc/{pid}").exists()
        owner.send_signal(signal.SIGKILL)
    wait_until(
        lambda: not Path(f"/proc/{pid}").exists() and not Path(home).parent.exists(),
        timeout_s=10.0,
        what="the watchdog has cleaned up",
    )


@pytest.mark.lab
def test_a_failed_start_reports_the_servers_error() -> None:
    with pytest.raises(LabError, match="Bad directive"):
        RedisServer(settings={"no-such-setting": "1"})


def program(directory: Path, name: str, said: str) -> Path:
    directory.mkdir(parents=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{said}'\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("name", "said", "product"),
    [
        ("redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1", "Redis 7.0.15"),
        ("valkey-server", "Valkey server v=9.1.2 sha=00000000:0 malloc=jemalloc-5.3.1", "Valkey 9.1.2"),
    ],
)
def test_a_program_or_its_directories_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str, product: str
) -> None:
    path = program(tmp_path / "bin", name, said)
    for place in (path, path.parent, path.parent.parent):
        monkeypatch.setenv(VARIABLE, str(place))
        programs, found = find_redis()
        assert (programs.bin_dir, programs.product, found) == (path.parent, product, name)


def test_an_unusable_program_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = program(tmp_path / "old", "redis-server", "Redis server v=6.0.16 sha=00000000:0")
    other = program(tmp_path / "other", "redis-server", "s3rver 7")
    for place, said in ((old, r"v=6.0.16.*Redis 6.2 or Valkey is needed"), (other, "s3rver"), (tmp_path, "looked at")):
        monkeypatch.setenv(VARIABLE, str(place))
        with pytest.raises(ProgramsError, match=said) as caught:
            find_redis()
        assert VARIABLE in str(caught.value)
        assert "apt-get install redis-server" in str(caught.value)
