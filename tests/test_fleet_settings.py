"""The parameters of a fleet: what is allowed, what the monitor gets of it, and that no secret is ever shown."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import bgpool
from bgpool import registry
from bgpool.core.limits import FLEET_KEY_BYTES
from bgpool.doctor import Case
from bgpool.dsn import parse
from bgpool.errors import ConfigurationError, PasswordFailed
from bgpool.fleet.config import FleetConfig, KeyMaker
from bgpool.monitor.config import MonitorConfig
from bgpool.pools.participant import Disabled, NonParticipant
from bgpool.settings import Settings

URL = "postgresql://app:s3cret@db.example.com:6000/app"
SECRET = "s3cret-of-the-bus"
BUS = f"rediss://watcher:{SECRET}@bus.example.com:6380/2?ssl_ca_certs=/etc/ca.pem"
KEY = b"the first key that nobody reads!!"
OLD = b"the old key that still verifies!!"


@pytest.fixture(autouse=True)
def _nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BGPOOL_FLEET", "BGPOOL_FLEET_KEY", "BGPOOL_FLEET_TRUST"):
        monkeypatch.delenv(name, raising=False)


def settings_of(**given: Any) -> Settings:
    return parse(URL, given)[1]


def config_of(dsn: str = URL, **given: Any) -> MonitorConfig:
    place, settings, _ = parse(dsn, given)
    return MonitorConfig.of(place, settings, Path("/run/x"))


def fleet_of(**given: Any) -> FleetConfig:
    """Return the configuration as it arrives in the monitor."""
    fleet = MonitorConfig.load(config_of(**{"bg_fleet": BUS, **given}).dump()).fleet
    assert fleet is not None
    return fleet


def shown(error: BaseException) -> str:
    """Everything that a traceback has of it."""
    return "".join(traceback.format_exception(error))


# -- the bus -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("redis://bus", "redis://bus"),
        (" REDIS://bus:6380/0 ", "redis://bus:6380/0"),
        ("valkey://bus", "redis://bus"),
        ("valkeys://user:p%40ss@10.0.0.7:6380/15", "rediss://user:p%40ss@10.0.0.7:6380/15"),
        ("rediss://:secret@[fd00::1]:6379", "rediss://:secret@[fd00::1]:6379"),
        ("redis://user@bus_1.example.com/", "redis://user@bus_1.example.com/"),
        (BUS, BUS),
        ("rediss://b?ssl_cert_reqs=none&ssl_check_hostname=false",) * 2,
        ("rediss://b?ssl_keyfile=/etc/k.pem&ssl_password=secret",) * 2,
        ("", None),
        (None, None),
    ],
)
def test_urls_of_a_bus(given: str | None, expected: str | None) -> None:
    assert settings_of(bg_fleet=given).bg_fleet == expected


@pytest.mark.parametrize(
    "given",
    [
        f"http://u:{SECRET}@bus",
        f"unix://u:{SECRET}@/run/redis.sock",
        f"u:{SECRET}@bus",
        f"redis:{SECRET}@bus",
        f"redis://u:{SECRET}@",
        f"redis://u:{SECRET}@bus:0",
        f"redis://u:{SECRET}@bus:port",
        f"redis://u:{SECRET}@bus:70000",
        f"redis://u:{SECRET}@one,two",
        f"redis://u:{SECRET}@bus/name",
        f"redis://u:{SECRET}@bus/0/1",
        f"redis://u:{SECRET}@bus#0",
        f"redis://u:{SECRET}@bus#",
        f"redis://u:{SECRET}@bus?socket_timeout=30",
        f"redis://u@bus?password={SECRET}",
        f"rediss://u@bus?{SECRET}",
        f"rediss://u@bus?ssl_cert_reqs={SECRET}",
        f"rediss://u:{SECRET}@bus?ssl_ca_certs=",
        f"rediss://u:{SECRET}@bus?ssl_cert_reqs=CERT_NONE",
        f"rediss://u:{SECRET}@bus?ssl_ca_certs=a&ssl_ca_certs=b",
        f"redis://u:{SECRET}@bus?ssl_ca_certs=/etc/ca.pem",
        f"redis://u:{SECRET}@b us",
        f"redis://u:{SECRET}@bus\n.example.com",
        f"redis://u:{SECRET}@[::1",
        f"redis://u:{SECRET}@bus\udcff",
        # A password in which / ? # are not escaped.
        f"redis://u:12/{SECRET}@bus",
        f"redis://u:12?{SECRET}@bus",
        f"redis://u:12#{SECRET}@bus",
        f"redis://u:{SECRET}/x@bus",
        f"redis://u:{SECRET}?x@bus",
        SECRET.encode(),
        [f"redis://u:{SECRET}@bus"],
        7,
    ],
)
def test_what_is_no_url_of_a_bus_is_refused_and_not_repeated(given: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"^bg_fleet: .*allowed") as caught:
        settings_of(bg_fleet=given, bg_fleet_trust=True)
    assert "redis://" in str(caught.value)
    assert SECRET not in shown(caught.value)
    if isinstance(given, str) and "\udcff" not in given:
        monkeypatch.setenv("BGPOOL_FLEET", given)
        with pytest.raises(ConfigurationError, match=r"^\$BGPOOL_FLEET: .*allowed") as caught:
            settings_of(bg_fleet_trust=True)
        assert SECRET not in shown(caught.value)


def test_the_public_part_of_a_bus() -> None:
    fleet = fleet_of(bg_fleet_key=KEY)
    assert (fleet.host, fleet.port, fleet.user, fleet.is_encrypted) == ("bus.example.com", 6380, "watcher", True)
    assert fleet.place == "bus.example.com:6380"
    assert SECRET in fleet.secrets
    assert fleet.url in fleet.secrets
    plain = fleet_of(bg_fleet="redis://us%2Fer:p%40ss@[fd00::1]", bg_fleet_trust=True)
    assert (plain.host, plain.port, plain.user, plain.is_encrypted) == ("fd00::1", 6379, "us/er", False)
    assert plain.place == "[fd00::1]:6379"
    assert "p@ss" in plain.secrets
    assert "a b" in fleet_of(bg_fleet="rediss://bus?ssl_password=a%20b", bg_fleet_trust=True).secrets


# -- the key -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("k" * FLEET_KEY_BYTES, (b"k" * FLEET_KEY_BYTES,)),
        ("\u00e9" * 16, ("\u00e9".encode() * 16,)),
        (f" {KEY.decode()}\n,{'o' * 40},", (KEY, b"o" * 40)),
        (KEY, (KEY,)),
        (b"\x00,\n" * 11, (b"\x00,\n" * 11,)),
        ([KEY, OLD], (KEY, OLD)),
        ((KEY, "o" * 40), (KEY, b"o" * 40)),
        ("", None),
        (None, None),
    ],
)
def test_keys(given: object, expected: object) -> None:
    assert settings_of(bg_fleet_key=given).bg_fleet_key == expected


SHORT = "s3cret-and-only-thirty-bytes-.."[:30]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (SHORT, "the key has 30 bytes; at least 32 are allowed"),
        (SHORT.encode(), "the key has 30 bytes"),
        (f"{'k' * 32},{SHORT}", "key 2 of 2 has 30 bytes"),
        ([KEY, SHORT], "key 2 of 2 has 30 bytes"),
        (b"", "the key has 0 bytes"),
        (" , ", "0 keys are given; 1 to 4 are allowed"),
        ([], "0 keys are given"),
        ([KEY] * 5, "5 keys are given"),
        ("s3cret\udcff" * 9, "UTF-8 is allowed"),
        (7, "not int"),
        ([KEY, 7], "not int"),
        ({"s3cret": 1}, "not dict"),
        ({KEY}, "not set"),
    ],
)
def test_a_key_that_is_none_is_refused_and_not_repeated(given: object, says: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^bg_fleet_key: .*allowed") as caught:
        settings_of(bg_fleet_key=given)
    assert says in str(caught.value)
    assert "s3cret" not in shown(caught.value)


def test_a_bus_without_a_key_says_what_to_do() -> None:
    for given in ({}, {"bg_fleet_trust": False}, {"bg_fleet_key": None}, {"bg_fleet_key": ""}):
        with pytest.raises(
            ConfigurationError, match=r"\$BGPOOL_FLEET_KEY .*openssl rand.*bg_fleet_trust=true"
        ) as caught:
            config_of(bg_fleet=BUS, **given)
        assert SECRET not in shown(caught.value)
    fleet = fleet_of(bg_fleet_trust=True)
    assert (fleet.trust, fleet.keys, KeyMaker(fleet).make()) == (True, (), ())
    # A key is asked for wherever there is one.
    fleet = fleet_of(bg_fleet_trust=True, bg_fleet_key=KEY)
    assert (fleet.trust, fleet.keys) == (False, (KEY,))


def test_a_key_without_a_bus_is_for_another_pool() -> None:
    assert config_of(bg_fleet_key=KEY, bg_fleet_trust=True).fleet is None
    assert MonitorConfig.load(config_of(bg_fleet_key=KEY).dump()).fleet is None


def test_the_environment_names_a_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGPOOL_FLEET", "valkey://bus")
    monkeypatch.setenv("BGPOOL_FLEET_KEY", f"{'k' * 32},{'o' * 32}")
    assert config_of().fleet == FleetConfig("redis://bus", (b"k" * 32, b"o" * 32))
    assert config_of(bg_fleet_key=KEY, bg_fleet="redis://other").fleet == FleetConfig("redis://other", (KEY,))
    assert config_of(f"{URL}?bg_fleet=redis://third").fleet == FleetConfig("redis://third", (b"k" * 32, b"o" * 32))
    assert config_of(bg_fleet=None).fleet is None
    assert config_of(f"{URL}?bg_fleet=").fleet is None
    monkeypatch.setenv("BGPOOL_FLEET_KEY", "")
    with pytest.raises(ConfigurationError, match="needs a key"):
        config_of()
    monkeypatch.setenv("BGPOOL_FLEET_TRUST", "1")
    assert config_of().fleet == FleetConfig("redis://bus", trust=True)
    with pytest.raises(ConfigurationError, match="needs a key"):
        config_of(bg_fleet_trust=False)
    monkeypatch.setenv("BGPOOL_FLEET_TRUST", "perhaps")
    with pytest.raises(ConfigurationError, match=r"\$BGPOOL_FLEET_TRUST='perhaps'"):
        config_of()
    monkeypatch.setenv("BGPOOL_FLEET_TRUST", "")
    monkeypatch.setenv("BGPOOL_FLEET_KEY", SHORT)
    with pytest.raises(ConfigurationError, match=r"^\$BGPOOL_FLEET_KEY: the key has 30 bytes") as caught:
        config_of()
    assert SHORT not in shown(caught.value)


# -- callables ---------------------------------------------------------------------------------------------------


def two_keys() -> list[bytes]:
    return [KEY, OLD]


def short_key() -> str:
    return SHORT


async def no_key() -> bytes:
    return KEY


def broken_key() -> bytes:
    raise ValueError("s3cret")


def bus_token(host: str, port: int, user: str) -> str:
    return f"token for {user}@{host}:{port}"


def test_a_key_callable_is_called_in_the_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(bg_fleet=BUS, bg_fleet_key=two_keys)
    assert config.fleet is not None
    assert config.fleet.keys == ()
    assert not config.fleet.trust
    assert KEY not in config.dump()
    fleet = fleet_of(bg_fleet_key=two_keys)
    maker = KeyMaker(fleet)
    assert maker.make() == (KEY, OLD)
    monkeypatch.setattr("tests.test_fleet_settings.KEY", b"n" * 32)
    assert maker.make() == (b"n" * 32, OLD), "a changed key is fetched"


@pytest.mark.parametrize(
    ("function", "error", "says"),
    [
        (short_key, ConfigurationError, "the callable bg_fleet_key returns: the key has 30 bytes"),
        (dict, ConfigurationError, "not dict"),
        (broken_key, PasswordFailed, "the callable bg_fleet_key failed: ValueError"),
    ],
)
def test_a_key_callable_without_a_key_is_reported_without_a_secret(
    function: Callable[[], object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        KeyMaker(fleet_of(bg_fleet_key=function)).make()
    assert "s3cret" not in str(caught.value)


def test_callables_that_cannot_be_handed_over_are_refused() -> None:
    for given in (
        {"bg_fleet_key": lambda: b"s3cret"},
        {"bg_fleet_key": functools.partial(lambda _: b"", "s3cret")},
        {"bg_fleet_key": KEY, "bg_fleet_password": lambda *_: "s3cret"},
    ):
        with pytest.raises(ConfigurationError, match=r"cannot be passed to the monitor.*top level") as caught:
            config_of(bg_fleet=BUS.replace(f":{SECRET}", ""), **given)
        assert "s3cret" not in shown(caught.value)
        # They must not be called.
        assert config_of(**given).fleet is None
    for name in ("bg_fleet_key", "bg_fleet_password"):
        with pytest.raises(ConfigurationError, match=f"^{name}: .*not a coroutine function"):
            settings_of(**{name: no_key})


def test_callables_that_the_monitor_cannot_import_are_reported() -> None:
    fleet = fleet_of(bg_fleet_key=two_keys)
    gone = pickle.dumps(two_keys).replace(b"tests.test_fleet_settings", b"tests.test_fleet_nowhere_")
    with pytest.raises(ConfigurationError, match=r"bg_fleet_key cannot be used .*'tests.test_fleet_nowhere_'"):
        KeyMaker(replace(fleet, key_callable=gone)).make()
    with pytest.raises(ConfigurationError, match=r"bg_fleet_password cannot be used .*'tests.test_fleet_nowhere_'"):
        _ = replace(fleet, password_callable=gone).password


def test_a_password_callable() -> None:
    fleet = fleet_of(bg_fleet="rediss://watcher@bus", bg_fleet_key=KEY, bg_fleet_password=bus_token)
    assert fleet.password is bus_token
    assert fleet_of(bg_fleet_key=KEY).password is None
    with pytest.raises(ConfigurationError, match="one of them is allowed") as caught:
        config_of(bg_fleet=BUS, bg_fleet_key=KEY, bg_fleet_password=bus_token)
    assert SECRET not in shown(caught.value)
    for dsn, given in ((URL, {"bg_fleet_password": SECRET}), (f"{URL}?bg_fleet_password={SECRET}", {})):
        with pytest.raises(ConfigurationError, match=r"callable .*is allowed, not str") as caught:
            parse(dsn, given)
        assert SECRET not in shown(caught.value)


# -- what is shown -----------------------------------------------------------------------------------------------


def test_no_secret_is_shown() -> None:
    key = KEY.decode()
    for given in (
        {"bg_fleet": BUS, "bg_fleet_key": key},
        {"bg_fleet": BUS, "bg_fleet_key": functools.partial(str, key)},
    ):
        config = config_of(**given)
        fleet = fleet_of(**given)
        for thing in (settings_of(**given), config, config.fleet, fleet, KeyMaker(fleet)):
            assert SECRET not in repr(thing)
            assert key not in repr(thing)
            assert "bus.example.com" not in repr(thing)


@pytest.fixture
def _closed() -> Iterator[None]:
    yield
    for one in registry.pools():
        one.stop(timeout=0)
    registry._registry.pools.clear()


@pytest.mark.usefixtures("_closed")
def test_neither_pools_nor_the_registry_show_a_secret(tmp_path: Path) -> None:
    given: dict[str, Any] = {"bg_fleet": BUS, "bg_fleet_key": KEY.decode(), "bg_run_dir": tmp_path}
    pool = bgpool.get_pool(URL, **given)
    assert pool is bgpool.get_pool(URL, **given)
    assert pool is not bgpool.get_pool(URL, **{**given, "bg_fleet_key": OLD})
    everything = repr((registry._registry.pools, pool, vars(pool), pool.participant, pool.monitoring))
    for secret in (SECRET, KEY.decode(), OLD.decode(), ":s3cret@"):
        assert secret not in everything


def test_an_unknown_parameter_is_named_without_its_value() -> None:
    for dsn, given in (
        (f"{URL}?bg_flet={BUS}", {}),
        (URL, {"bg_flet": BUS}),
        (URL, {"bg_fleet_keys": KEY.decode()}),
    ):
        with pytest.raises(ConfigurationError, match="unknown parameter 'bg_fle") as caught:
            parse(dsn, given)
        assert SECRET not in shown(caught.value)
        assert KEY.decode() not in shown(caught.value)


# -- all consumers of the parameters ----------------------------------------------------------------------


@pytest.fixture
def _plain(monkeypatch: pytest.MonkeyPatch, _closed: None) -> None:
    """Whatever connects is to start no monitor."""
    monkeypatch.setenv("BGPOOL_DISABLE", "1")


@pytest.mark.usefixtures("_plain")
def test_sqlalchemy() -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    nowhere = "postgresql+bgpool://app@127.0.0.1:1/app"
    for url, given in (
        (f"{nowhere}?bg_fleet={quote(BUS, safe='')}&bg_fleet_key={quote(KEY + b',' + OLD)}", {}),
        (nowhere, {"bg_fleet": BUS, "bg_fleet_key": [KEY, OLD]}),
        (nowhere, {"bg_fleet": BUS, "bg_fleet_key": two_keys}),
    ):
        with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
            sqlalchemy.create_engine(url, connect_args=given).connect()
        assert SECRET not in shown(caught.value)
        (connector,) = registry.pools()
        assert isinstance(connector.monitoring, MonitorConfig)
        assert connector.monitoring.fleet is not None
        assert connector.monitoring.fleet.url == BUS
        assert KeyMaker(connector.monitoring.fleet).make() == (KEY, OLD)
        connector.stop(timeout=0)
    for bad in ({"bg_fleet": BUS}, {"bg_fleet": f"http://{SECRET}@b", "bg_fleet_key": KEY}):
        with pytest.raises(ConfigurationError, match=r"create_engine: bg_fleet") as refused:
            sqlalchemy.create_engine(nowhere, connect_args=bad).connect()
        assert SECRET not in shown(refused.value)


@pytest.mark.usefixtures("_plain")
def test_asyncpg() -> None:
    pytest.importorskip("asyncpg")
    from bgpool.integrations.asyncpg.connector import get_connector

    connector, left = get_connector(URL, None, {"bg_fleet": BUS, "bg_fleet_key": [KEY, OLD]})
    assert left == {}
    assert isinstance(connector.monitoring, MonitorConfig)
    assert connector.monitoring.fleet == FleetConfig(BUS, (KEY, OLD))


def test_the_doctor_and_the_command_that_is_the_monitor() -> None:
    dsn = f"{URL}?bg_fleet={quote(BUS, safe='')}&bg_fleet_key={quote(KEY)}"
    case = Case(dsn)
    assert case.config.fleet == FleetConfig(BUS, (KEY,))
    assert case.without_secrets(f"in {BUS} and {SECRET}") == "in *** and ***"
    for command in ("monitor", "doctor"):
        asked = subprocess.run(
            [sys.executable, "-m", "bgpool", command, "-"],
            input=dsn.replace("bg_fleet_key", "bg_id"),
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert asked.returncode == 2, asked.stderr
        assert "bg_fleet needs a key" in asked.stderr
        assert SECRET not in asked.stderr + asked.stdout


# -- one monitor -------------------------------------------------------------------------------------------------


def test_whose_settings_the_leader_asks_about() -> None:
    mark = config_of().application_mark
    assert len(mark) == 8
    assert int(mark, 16) >= 0
    assert config_of(bg_id="other", bg_fleet=BUS, bg_fleet_key=KEY).application_mark == mark
    others = {
        config_of("postgresql://other@db.example.com/app").application_mark,
        config_of("postgresql://app@db.example.com/other").application_mark,
        config_of("mysql://app@db.example.com/app").application_mark,
    }
    assert len(others | {mark}) == 4


@pytest.mark.usefixtures("_closed")
def test_the_monitor_has_the_bus_of_the_pool_whose_parameters_it_uses(tmp_path: Path) -> None:
    """The same holds for intervals and all other parameters that may differ between pools of one deployment."""
    first = bgpool.get_pool(URL, bg_run_dir=tmp_path, bg_fleet=BUS, bg_fleet_key=KEY)
    second = bgpool.get_pool(URL, bg_run_dir=tmp_path)
    assert first.participant is second.participant
    assert isinstance(first.monitoring, MonitorConfig)
    assert isinstance(second.monitoring, MonitorConfig)
    assert first.monitoring.fleet == FleetConfig(BUS, (KEY,))
    assert second.monitoring.fleet is None


@pytest.mark.usefixtures("_closed")
def test_who_takes_no_part_has_no_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bus is the monitor's alone, and these start none."""
    given: dict[str, Any] = {"bg_run_dir": tmp_path, "bg_fleet": BUS, "bg_fleet_key": KEY}
    monkeypatch.setenv("BGPOOL_DISABLE", "1")
    pool = bgpool.get_pool(URL, bg_id="disabled", **given)
    assert isinstance(pool.participant, Disabled)
    monkeypatch.delenv("BGPOOL_DISABLE")
    aside = registry.get_source(registry.POOLS, URL, None, given, takes_part=False)
    assert isinstance(aside.participant, NonParticipant)
    for one in (pool, aside):
        one.participant.join(one)
        assert one.participant._watch is None
    assert not list(tmp_path.iterdir())


def test_a_rehearsal_has_no_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its servers are the lab's, and the hosts of the real application would receive their readings."""
    monkeypatch.setenv("BGPOOL_REHEARSAL", "a mark")
    assert config_of(bg_fleet=BUS, bg_fleet_key=KEY).fleet is None
    with pytest.raises(ConfigurationError, match="needs a key"):
        config_of(bg_fleet=BUS)
