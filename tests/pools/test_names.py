"""Names that must match a certificate or a token: the order in which they are tried, their passwords, their memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bgpool.core.events import CertificateRenewed
from bgpool.core.phase import Phase, Role
from bgpool.core.snapshot import Host, Snapshot
from bgpool.dsn import parse
from bgpool.lab import Pair, ledger
from bgpool.monitor.probe import now
from bgpool.pools.alias import Endpoint
from bgpool.pools.postgres.pool import PostgresPool
from bgpool.testing import Deployment
from tests.pools.callers import Caller, wait_until

pytestmark = pytest.mark.lab

ON_ASYNC_POOL = pytest.mark.full

MakePool = Callable[..., PostgresPool]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Servers with certificates and tokens; green's are for its green name unless a test changes this."""
    with Pair(iam=True) as pair:
        ledger.create(pair)
        yield pair


class Asked:
    """A password callable that records the names it is called for."""

    def __init__(self, pair: Pair) -> None:
        self._tokens = pair.tokens
        self.names: list[str] = []

    def __call__(self, host: str, port: int, user: str) -> str:
        self.names.append(host)
        return self._tokens(host, port, user)


@pytest.fixture
def asked(pair: Pair) -> Asked:
    return Asked(pair)


def test_a_password_is_made_for_every_connection(make_pool: MakePool, pair: Pair, asked: Asked) -> None:
    pool = make_pool(password=asked, min_size=2, max_size=2)
    with pool.connection() as one, pool.connection() as two:
        assert one.info.hostaddr == two.info.hostaddr == pair.blue.address
    assert asked.names == [pair.names.blue.primary] * 2


def test_green_is_tried_under_its_green_name_first(
    make_pool: MakePool, pair: Pair, deployment: Deployment, asked: Asked
) -> None:
    deployment.release()
    with make_pool(password=asked, max_size=1).connection() as conn:
        assert conn.info.hostaddr == pair.green.address
    assert asked.names == [pair.names.green.primary]


def test_a_name_that_worked_is_remembered(
    make_pool: MakePool, pair: Pair, deployment: Deployment, asked: Asked
) -> None:
    green, blue = pair.names.green.primary, pair.names.blue.primary
    pair.certify("green", pair.names.promoted)
    pair.accept_tokens("green", pair.names.promoted)
    try:
        deployment.release()
        pool = make_pool(password=asked, min_size=1, max_size=1)
        with pool.connection() as conn:
            assert conn.info.hostaddr == pair.green.address
        assert asked.names == [green, blue]
        pool.drain()
        with pool.connection():
            pass
        assert asked.names == [green, blue, blue]
    finally:
        pair.certify("green", pair.names.green)
        pair.accept_tokens("green", pair.names.green)


def test_every_worker_uses_the_name_that_the_monitor_publishes(
    make_pool: MakePool, pair: Pair, deployment: Deployment, asked: Asked
) -> None:
    green, blue = pair.names.green.primary, pair.names.blue.primary
    deployment.release()
    deployment.tell(CertificateRenewed(now(), green))
    with make_pool(password=asked, max_size=1).connection():
        pass
    # The hint was wrong: the other name is still tried.
    assert asked.names == [blue, green]


def test_a_wrong_certificate_leads_to_the_next_name(
    make_pool: MakePool, pair: Pair, deployment: Deployment, asked: Asked
) -> None:
    pair.certify("green", pair.names.promoted)
    pair.accept_tokens("green", pair.names.promoted)
    try:
        deployment.release()
        with make_pool(password=asked, max_size=1).connection() as conn:
            assert conn.info.host == pair.names.blue.primary
    finally:
        pair.certify("green", pair.names.green)
        pair.accept_tokens("green", pair.names.green)


