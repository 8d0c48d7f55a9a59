"""Parameters: every one in keywords and in a URL, its bounds, and what the errors say."""

from __future__ import annotations

import functools
import logging
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bgpool.core.plan import Target
from bgpool.dsn import parse
from bgpool.dsn.dsn import RawDsn, user_of
from bgpool.errors import ConfigurationError
from bgpool.monitor.config import MonitorConfig
from bgpool.pools.recipe import Destination
from bgpool.settings import Settings, is_disabled

URL = "postgresql://app:s3cret@db.example.com:6000/app"

ENDPOINT = "db.c0.eu-west-1.rds.amazonaws.com"

BUS = "rediss://u:p%40@bus:6380/1"

KEY = "0123456789abcdef" * 2

VALUES: list[tuple[str, str, object, object]] = [
    ("bg_id", "%20Orders-1%20", " Orders-1 ", "orders-1"),
    ("bg_connect_timeout_ms", "5000", 5000, 5000),
    ("bg_interval_baseline_ms", "30000", 30000, 30000),
    ("bg_interval_increased_ms", "700", 700, 700),
    ("bg_interval_high_ms", "60", 60, 60),
    ("bg_switchover_timeout_ms", "90000", 90000, 90000),
    ("bg_suspend_new_blue_connections", "true", True, True),
    ("bg_drop_blue_connections", "off", False, False),
    ("bg_drain_timeout_ms", "0", 0, 0),
    ("bg_release_on_blue_dns_update", "0", False, False),
    ("bg_receipts_table", "app.receipts", "app.receipts", "app.receipts"),
    ("bg_receipts", "always", " Always ", "always"),
    ("bg_receipts_retention_s", "3600", 3600, 3600),
    ("bg_resolver", "dns://127.0.0.1:53", "dns://127.0.0.1:53", "dns://127.0.0.1:53"),
    ("bg_run_dir", "/run/x", "/run/x", Path("/run/x")),
    ("bg_fleet", "valkeys%3A%2F%2Fu%3Ap%2540%40bus%3A6380%2F1", BUS, "rediss://u:p%40@bus:6380/1"),
    ("bg_fleet_key", KEY, KEY.encode(), (KEY.encode(),)),
    ("bg_fleet_trust", "yes", True, True),
    ("endpoint", "DB.c0.eu-west-1.rds.amazonaws.com.", ENDPOINT, ENDPOINT),
]


@pytest.mark.parametrize(("name", "text", "value", "expected"), VALUES, ids=[value[0] for value in VALUES])
def test_keyword_and_url(name: str, text: str, value: object, expected: object) -> None:
    assert getattr(parse(f"{URL}?{name}={text}", {})[1], name) == expected
    assert getattr(parse(URL, {name: value})[1], name) == expected
    other = dict(VALUES_OTHER).get(name)
    if other is not None:
        assert getattr(parse(f"{URL}?{name}={text}", {name: other})[1], name) == other, "a keyword wins"


VALUES_OTHER = [("bg_connect_timeout_ms", 7), ("bg_drain_timeout_ms", 8), ("bg_id", "other")]


