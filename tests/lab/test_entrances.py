"""The frontends of a lab's servers: certificates and tokens for the current names, and Aurora's tables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bgpool.core.engine import Engine
from bgpool.lab import Director, Pair, TruthProbe, metadata
from bgpool.lab.faults import lock_out_monitor
from tests.lab.clients import Refused, connect

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module", params=Engine, ids=lambda engine: engine.value)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with Pair("aurora", engine=request.param, iam=True, readers=1) as pair:
        yield pair


def test_certificates_and_tokens_are_for_the_names_of_the_moment(pair: Pair) -> None:
    blue, green = pair.names.blue, pair.names.green

    def come(name: str, token_for: str) -> None:
        token = pair.tokens(token_for, pair.port, "app")
        connect(pair, pair.green, host=name, password=token).close()

    come(green.primary, green.primary)
    assert green.reader is not None
    for name, token_for in ((blue.primary, green.primary), (green.primary, blue.primary), (green.reader, green.reader)):
        with pytest.raises(Refused):
            come(name, token_for)
    pair.certify("green", pair.names.promoted)
    come(blue.primary, green.primary)
    pair.accept_tokens("green", pair.names.promoted)
    come(blue.primary, blue.primary)
    with pytest.raises(Refused):
        come(blue.primary, green.primary)
    pair.certify("green", green)
    pair.accept_tokens("green", green)


def test_a_role_with_tokens_cannot_use_its_password(pair: Pair) -> None:
    with pytest.raises(Refused):
        connect(pair, pair.blue, host=pair.names.blue.primary, password=pair.app_password)


def test_an_aurora_cluster_reports_its_version_and_its_servers(pair: Pair) -> None:
    columns = "server_id, session_id = 'MASTER_SESSION_ID'"
    topology, version = {
        Engine.POSTGRESQL: ("aurora_replica_status()", "aurora_version()"),
        Engine.MYSQL: ("information_schema.replica_host_status", "AURORA_VERSION()"),
    }[pair.engine]
    Director(pair).create_deployment()
    for side, server in ((pair.names.blue, pair.blue), (pair.names.green, pair.green)):
        with connect(
            pair, server, host=side.instance, user="monitor", password=pair.lab_password, name="bgpool-monitor"
        ) as client:
            assert pair.monitoring_connections() == 1
            rows = client.execute(f"SELECT {columns} FROM {topology} ORDER BY server_id")
            assert [(name, bool(writer)) for name, writer in rows] == [
                (name, n == 0) for n, name in enumerate(side.server_ids)
            ]
            assert client.execute(f"SELECT {version}")[0][0]
    for server in pair.servers:
        metadata.withdraw(server)


def test_the_truth_probe_connects_around_the_frontends(pair: Pair) -> None:
    with TruthProbe(pair) as truth:
        truth.wait_writing()


def test_a_role_can_be_locked_out_of_one_side(pair: Pair) -> None:
    lock_out_monitor(pair, "green")
    with pytest.raises(Refused):
        connect(pair, pair.green, host=pair.names.green.primary, user="monitor", password=pair.lab_password)
    connect(pair, pair.blue, host=pair.names.blue.primary, user="monitor", password=pair.lab_password).close()
