"""The endpoint behind an application's own name, from a real DNS server and from a hosts file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgpool import aliases
from bgpool.aliases import may_be_alias, real_endpoint
from bgpool.core.limits import ALIAS_LINKS, ALIAS_TIMEOUT_S
from bgpool.lab.dns import DnsServer
from bgpool.lab.names import HostsFile
from tests.waiting import quickest

RDS = "ledger.c0.eu-west-1.rds.amazonaws.com"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DnsServer]:
    hosts = HostsFile(tmp_path / "hosts")
    hosts.set(RDS, "127.0.0.1")
    hosts.set("plain.shop.example", "127.0.0.2")
    server = DnsServer(hosts, "127.0.0.1")
    yield server
    server.close()


def resolver(server: DnsServer) -> str:
    return f"dns://{server.address}:{server.port}"


@pytest.mark.parametrize("host", ["localhost", "db", "10.0.0.1", "::1", "/var/run/postgresql", "", RDS])
def test_what_cannot_be_an_alias_is_not_asked_about(host: str) -> None:
    assert not may_be_alias(host)


def test_a_chain_is_followed_to_the_endpoint(server: DnsServer) -> None:
    server.alias("db.shop.example", "db.internal.example")
    server.alias("db.internal.example", RDS)
    # Aurora's own names are aliases too; the endpoint is the first that is one.
    server.alias(RDS, "host-1.elsewhere.example")
    assert may_be_alias("db.shop.example")
    assert real_endpoint("DB.shop.example.", resolver(server)) == RDS


def test_a_name_that_leads_nowhere_of_aws_is_no_alias(server: DnsServer) -> None:
    server.alias("other.shop.example", "plain.shop.example")
    assert real_endpoint("other.shop.example", resolver(server)) is None
    assert real_endpoint("plain.shop.example", resolver(server)) is None
    assert real_endpoint("missing.shop.example", resolver(server)) is None


@pytest.mark.slow
def test_a_loop_and_an_answer_that_does_not_come_are_said_in_time(server: DnsServer) -> None:
    server.alias("one.example", "two.example")
    server.alias("two.example", "one.example")
    with pytest.raises(OSError, match=str(ALIAS_LINKS)):
        real_endpoint("one.example", resolver(server))
    server.failing = True
    with pytest.raises(OSError, match="SERVFAIL"):
        real_endpoint("one.example", resolver(server))
    server.failing, server.silent = False, True

    def look_up() -> float:
        began = time.monotonic()
        with pytest.raises(OSError, match="lifetime"):
            real_endpoint("one.example", resolver(server))
        return time.monotonic() - began

    assert quickest(look_up, ALIAS_TIMEOUT_S + 2) < ALIAS_TIMEOUT_S + 2


def test_a_chain_of_slow_links_ends_in_time(server: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.alias("one.example", "two.example")
    server.alias("two.example", "one.example")
    server.delay_s = 0.05
    monkeypatch.setattr(aliases, "ALIAS_TIMEOUT_S", 0.12)
    asked = server.questions
    with pytest.raises(OSError, match="lifetime"):
        real_endpoint("one.example", resolver(server))
    assert server.questions - asked <= 3


def test_the_first_name_of_a_line_is_what_the_others_stand_for(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(f"10.0.0.1 {RDS} db.shop.example  # ours\n10.0.0.2 plain.example alias.example\n")
    assert real_endpoint("DB.shop.example", f"hosts:{path}") == RDS
    assert real_endpoint("alias.example", f"hosts:{path}") is None
    assert real_endpoint("missing.example", f"hosts:{path}") is None
    with pytest.raises(OSError, match="No such file"):
        real_endpoint("alias.example", f"hosts:{path}.gone")


def test_a_missing_dnspython_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = sys.modules
    for name in [name for name in modules if name == "dns" or name.startswith("dns.")]:
        monkeypatch.delitem(modules, name)
    monkeypatch.setitem(modules, "dns", None)
    with pytest.raises(OSError, match=r"bgpool\[dns\]"):
        aliases.real_endpoint("db.shop.example", "system")