def test_every_parameter_is_tested_and_documented() -> None:
    names = set(Settings.__dataclass_fields__)
    # A callable cannot be part of a URL; tests/test_fleet_settings.py has it.
    assert {value[0] for value in VALUES} | {"bg_fleet_password"} == names
    documented = (Path(__file__).parent.parent / "docs" / "parameters.md").read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in documented] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bg_id", "  "),
        ("bg_id", True),
        ("bg_id", float("inf")),
        ("bg_id", None),
        ("bg_connect_timeout_ms", -1),
        ("bg_connect_timeout_ms", "soon"),
        ("bg_connect_timeout_ms", 1.5),
        ("bg_connect_timeout_ms", True),
        ("bg_interval_high_ms", 0),
        ("bg_switchover_timeout_ms", 10**12),
        ("bg_drop_blue_connections", "maybe"),
        ("bg_drop_blue_connections", 2),
        ("bg_receipts_table", "no table"),
        ("bg_receipts_table", "a.b.c"),
        ("bg_receipts", "sometimes"),
        ("bg_receipts", True),
        ("bg_receipts_retention_s", 599),
        ("bg_receipts_retention_s", "a day"),
        ("bg_resolver", "bind"),
        ("bg_run_dir", 7),
        ("bg_fleet_trust", "perhaps"),
        ("endpoint", "db.example.com"),
        ("endpoint", 7),
    ],
)
def test_out_of_domain(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match="allowed") as caught:
        parse(URL, {name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(("value", "expected"), [(7, "7"), (7.0, "7"), (1.5, "1.5"), (" Ledger ", "ledger")])
def test_a_bg_id_is_any_number_or_string(value: object, expected: str) -> None:
    assert parse(URL, {"bg_id": value})[1].bg_id == expected


def test_unknown_parameter() -> None:
    for dsn, options in ((URL, {"bg_conect_timeout_ms": 1}), (f"{URL}?bg_conect_timeout_ms=1", {})):
        with pytest.raises(ConfigurationError, match=r"'bg_conect_timeout_ms'.*bg_connect_timeout_ms"):
            parse(dsn, options)


@pytest.mark.parametrize(
    ("dsn", "options"),
    [
        (f"{URL}?connect_timeout=0", {}),
        (f"{URL}?connect_timeout=never", {}),
        (URL, {"kwargs": {"connect_timeout": 0}}),
        (URL, {"monitoring": {"connect_timeout": 0}}),
        (f"{URL}?blue-green-monitoring-connect_timeout=0", {}),
        ("host=db connect_timeout=0", {}),
    ],
)
def test_a_connect_timeout_of_zero_is_refused(dsn: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"connect_timeout=.*above 0"):
        parse(dsn, options)


@pytest.mark.parametrize(
    "dsn",
    [
        "",
        "   ",
        "oracle://app:s3cret@db/app",
        "postgresql://app:s3cret@[::1/app",
        "postgresql://app:s3cret@db:port/app",
        "host=db password='s3cret",
        "nonsense",
        "postgresql://app:s3cret@one,two/app",
        "postgresql://app:s3cret@db:70000/app",
        "postgresql://app:s3cret@db/app?no_such_option=1",
        # Not escaped: what comes before the slash would be host and port.
        "postgresql://app:s3cret/pw@db/app",
        "postgresql://app:s3cret,x/pw@db/app",
        "postgresql://app:s3cret@db/app\udcff",
        "postgresql://app:s3cret@db/app?service=prod",
        # The @ is missing.
        "postgresql://app:s3cret.db.example.com/app",
        "postgresql://app:s3cret,x.db.example.com/app",
        "postgresql://app:x,s3cret.db.example.com/app",
        # An @ in the password is not written as %40.
        "postgresql://app:pass@s3cret@db/app",
        "s3cret@db://app",
        # A value in the place of another.
        "host=db connect_timeout=s3cret",
        "host=db port=s3cret",
        "host=user@s3cret",
        "host=db password=top?s3cret=1 nonsense",
        "postgresql://db/app?endpoint=app:s3cret@db",
        "postgresql://db/app?blue-green-monitoring-port=s3cret",
        "postgresql://db/app?blue-green-monitoring-host=app@s3cret",
    ],
)
def test_a_bad_dsn_is_refused_without_its_password(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="allowed") as caught:
        parse(dsn, {})
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("dsn", ["postgresql://app:8675309/app", "postgresql://app:86753/app", "mysql://app:86753/app"])
def test_digits_in_the_place_of_a_port_may_be_a_password(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="port=<str>") as caught:
        parse(dsn, {})
    assert "86753" not in str(caught.value)


def test_an_endpoint_that_is_a_dsn_is_not_repeated() -> None:
    for value in ("postgresql://app:s3cret@db/app", "app:s3cret@db", b"s3cret"):
        with pytest.raises(ConfigurationError, match="endpoint=<") as caught:
            parse("postgresql://db/app", {"endpoint": value})
        assert "s3cret" not in str(caught.value)


def test_a_bg_id_is_no_dsn() -> None:
    with pytest.raises(ConfigurationError, match=r"bg_id: .* is allowed") as caught:
        parse("postgresql://db/app", {"bg_id": "postgresql://app:s3cret@db/app"})
    assert "s3cret" not in str(caught.value)


def test_a_password_may_look_like_a_url_in_a_connection_string() -> None:
    dsn, _, _ = parse("host=db password=x://y/@z", {})
    assert dsn.params["password"] == "x://y/@z"


def test_a_service_in_kwargs_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # libpq would read it: bgpool would not know where the connections go.
    (tmp_path / "services").write_text("[prod]\nhost=elsewhere.example.com\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    with pytest.raises(ConfigurationError, match="service is not read"):
        parse("postgresql:///app", {"kwargs": {"service": "prod"}})


def test_nothing_that_holds_a_password_shows_it() -> None:
    assert "s3cret" not in repr(
        RawDsn("postgresql://app:s3cret@db/app", {"password": "s3cret"}, {"password": "s3cret"})
    )
    assert "s3cret" not in repr(Destination("10.0.0.1", "db.example.com", "s3cret"))


def test_forms_of_dsn() -> None:
    for dsn in (
        "postgresql://app:p%40ss@DB.example.com:6000/app?sslmode=require&bg_id=x&options=-c%20geqo%3Doff",
        "postgres://app:p%40ss@DB.example.com:6000/app?sslmode=require&options=-c%20geqo%3Doff",
        "host=DB.example.com port=6000 user=app password=p@ss dbname=app sslmode=require options='-c geqo=off'",
    ):
        place, _, left = parse(dsn, {})
        assert (place.host, place.port, place.endpoint) == ("DB.example.com", 6000, "db.example.com")
        assert place.params["password"] == "p@ss"
        assert place.params["options"] == "-c geqo=off"
        assert "p@ss" not in repr(place)
        assert left == {}


def test_monitoring_connections_have_their_own_parameters() -> None:
    dsn = f"{URL}?target_session_attrs=primary&blue-green-monitoring-user=watcher"
    place, _, left = parse(dsn, {"monitoring": {"password": "other"}, "min_size": 2})
    assert place.params["user"] == "app"
    assert place.monitoring["user"] == "watcher"
    assert place.monitoring["password"] == "other"
    assert place.monitoring["connect_timeout"] == 10
    assert "target_session_attrs" not in place.monitoring
    assert "statement_timeout=10s" in place.monitoring["options"]
    assert "blue-green-monitoring-user" not in place.params
    assert left == {"min_size": 2}
    with pytest.raises(ConfigurationError, match="blue-green-monitoring-usr"):
        parse(f"{URL}?blue-green-monitoring-usr=x", {})


KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}


def test_a_dead_network_is_noticed_unless_the_dsn_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for params in (parse(URL, {})[0].params, monitor_of(URL).params):
        assert {name: int(params[name]) for name in KEEPALIVE} == KEEPALIVE
        assert int(params["tcp_user_timeout"]) == 25_000
    # Keepalive and data under way have the same time, however long the user makes it.
    own = parse(f"{URL}?keepalives_idle=60", {"kwargs": {"keepalives_count": 4}})[0].params
    assert [int(own[name]) for name in KEEPALIVE] == [60, 5, 4]
    assert own["tcp_user_timeout"] == 80_000
    assert parse(f"{URL}?tcp_user_timeout=0", {})[0].params["tcp_user_timeout"] == "0"
    services = tmp_path / "services"
    services.write_text("[slow]\ntcp_user_timeout=90000\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    monkeypatch.setenv("PGSERVICE", "slow")
    assert "tcp_user_timeout" not in parse(URL, {})[0].params


def monitor_of(dsn: str, **options: Any) -> MonitorConfig:
    place, settings, _ = parse(dsn, options)
    return MonitorConfig.of(place, settings, Path("/run/x"))


def test_the_monitor_may_look_elsewhere_first() -> None:
    assert monitor_of(URL).first_target == Target("db.example.com", 6000, anew=True)
    assert monitor_of(URL, endpoint=ENDPOINT).first_target == Target(ENDPOINT, 6000, anew=True)
    assert monitor_of(URL, monitoring={"host": "writer.example", "port": 7000}).first_target == Target(
        "writer.example", 7000, anew=True
    )
    in_url = f"{URL}?blue-green-monitoring-host=writer.example&blue-green-monitoring-port=7000"
    assert monitor_of(in_url).first_target == Target("writer.example", 7000, anew=True)
    assert parse(in_url, {})[0].host == "db.example.com"
    for name, value in (("host", "one,two"), ("port", "many")):
        with pytest.raises(ConfigurationError, match="allowed"):
            monitor_of(URL, monitoring={name: value})


def test_an_address_is_for_one_host_and_the_monitor_goes_to_several() -> None:
    assert "hostaddr" not in monitor_of(f"{URL}?hostaddr=10.0.0.1").params
    with pytest.raises(ConfigurationError, match="host is allowed"):
        monitor_of(URL, monitoring={"hostaddr": "10.0.0.1"})


def test_what_is_not_given_is_not_handed_over() -> None:
    dsn, options = f"{URL}?sslmode=require", {"kwargs": {"sslmode": None}, "monitoring": {"sslcert": None}}
    assert parse(dsn, options)[2] == {"kwargs": {}}
    params = monitor_of(dsn, **options).params
    assert params["sslmode"] == "require"
    assert "sslcert" not in params
    assert all(isinstance(value, str) for value in params.values())


def token(host: str, port: int, user: str) -> str:
    return f"token for {user}@{host}:{port}"


def test_a_password_is_a_string_or_a_callable() -> None:
    given, _, _ = parse(URL, {"password": "other"})
    assert (given.params["password"], given.monitoring["password"], given.password) == ("other", "other", None)
    made, _, left = parse(URL, {"password": token})
    assert made.password is made.monitoring_password is token
    assert "password" not in made.params
    assert "password" not in made.monitoring
    assert left == {}
    with pytest.raises(ConfigurationError, match=r"callable .* is allowed, not bytes") as caught:
        parse(URL, {"password": b"s3cret"})
    assert "s3cret" not in str(caught.value)


def test_a_password_among_the_connection_parameters_is_one_too() -> None:
    made, _, left = parse(URL, {"kwargs": {"password": token, "autocommit": True}})
    assert made.password is made.monitoring_password is token
    assert "password" not in {**made.params, **made.monitoring}
    assert left == {"kwargs": {"autocommit": True}}
    given, _, left = parse(URL, {"kwargs": {"password": "static"}, "password": "keyword"})
    assert given.params["password"] == "keyword", "a keyword wins"
    assert left == {"kwargs": {}}


def test_the_monitor_may_have_a_password_of_its_own() -> None:
    own, _, _ = parse(URL, {"password": token, "monitoring": {"user": "watcher", "password": "own"}})
    assert own.password is token
    assert (own.monitoring_password, own.monitoring["password"]) == (None, "own")
    made, _, _ = parse(URL, {"monitoring": {"password": token}})
    assert (made.password, made.params["password"]) == (None, "s3cret")
    assert made.monitoring_password is token
    assert "password" not in made.monitoring


def test_a_password_callable_goes_to_the_monitor_and_only_there() -> None:
    place, settings, _ = parse(URL, {"password": token})
    config = MonitorConfig.load(MonitorConfig.of(place, settings, Path("/run/x")).dump())
    assert config.password is token
    assert config.rules.await_certificates
    assert "token" not in repr(config)
    plain, settings, _ = parse(URL, {})
    assert MonitorConfig.of(plain, settings, Path("/run/x")).password is None


def test_a_password_callable_that_cannot_be_handed_over_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_the_program(host: str, port: int, user: str) -> str:
        return f"{host}{port}{user}"

    of_the_program.__module__ = "__main__"
    of_the_program.__qualname__ = "of_the_program"
    monkeypatch.setattr(sys.modules["__main__"], "of_the_program", of_the_program, raising=False)
    # A partial's own module is functools, and pickle takes it.
    hidden = functools.partial(of_the_program, "s3cret")
    for callable_ in (lambda *_: "s3cret", of_the_program, hidden):
        place, settings, _ = parse(URL, {"password": callable_})
        with pytest.raises(ConfigurationError, match=r"monitoring=\{'password'") as caught:
            MonitorConfig.of(place, settings, Path("/run/x"))
        assert "s3cret" not in str(caught.value)
        place, settings, _ = parse(URL, {"password": callable_, "monitoring": {"password": "own"}})
        assert MonitorConfig.of(place, settings, Path("/run/x")).password is None


class Reluctant:
    """Pickle takes it, and it says too much when it is read."""

    def __call__(self, host: str, port: int, user: str) -> str:
        return token(host, port, user)

    def __reduce__(self) -> tuple[Any, ...]:
        return (refuse, ("s3cret",))


def refuse(secret: str) -> Reluctant:
    raise ValueError(secret)


def test_a_password_callable_that_the_monitor_cannot_import_is_reported_without_a_secret(tmp_path: Path) -> None:
    place, settings, _ = parse(URL, {"password": Reluctant()})
    with pytest.raises(ConfigurationError, match=r"in the monitor's process \(ValueError\).*RdsIam") as caught:
        _ = MonitorConfig.of(place, settings, tmp_path).password
    assert "s3cret" not in str(caught.value)
    gone = pickle.dumps(token).replace(b"tests.test_settings", b"tests.test_nowhere_")
    with pytest.raises(ConfigurationError, match=r"No module named 'tests.test_nowhere_'"):
        _ = replace(MonitorConfig.of(place, settings, tmp_path), password_callable=gone).password


def test_where_a_name_has_to_be_proved() -> None:
    assert not parse(URL, {})[0].names_matter
    assert not parse(f"{URL}?sslmode=verify-ca", {})[0].names_matter
    assert parse(f"{URL}?sslmode=verify-full", {})[0].names_matter
    assert parse(URL, {"password": token})[0].names_matter


def test_names_are_verified_if_the_environment_requires_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(f"{URL}?sslrootcert=system", {})[0].params["sslmode"] == "verify-full"
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    for place in (parse(URL, {})[0], parse(f"{URL}?sslmode=require", {})[0]):
        assert place.names_matter is (place.params["sslmode"] == "verify-full")
    assert monitor_of(URL).params["sslmode"] == "verify-full"
    assert monitor_of(URL).rules.await_certificates


def test_a_service_and_an_address_say_where_the_monitor_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "services").write_text("[prod]\nhost=db.example.com\nport=6000\nuser=watch\nsslmode=verify-full\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    with pytest.raises(ConfigurationError, match=r"the service in \$PGSERVICE"):
        parse("service=prod dbname=app", {})
    with pytest.raises(ConfigurationError, match="service"):
        parse(URL, {"monitoring": {"service": "prod"}})
    monkeypatch.setenv("PGSERVICE", "prod")
    config = monitor_of("postgresql:///app")
    assert config.first_target == Target("db.example.com", 6000, anew=True)
    assert config.params["user"] == "watch"
    assert config.names_matter
    monkeypatch.delenv("PGSERVICE")
    assert monitor_of("hostaddr=10.0.0.1 dbname=app").first_target == Target("10.0.0.1", 5432, anew=True)


def test_names_matter_though_the_monitor_cannot_prove_any() -> None:
    own = {"user": "watch", "password": "own"}
    for dsn, options in (
        (URL, {"password": token, "monitoring": own}),
        (f"{URL}?sslmode=verify-full&blue-green-monitoring-sslmode=require", {}),
    ):
        config = MonitorConfig.load(monitor_of(dsn, **options).dump())
        assert config.rules.await_certificates
        assert not config.proves_names
    assert not monitor_of(URL).rules.await_certificates


def test_monitoring_that_is_no_mapping_is_not_repeated() -> None:
    for given in ("user=m password=s3cret", [("password", "s3cret")]):
        with pytest.raises(ConfigurationError, match="a mapping of connection parameters is allowed") as caught:
            parse(URL, {"monitoring": given})
        assert "s3cret" not in str(caught.value)


def test_a_connect_timeout_is_always_set() -> None:
    assert parse(URL, {})[0].params["connect_timeout"] == 10
    assert parse(f"{URL}?connect_timeout=3", {})[0].params["connect_timeout"] == "3"


@pytest.mark.parametrize(
    ("name", "value"),
    [("bg_interval_baseline_ms", 900_001), ("bg_interval_increased_ms", 100), ("bg_interval_high_ms", 501)],
)
def test_unusual_intervals_are_warned_about(name: str, value: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="bgpool.settings"):
        parse(URL, {name: value})
    assert name in caplog.text


def test_the_environment_names_a_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGPOOL_RESOLVER", "hosts:/tmp/hosts")
    assert parse(URL, {})[1].bg_resolver == "hosts:/tmp/hosts"
    assert parse(URL, {"bg_resolver": "system"})[1].bg_resolver == "system"


def test_a_connect_timeout_of_the_environment_is_held_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "0")
    with pytest.raises(ConfigurationError, match=r"PGCONNECT_TIMEOUT='0'.*wait forever"):
        parse(URL, {})
    assert parse(f"{URL}?connect_timeout=3", {})[0].params["connect_timeout"] == "3"
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "4")
    assert parse(URL, {})[0].params["connect_timeout"] == "4"


@pytest.mark.parametrize(
    ("value", "disabled"),
    [
        (None, False),
        ("", False),
        (" ", False),
        ("0", False),
        ("off", False),
        ("1", True),
        ("TRUE", True),
        (" on ", True),
    ],
)
def test_words_that_disable(value: str | None, disabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BGPOOL_DISABLE", raising=False)
    if value is not None:
        monkeypatch.setenv("BGPOOL_DISABLE", value)
    assert is_disabled() is disabled


def test_a_user_id_without_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example in a container of OpenShift; the driver reports that a user is missing."""

    def no_account(_uid: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("pwd.getpwuid", no_account)
    for name in ("PGUSER", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert user_of({}) == ""
