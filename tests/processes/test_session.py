"""What a monitoring connection hears from real servers in every state."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from bgpool.core.plan import Target
from bgpool.lab import Director, Pair, metadata
from bgpool.lab.faults import break_metadata, lock_out_monitor
from bgpool.lab.pair import DATABASE, MONITOR_ROLE
from bgpool.monitor.dialects.postgres import PostgresSession
from bgpool.monitor.session import SessionError

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair("aurora", readers=1) as pair:
        yield pair


Open = Callable[..., PostgresSession]


@pytest.fixture
def session(pair: Pair) -> Iterator[Open]:
    """Opens sessions to blue or green, and closes them at the end."""
    opened: list[PostgresSession] = []

    def open_session(colour: str = "blue", **params: object) -> PostgresSession:
        server = pair.blue if colour == "blue" else pair.green
        own = {"user": MONITOR_ROLE, "password": pair.lab_password, "dbname": DATABASE}
        opened.append(PostgresSession(own | params, Target("ignored.example", pair.port, (server.address,))))
        return opened[-1]

    yield open_session
    for one in opened:
        one.close()


def test_the_environment_leads_no_monitoring_connection_elsewhere(
    pair: Pair, session: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "read-write")
    assert session("green").ask().read_only
    monkeypatch.setenv("PGHOSTADDR", pair.blue.address)
    own = {"user": MONITOR_ROLE, "password": pair.lab_password, "dbname": DATABASE}
    by_name = PostgresSession(own, Target(pair.green.address, pair.port))
    assert by_name.ask().read_only, "green, not the address of the environment"
    by_name.close()


def test_every_state_of_the_metadata(pair: Pair, session: Open) -> None:
    blue = session()
    metadata.withdraw(pair.blue)
    answer = blue.ask()
    assert (answer.read_only, answer.replica, answer.rows, answer.failure) == (False, False, (), "")
    director = Director(pair)
    director.create_deployment()
    answer = blue.ask()
    assert answer.rows is not None
    assert {row.status for row in answer.rows} == {"AVAILABLE"}
    assert answer.servers == pair.names.blue.server_ids
    break_metadata(director)
    answer = blue.ask()
    assert answer.rows is None
    assert "json" in answer.failure
    assert not answer.read_only
    director.create_deployment()
    assert blue.ask().rows


def test_a_replica_and_a_read_only_primary_say_so(pair: Pair, session: Open) -> None:
    green = session("green")
    answer = green.ask()
    assert (answer.read_only, answer.replica) == (True, True)
    blue = session()
    pair.blue.set_read_only(True)
    try:
        answer = blue.ask()
        assert (answer.read_only, answer.replica) == (True, False)
    finally:
        pair.blue.set_read_only(False)
    assert not blue.ask().read_only


def test_a_dropped_function_is_missing_and_not_a_failure(pair: Pair, session: Open) -> None:
    blue = session()
    assert blue.ask().missing == ""
    name = "pg_catalog.get_blue_green_fast_switchover_metadata(text)"
    pair.blue.execute(f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC", database=DATABASE)
    try:
        for _ in range(2):
            answer = blue.ask()
            assert answer.rows is None
            assert "get_blue_green_fast_switchover_metadata" in answer.missing
            assert not answer.read_only
    finally:
        pair.blue.execute(f"GRANT EXECUTE ON FUNCTION {name} TO PUBLIC", database=DATABASE)
    assert blue.ask().missing == ""


def test_a_cut_and_a_refusal_are_session_errors_in_one_line(pair: Pair, session: Open) -> None:
    green = session("green")
    lock_out_monitor(pair, "green")
    with pytest.raises(SessionError) as caught:
        green.ask()
    assert "\n" not in str(caught.value)
    with pytest.raises(SessionError, match="rejects connection"):
        session("green")
    with pytest.raises(SessionError) as caught:
        session(password="s3cret")
    assert "s3cret" not in str(caught.value)
