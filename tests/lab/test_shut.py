"""A switchover of MariaDB or MySQL shuts a server in each way that the installed server has."""

from __future__ import annotations

from typing import get_args

import pymysql
import pytest

from bgpool.lab import LabError, Pair, ledger
from bgpool.lab.mysql.programs import find_family
from bgpool.lab.server import Shut
from bgpool.mysql import code_of
from tests.lab.clients import Refused, connect

pytestmark = pytest.mark.lab

INSERT = "INSERT INTO ledger (worker, thread, n) VALUES (%s, %s, %s)"
REFUSED = {"locked": (4151, 3118), "offline": (3032,)}
CUT = (2013, 4031, 3032)


@pytest.mark.parametrize("shut", get_args(Shut))
def test_writes_stop_clients_are_cut_and_replication_goes_on(shut: Shut) -> None:
    if shut not in find_family().ways:
        with pytest.raises(LabError, match="cannot be shut by"), Pair(engine="mysql", shut=shut):
            pass
        return
    with Pair(engine="mysql", shut=shut) as pair, connect(pair, pair.blue) as client:
        ledger.create(pair)
        client.execute(INSERT, (1, 1, 1))
        pair.blue.set_read_only(True)
        with pytest.raises(Refused) as refused:
            client.execute(INSERT, (1, 1, 2))
        assert refused.value.code == 1290
        own = [(0, 0, 0)] if _superuser_writes(pair) else []
        assert bool(own) == (shut != "super-read-only")
        for server in pair.servers:
            server.refuse_clients()
        pair.blue.cut_clients()
        with pytest.raises(Refused) as refused:
            client.execute("SELECT 1")
        assert refused.value.code in CUT
        _assert_shut(pair, shut)
        pair.green.wait_replayed(pair.blue.position(), timeout_s=10)
        assert pair.green.is_replica()
        pair.blue.lock_out("monitor")
        pair.blue.stop()
        pair.blue.start()
        for server in pair.servers:
            server.admit_clients()
        _assert_read_only(pair)
        pair.blue.set_read_only(False)
        with connect(pair, pair.blue) as writer:
            writer.execute(INSERT, (1, 1, 3))
        with pytest.raises(Refused) as refused:
            connect(pair, pair.blue, user="monitor", password=pair.lab_password)
        assert refused.value.code in REFUSED["locked"]
        pair.green.wait_replayed(pair.blue.position(), timeout_s=10)
        assert [row.key for row in ledger.read(pair.green)] == [
            (1, 1, 1),
            *([(0, 0, 0)] if shut != "super-read-only" else []),
            (1, 1, 3),
        ]


def _superuser_writes(pair: Pair) -> bool:
    try:
        pair.blue.execute(INSERT, (0, 0, 0), database="app")
    except pymysql.err.OperationalError as error:
        if code_of(error) != 1290:
            raise
        return False
    return True


def _assert_shut(pair: Pair, shut: Shut) -> None:
    """Check that new clients are refused, or find a server that accepts no writes."""
    if shut not in REFUSED:
        _assert_read_only(pair)
        return
    for server in pair.servers:
        with pytest.raises(Refused) as refused:
            connect(pair, server)
        assert refused.value.code in REFUSED[shut]


def _assert_read_only(pair: Pair) -> None:
    with connect(pair, pair.blue) as client, pytest.raises(Refused) as refused:
        client.execute(INSERT, (1, 1, 2))
    assert refused.value.code == 1290
