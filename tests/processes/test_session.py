"""The answers of a monitoring connection from real servers in every state."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from bgpool import sockets
from bgpool.core.plan import Target
from bgpool.dsn import parse
from bgpool.lab import Director, Pair, metadata
from bgpool.lab.faults import break_metadata, lock_out_monitor
from bgpool.lab.pair import DATABASE, MONITOR_ROLE
from bgpool.monitor.dialects.postgres import PostgresSession
from bgpool.monitor.session import Application, SessionError

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair("aurora", readers=1) as pair:
        yield pair


Open = Callable[..., PostgresSession]


@pytest.fixture
def session(pair: Pair) -> Iterator[Open]:
    """Open sessions to blue or green, and close them at the end."""
    opened: list[PostgresSession] = []

    def open_session(colour: str = "blue", application: Application | None = None, **params: object) -> PostgresSession:
        server = pair.blue if colour == "blue" else pair.green
        own = {"user": MONITOR_ROLE, "password": pair.lab_password, "dbname": DATABASE}
        target = Target("ignored.example", pair.port, (server.address,))
        opened.append(PostgresSession(own | params, target, application=application))
        return opened[-1]

    yield open_session
    for one in opened:
        one.close()


def test_the_environment_does_not_redirect_monitoring_connections(
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
    assert answer.max_connections == int(pair.blue.execute("SHOW max_connections")[0][0])
    assert answer.servers == pair.names.blue.server_ids
    break_metadata(director)
    answer = blue.ask()
    assert answer.rows is None
    assert "json" in answer.failure
    assert not answer.read_only
    director.create_deployment()
    assert blue.ask().rows


def test_a_replica_and_a_read_only_primary_are_recognized(pair: Pair, session: Open) -> None:
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


READ_ONLY = "default_transaction_read_only"


@pytest.mark.parametrize(
    ("settings", "read_only"),
    [
        ({"ROLE app": "on"}, True),
        ({"DATABASE app": "true"}, True),
        ({"ROLE app IN DATABASE app": "1"}, True),
        ({"ROLE ALL": "on"}, True),
        ({"ROLE ALL": "on", "DATABASE app": "off"}, False),
        ({"DATABASE app": "on", "ROLE app": "off"}, False),
        ({"ROLE app": "off", "ROLE app IN DATABASE app": "on"}, True),
        ({"DATABASE postgres": "on", "ROLE postgres IN DATABASE app": "on"}, False),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_the_settings_of_the_applications_role_are_read_by_any_role(
    pair: Pair, session: Open, settings: dict[str, str], read_only: bool
) -> None:
    Director(pair).create_deployment()
    # Opened before: such settings affect a session only from its start, but the catalog at once.
    mine = session(application=Application("app", DATABASE))
    assert not mine.ask().role_read_only
    try:
        for whose, value in settings.items():
            pair.blue.execute(f"ALTER {whose} SET {READ_ONLY} = {value}")
        for asked in (mine, session(application=Application("app", DATABASE))):
            answer = asked.ask()
            assert (answer.read_only, answer.role_read_only) == (False, read_only)
            assert answer.rows
        with psycopg.connect(pair.direct_dsn(pair.blue)) as conn:
            assert conn.execute(f"SHOW {READ_ONLY}").fetchone() == ("on" if read_only else "off",), "as PostgreSQL does"
    finally:
        for whose in settings:
            pair.blue.execute(f"SET {READ_ONLY} = off; ALTER {whose} RESET {READ_ONLY}")


def test_a_read_only_role_of_the_monitor_does_not_affect_its_answers(pair: Pair, session: Open) -> None:
    pair.blue.execute(f"ALTER ROLE {MONITOR_ROLE} SET {READ_ONLY} = on")
    try:
        answer = session(application=Application("app", DATABASE)).ask()
        assert (answer.read_only, answer.role_read_only) == (False, False)
        assert session("green", options=f"-c {READ_ONLY}=off").ask().read_only, (
            "a replica accepts no writes of any role"
        )
    finally:
        pair.blue.execute(f"ALTER ROLE {MONITOR_ROLE} RESET {READ_ONLY}")


def test_a_server_with_an_enabled_subscription_is_recognized(pair: Pair, session: Open) -> None:
    mine = session()
    assert not mine.ask().subscribes
    pair.blue.execute(
        "CREATE SUBSCRIPTION follows CONNECTION 'host=127.0.0.1 port=1' PUBLICATION all_of_it"
        " WITH (connect = false, slot_name = 'follows')"
    )
    try:
        assert not mine.ask().subscribes, "the subscription is not enabled yet"
        pair.blue.execute("ALTER SUBSCRIPTION follows ENABLE")
        assert mine.ask().subscribes
    finally:
        for statement in ("DISABLE", "SET (slot_name = NONE)"):
            pair.blue.execute(f"ALTER SUBSCRIPTION follows {statement}")
        pair.blue.execute("DROP SUBSCRIPTION follows")
    assert not mine.ask().subscribes


def test_servers_that_are_gone_are_not_in_the_topology(pair: Pair, session: Open) -> None:
    writer, reader = pair.names.blue.server_ids
    rows = [metadata.ReplicaRow(writer, age_s=1200), metadata.ReplicaRow(reader, is_writer=False)]
    Director(pair).create_deployment()
    metadata.publish_replicas(pair.blue, [*rows, metadata.ReplicaRow("autoscaled", is_writer=False, age_s=1200)])
    assert session().ask().servers == (writer, reader), "the writer is listed regardless of its clock"


def test_a_database_without_an_encoding_is_read(pair: Pair, session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    Director(pair).create_deployment()
    monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")
    params = parse("postgresql://app@db/app", {})[0].monitoring
    answer = session(client_encoding=params["client_encoding"]).ask()
    assert answer.rows
    assert answer.servers == pair.names.blue.server_ids


def test_the_user_is_quoted_in_the_suggested_statement() -> None:
    with Pair() as pair:
        pair.blue.execute(f"CREATE ROLE \"my-app\" LOGIN PASSWORD '{pair.lab_password}'")
        pair.blue.execute("REVOKE ALL ON SCHEMA rds_tools FROM PUBLIC", database=DATABASE)
        own = {"user": "my-app", "password": pair.lab_password, "dbname": DATABASE}
        session = PostgresSession(own, Target("ignored.example", pair.port, (pair.blue.address,)))
        assert 'TO "my-app";' in session.ask().missing
        session.close()


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


def test_a_repeated_answer_is_the_same_object(pair: Pair, session: Open) -> None:
    blue = session()
    answer = blue.ask()
    assert blue.ask() is answer
    pair.blue.set_read_only(True)
    try:
        assert blue.ask().read_only
    finally:
        pair.blue.set_read_only(False)
    assert blue.ask() == answer


def test_a_promotion_is_waited_for_at_the_server(session: Open) -> None:
    blue, green = session(), session("green")
    for one in (blue, green):
        one.ask()
    assert not blue.await_promotion(5.0), "blue is no replica"
    assert green.await_promotion(0.01)
    hurried = session("green", options="-c statement_timeout=5")
    hurried.ask()
    assert not hurried.await_promotion(1.0)
    assert hurried.ask().replica
    assert not hurried.await_promotion(1.0), "no second wait after the first one failed"
    lost = session("green")
    lost.ask()
    timer = threading.Timer(0.05, lambda: sockets.cut(lost.socket, sockets.identity(lost.socket)))
    timer.start()
    with pytest.raises(SessionError):
        lost.await_promotion(5.0)
    timer.join()


def test_a_query_of_a_hanging_server_ends_when_it_is_cut(pair: Pair, session: Open) -> None:
    green = session("green")
    green.ask()
    pair.green.freeze()
    try:
        cut = threading.Timer(0.2, sockets.cut, (green.socket, sockets.identity(green.socket)))
        cut.start()
        with pytest.raises(SessionError, match="OperationalError"):
            green.ask()
        cut.join()
    finally:
        pair.green.thaw()


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


def test_the_wait_ends_with_the_promotion() -> None:
    with Pair("rds") as pair:
        own = {"user": MONITOR_ROLE, "password": pair.lab_password, "dbname": DATABASE}
        green = PostgresSession(own, Target("ignored.example", pair.port, (pair.green.address,)))
        assert green.ask().replica
        timer = threading.Timer(0.05, pair.green.promote)
        timer.start()
        began = time.monotonic()
        # If a server is slow to be promoted, the wait may return early.
        while green.await_promotion(90.0) and green.ask().replica:
            assert time.monotonic() - began < 60.0
        assert time.monotonic() - began < 60.0
        timer.join()
        assert not green.ask().read_only
        green.close()