def test_a_callable_that_fails_for_one_name_is_called_for_the_next(
    make_pool: MakePool, pair: Pair, deployment: Deployment, asked: Asked
) -> None:
    green, blue = pair.names.green.primary, pair.names.blue.primary

    def knows_blue(host: str, port: int, user: str) -> str:
        if host == green:
            raise KeyError(host)
        return asked(host, port, user)

    pair.accept_tokens("green", pair.names.promoted)
    try:
        deployment.release()
        with make_pool(password=knows_blue, max_size=1).connection() as conn:
            # The certificate is still green's.
            assert conn.info.host == green
        assert set(asked.names) == {blue}
    finally:
        pair.accept_tokens("green", pair.names.green)


@pytest.mark.usefixtures("deployment")
def test_a_failed_callable_is_named_without_its_error_text(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def fails(*_: object) -> str:
        raise RuntimeError("s3cret")

    # A pool's log line is not soon repeated, and the pools of the kit's other forms have the same name.
    pool = make_pool(password=fails, timeout=0.5, max_size=1, name=str(tmp_path))
    with caplog.at_level(logging.WARNING, logger="psycopg.pool"):
        with pytest.raises(psycopg.OperationalError):
            pool.getconn()
        wait_until(lambda: "the password callable failed for app@" in caplog.text)
    assert "RuntimeError" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.usefixtures("deployment")
def test_an_alias_gets_the_password_of_its_endpoint(make_pool: MakePool, pair: Pair, asked: Asked) -> None:
    pair.hosts.set("db.shop.example", pair.blue.address)
    pool = make_pool(
        pair.dsn_of("db.shop.example").replace("verify-full", "verify-ca"),
        endpoint=pair.names.blue.primary,
        password=asked,
        max_size=1,
    )
    with pool.connection() as conn:
        assert conn.info.host == "db.shop.example"
    assert asked.names == [pair.names.blue.primary]


def endpoint(tmp_path: Path, host: str, text: str | None, **options: Any) -> Endpoint:
    hosts = tmp_path / "hosts"
    if text is not None:
        hosts.write_text(text)
    return Endpoint(*parse(f"postgresql://app@{host}/app", {"bg_resolver": f"hosts:{hosts}", **options})[:2])


RDS = "ledger.c0.eu-west-1.rds.amazonaws.com"
OTHER = "other.c0.eu-west-1.rds.amazonaws.com"


def by_phase(phase: Phase) -> Snapshot:
    hosts = (Host(RDS, 5432, Role.SOURCE, ("10.0.0.1",)), Host(OTHER, 5432, Role.TARGET, ("10.0.0.2",)))
    return Snapshot("1", phase, hosts=hosts, ready=True)


def read_later(found: Endpoint, phase: Phase) -> bool:
    """Return whether the alias was read in the background; wait until this has ended."""
    found._reader = None
    found.read_later(by_phase(phase))
    if found._reader is None:
        return False
    found._reader.join(30.0)
    return True


def test_an_alias_is_read_again_while_there_is_a_deployment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = endpoint(tmp_path, "db.shop.example", f"10.0.0.1 {RDS} db.shop.example\n")
    assert found.name == "db.shop.example"
    found.read()
    assert found.name == RDS
    (tmp_path / "hosts").write_text(f"10.0.0.1 {OTHER} db.shop.example\n")
    found.read()
    assert found.name == RDS, "the alias was read"
    monkeypatch.setattr(found, "_due_at", 0.0)
    assert not read_later(found, Phase.NOT_CREATED)
    assert caplog.text == ""
    assert read_later(found, Phase.CREATED)
    assert found.name == OTHER
    assert f"db.shop.example stands for {OTHER} now, and no longer for {RDS}" in caplog.text
    # An alias that cannot be read keeps its previous meaning.
    (tmp_path / "hosts").unlink()
    monkeypatch.setattr(found, "_due_at", 0.0)
    assert read_later(found, Phase.CREATED)
    assert found.name == OTHER
    assert len(caplog.records) == 1


def test_a_repointed_alias_is_read_before_it_decides_anything(tmp_path: Path) -> None:
    found = endpoint(tmp_path, "db.shop.example", f"10.0.0.1 {RDS} db.shop.example\n")
    found.read()
    assert found.decides_as(by_phase(Phase.CREATED)) == RDS
    (tmp_path / "hosts").write_text("10.0.0.1 db.shop.example\n")
    assert found.decides_as(by_phase(Phase.PREPARATION)) == "", "connects by name until the alias is read"
    assert read_later(found, Phase.PREPARATION)
    assert found.decides_as(by_phase(Phase.PREPARATION)) == ""
    assert not read_later(found, Phase.PREPARATION), "the alias is read once"
    assert not read_later(found, Phase.IN_PROGRESS), "names change in this phase"
    # The switchover was rolled back, the alias points to blue again, and a new switchover is prepared.
    (tmp_path / "hosts").write_text(f"10.0.0.1 {RDS} db.shop.example\n")
    read_later(found, Phase.CREATED)
    assert read_later(found, Phase.PREPARATION)
    assert found.decides_as(by_phase(Phase.PREPARATION)) == RDS


def test_a_forked_child_reads_the_alias_again(tmp_path: Path) -> None:
    found = endpoint(tmp_path, "db.shop.example", f"10.0.0.1 {RDS} db.shop.example\n")
    found.read()
    (tmp_path / "hosts").write_text(f"10.0.0.1 {OTHER} db.shop.example\n")
    found.after_fork_in_child()
    found.read()
    assert found.name == OTHER


def test_an_unreadable_alias_is_logged_once_and_retried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = endpoint(tmp_path, "db.shop.example", None)
    found.read()
    found.read()
    assert found.name == "db.shop.example"
    assert caplog.text.count("endpoint=") == 1
    assert "No such file" in caplog.text
    (tmp_path / "hosts").write_text(f"10.0.0.1 {RDS} db.shop.example\n")
    assert not read_later(found, Phase.NOT_CREATED), "the interval has not passed"
    monkeypatch.setattr(found, "_due_at", 0.0)
    assert read_later(found, Phase.NOT_CREATED)
    assert found.name == RDS


def test_a_hosts_file_that_is_no_text_is_logged_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = endpoint(tmp_path, "db.shop.example", None)
    (tmp_path / "hosts").write_bytes(b"10.0.0.1 \xff\xfe\n")
    found.read()
    assert caplog.text.count("endpoint=") == 1


def test_callers_wait_while_the_alias_is_being_read(
    make_pool: MakePool, pair: Pair, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on, waiting = threading.Event(), threading.Event(), threading.Event()

    class Joined(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waiting.set()
            return super().wait(timeout)

    def slow(_host: str, _resolver: str) -> str:
        reading.set()
        assert go_on.wait(60.0)
        return pair.names.blue.primary

    monkeypatch.setattr("bgpool.pools.alias.real_endpoint", slow)
    monkeypatch.setattr("bgpool.pools.source.ALIAS_TIMEOUT_S", 60.0)
    pair.hosts.set("db.shop.example", pair.blue.address)
    dsn = pair.dsn_of("db.shop.example").replace("verify-full", "verify-ca")
    deployment.phase(Phase.IN_PROGRESS)
    pool = make_pool(dsn, password=pair.tokens)
    monkeypatch.setattr(pool, "_joined", Joined())
    first = Caller(pool.getconn)
    assert reading.wait(30.0)
    second = Caller(pool.getconn)
    assert waiting.wait(30.0)
    go_on.set()
    wait_until(lambda: pool.stats().held == 2)
    deployment.roll_back()
    for caller in (first, second):
        pool.putconn(caller.wait())


def test_a_stated_endpoint_is_not_looked_up(tmp_path: Path) -> None:
    rds = "ledger.c0.eu-west-1.rds.amazonaws.com"
    found = endpoint(tmp_path, "db.shop.example", None, endpoint=rds)
    found.read()
    assert found.name == rds
