"""MySQL DSNs: every part of a URL, every connection parameter and its type, and what the errors say."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pymysql
import pytest

from bgpool.core.limits import MYSQL_READ_TIMEOUT_S, MYSQL_WRITE_TIMEOUT_S
from bgpool.core.plan import Target
from bgpool.dsn import Engine, parse
from bgpool.dsn.keywords import READERS
from bgpool.errors import ConfigurationError
from bgpool.monitor.config import MonitorConfig

URL = "mysql://app:s3cret@db.example.com:3307/app"
KEY = "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----\n"

VALUES: list[tuple[str, str, object]] = [
    ("connect_timeout", "3", 3),
    ("read_timeout", "30", 30),
    ("write_timeout", "7", 7),
    ("tcp_user_timeout", "60000", 60_000),
    ("charset", "latin1", "latin1"),
    ("collation", "utf8mb4_bin", "utf8mb4_bin"),
    ("init_command", "SET%20%40a%3D1", "SET @a=1"),
    ("sql_mode", "ANSI", "ANSI"),
    ("bind_address", "127.0.0.1", "127.0.0.1"),
    ("autocommit", "true", True),
    ("local_infile", "0", False),
    ("use_unicode", "1", True),
    ("binary_prefix", "true", True),
    ("client_flag", "2", 2),
    ("max_allowed_packet", "1048576", 1048576),
    ("program_name", "shop", "shop"),
    ("ssl_ca", "/etc/ca.pem", "/etc/ca.pem"),
    ("ssl_cert", "/etc/cert.pem", "/etc/cert.pem"),
    ("ssl_key", "/etc/key.pem", "/etc/key.pem"),
    ("ssl_key_password", "k3y", "k3y"),
    ("ssl_verify_cert", "yes", True),
    ("ssl_verify_identity", "true&ssl_ca=/etc/ca.pem", True),
    ("ssl_disabled", "off", False),
    ("server_public_key", KEY.replace("\n", "%0A"), KEY.encode()),
]


def token(host: str, port: int, user: str) -> str:
    return f"token for {user}@{host}:{port}"


def monitor_of(dsn: str, **options: Any) -> MonitorConfig:
    place, settings, _ = parse(dsn, options)
    return MonitorConfig.load(MonitorConfig.of(place, settings, Path("/run/x")).dump())


@pytest.mark.parametrize(("name", "text", "value"), VALUES, ids=[value[0] for value in VALUES])
def test_parameters_are_typed(name: str, text: str, value: object) -> None:
    found = parse(f"{URL}?{name}={text}", {})[0].params[name]
    assert (found, type(found)) == (value, type(value))
    kwargs = {"ssl_ca": "/etc/ca.pem", name: value}
    assert parse(URL, {"kwargs": kwargs})[0].params[name] == value


def test_every_parameter_is_tested_and_documented() -> None:
    assert {value[0] for value in VALUES} | {"unix_socket"} == set(READERS)
    documented = (Path(__file__).parent.parent / "docs" / "parameters.md").read_text(encoding="utf-8")
    assert [name for name in READERS if f"`{name}`" not in documented] == []


@pytest.mark.parametrize(
    ("dsn", "host", "port"),
    [
        ("mysql://app@DB.example.com/app", "DB.example.com", 3306),
        ("mysql+pymysql://app@db:3307", "db", 3307),
        ("mariadb+pymysql://app@db:3307", "db", 3307),
        ("MYSQL://app@[2001:db8::1]:3307/app", "2001:db8::1", 3307),
        ("mysql://app@[::1]", "::1", 3306),
        ("mysql://app@/app", "", 3306),
        ("mysql://app@/app?unix_socket=/run/mysqld.sock", "", 3306),
        ("mysql://app@localhost/app?unix_socket=/run/mysqld.sock", "", 3306),
    ],
)
def test_forms_of_url(dsn: str, host: str, port: int) -> None:
    place, _, left = parse(dsn, {})
    assert (place.engine, place.host, place.port, place.user) == (Engine.MYSQL, host, port, "app")
    assert place.endpoint == host.lower()
    assert not {"host", "port", "password"} & set(place.params)
    assert left == {}


def test_every_part_of_a_url_may_be_escaped() -> None:
    place, settings, _ = parse("mysql://a%40b:p%2F%3F%40%25:s@db/my%2Fapp?sql_mode=A%2CB&bg_id=Orders", {})
    assert place.params["user"] == place.user == "a@b"
    assert place.params["password"] == "p/?@%:s"
    assert place.params["database"] == "my/app"
    assert place.params["sql_mode"] == "A,B"
    assert settings.bg_id == "orders"
    assert "p/?" not in repr(place)


def test_without_a_user_it_is_the_driver_s() -> None:
    assert parse("mysql://db/app", {})[0].user == pymysql.connections.DEFAULT_USER


def test_every_wait_has_an_end() -> None:
    params = parse(URL, {"kwargs": {"read_timeout": None}})[0].params
    assert params["connect_timeout"] == 10
    assert params["read_timeout"] == MYSQL_READ_TIMEOUT_S
    assert params["write_timeout"] == MYSQL_WRITE_TIMEOUT_S
    assert params["charset"] == "utf8mb4"


@pytest.mark.parametrize(
    ("dsn", "options"),
    [
        (f"{URL}?connect_timeout=0", {}),
        (f"{URL}?connect_timeout=never", {}),
        (f"{URL}?connect_timeout=1.5", {}),
        (f"{URL}?connect_timeout=31536001", {}),
        (URL, {"kwargs": {"connect_timeout": 0}}),
        (URL, {"kwargs": {"connect_timeout": True}}),
        (URL, {"monitoring": {"connect_timeout": 0}}),
        (f"{URL}?blue-green-monitoring-connect_timeout=0", {}),
    ],
)
def test_a_connect_timeout_of_zero_is_refused(dsn: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"connect_timeout=.*above 0"):
        parse(dsn, options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("read_timeout", 0),
        ("write_timeout", -1),
        ("charset", "klingon"),
        ("collation", 7),
        ("init_command", ""),
        ("autocommit", "perhaps"),
        ("max_allowed_packet", 0),
        ("ssl_ca", b"/etc/ca.pem"),
        ("ssl_disabled", 2),
        ("ssl_verify_identity", True),
        ("server_public_key", "/etc/key.pem"),
        ("user", 7),
    ],
)
def test_out_of_domain(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match="allowed") as caught:
        parse(URL, {"kwargs": {name: value}})
    assert name in str(caught.value)


def test_names_are_not_compared_without_an_authority() -> None:
    for kwargs in ({"ssl_verify_identity": True}, {"ssl_verify_identity": True, "ssl_ca": "x", "ssl_disabled": True}):
        with pytest.raises(ConfigurationError, match=r"ssl_verify_identity: ssl_ca has to be given"):
            parse(URL, {"kwargs": kwargs})
    with pytest.raises(ConfigurationError, match=r"blue-green-monitoring-ssl_verify_identity: ssl_ca"):
        parse(URL, {"monitoring": {"ssl_verify_identity": True}})


def test_unknown_parameters_are_named_with_what_is_allowed() -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        (f"{URL}?conect_timeout=1", {}, r"'conect_timeout': allowed are .*connect_timeout"),
        (URL, {"kwargs": {"conect_timeout": 1}}, r"'conect_timeout': allowed are .*cursorclass.*connect_timeout"),
        (f"{URL}?blue-green-monitoring-usr=x", {}, r"'blue-green-monitoring-usr': allowed are user, "),
        (URL, {"monitoring": {"usr": "x"}}, r"'blue-green-monitoring-usr': allowed are user, "),
    ]
    for dsn, options, text in cases:
        with pytest.raises(ConfigurationError, match=text):
            parse(dsn, options)


@pytest.mark.parametrize(
    "name",
    [
        "host",
        "port",
        "defer_connect",
        "read_default_file",
        "read_default_group",
        "named_pipe",
        "compress",
        "db",
        "passwd",
    ],
)
def test_what_would_lead_elsewhere_or_cannot_be_handed_over_is_refused(name: str) -> None:
    for dsn, options in ((f"{URL}?{name}=s3cret", {}), (URL, {"kwargs": {name: "s3cret"}})):
        with pytest.raises(ConfigurationError, match=rf"{name} is not allowed: ") as caught:
            parse(dsn, options)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "tls", "proved"),
    [
        # As PyMySQL has it: with an authority's certificate names are compared, unless the dict says otherwise.
        ({"ssl": {"ca": "ca.pem"}}, {"ca": "ca.pem", "check_hostname": True, "verify_mode": True}, True),
        ({"ssl": {"capath": "certs"}}, {"capath": "certs", "check_hostname": True, "verify_mode": True}, True),
        ({"ssl": {"ca": "ca.pem", "check_hostname": "no"}}, {"ca": "ca.pem", "check_hostname": False}, False),
        (
            {"ssl": {"ca": "ca.pem", "verify_mode": "None"}},
            {"ca": "ca.pem", "verify_mode": "none", "check_hostname": False},
            False,
        ),
        ({"ssl": {"verify_mode": False, "cipher": "HIGH"}},
         {"verify_mode": False, "cipher": "HIGH", "check_hostname": False}, False),
        ({"ssl": {"cert": "c", "key": "k"}}, {"cert": "c", "key": "k", "check_hostname": False}, False),
        # PyMySQL would forget the dict, and with it the certificate.
        (
            {"ssl": {"ca": "ca.pem"}, "ssl_verify_identity": True, "ssl_key_password": "k3y"},
            {"ca": "ca.pem", "check_hostname": True, "verify_mode": True, "password": "k3y"},
            True,
        ),
        ({"ssl": {"ca": "a"}, "ssl_ca": "b", "ssl_verify_cert": False},
         {"ca": "b", "verify_mode": False, "check_hostname": False}, False),
    ],
)  # fmt: skip
def test_the_dict_ssl_is_the_monitors_too(given: dict[str, Any], tls: dict[str, Any], proved: bool) -> None:
    place = parse(URL, {"kwargs": given})[0]
    assert place.params["ssl"] == tls
    assert [name for name in place.params if name.startswith("ssl_")] == []
    assert place.names_matter is proved
    config = monitor_of(URL, kwargs=given)
    assert (config.params["ssl"], config.proves_names) == (tls, proved)


def test_an_empty_dict_ssl_is_none() -> None:
    for empty in ({}, {"ca": None}, None):
        assert "ssl" not in parse(URL, {"kwargs": {"ssl": empty}})[0].params


def test_the_monitor_may_have_another_certificate() -> None:
    for own in ({"ssl_ca": "own.pem"}, {"ssl": {"ca": "own.pem"}}):
        params = monitor_of(URL, kwargs={"ssl": {"ca": "ca.pem"}}, monitoring=own).params
        assert params["ssl"] == {"ca": "own.pem", "check_hostname": True, "verify_mode": True}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (ssl.create_default_context(), "not SSLContext; the monitor is another process"),
        ("s3cret", "not str"),
        (True, "not bool"),
        ({"fake_flag_to_enable_tls": True}, "ssl: fake_flag_to_enable_tls is not known"),
        ({"ssl_ca": "s3cret"}, "ssl: ssl_ca is not known: allowed are ca, capath"),
        ({"ca": 5}, "ssl: ca: a string is allowed, not int"),
        (
            {"verify_mode": "perhaps"},
            "ssl: verify_mode='perhaps': true or false, or none, optional or required",
        ),
        ({"check_hostname": True}, "ssl_ca has to be given"),
    ],
)
def test_what_is_no_dict_for_ssl_is_refused_with_what_to_give_instead(value: object, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(URL, {"kwargs": {"ssl": value}})
    assert text in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "dsn",
    [
        "mysql://app:s3cret@[::1/app",
        "mysql://app:s3cret@[db]/app",
        "mysql://app:s3cret@db:port/app",
        "mysql://app:s3cret@db:70000/app",
        "mysql://app:s3cret@one,two/app",
        "mysql://app:s3cret@d b/app",
        "mysql://app:s3cret@db/one/two",
        "mysql://app:s3cret@db/app?no_such_option=1",
        "mysql://app:s3cret%@db/app",
        "mysql://app:s3cret%ff@db/app",
        "mysql://app:s3cret%00@db/app",
        "mysql://app:s3cret@db/app?unix_socket=/run/x",
        # An unescaped character in the password moves the rest of it to where it is no password any more.
        "mysql://app:s3cret",
        "mysql://app:1/s3cret@db/app",
        "mysql://app:1?s3cret@db/app",
        "mysql://app:1?bg_s3cret@db/app",
        "mysql://app:1?s3cret=1@db/app",
        "mysql://app:a@b?s3cret=1@db/app",
        "mysql://app:s3cret%E2%82%AC@db/app",
        "mysql://app:s3cret.db.example.com/app",
        "mysql://db/app?connect_timeout=s3cret",
        "mysql://db/app?max_allowed_packet=s3cret",
        "mysql://db/app?blue-green-monitoring-port=s3cret",
        "mysql://db/app?blue-green-monitoring-host=app@s3cret",
    ],
)
def test_a_bad_dsn_is_refused_without_its_password(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="allowed") as caught:
        parse(dsn, {})
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_other_schemes_are_refused_with_those_that_are_not() -> None:
    with pytest.raises(ConfigurationError, match=r"'mariadb' is not supported; postgresql and mysql are allowed"):
        parse("mariadb://app@db/app", {})


def test_objects_stay_in_the_process() -> None:
    kwargs = {"cursorclass": pymysql.cursors.DictCursor, "conv": {}, "client_flag": 2, "use_unicode": True}
    place, _, left = parse(URL, {"kwargs": {**kwargs, "user": "other", "database": "else", "autocommit": None}, "x": 1})
    assert {name: place.params[name] for name in kwargs} == kwargs
    assert (place.user, place.params["database"], place.params["autocommit"]) == ("other", "else", None)
    assert left == {"x": 1}
    assert not set(kwargs) & set(place.monitoring)
    assert place.monitoring["user"] == "other"


def test_monitoring_connections_have_their_own_parameters() -> None:
    dsn = (
        f"{URL}?init_command=SELECT%201&sql_mode=ANSI&local_infile=1&bind_address=127.0.0.1&charset=latin1"
        "&read_timeout=5&ssl_ca=/etc/ca.pem&ssl_cert=x&blue-green-monitoring-user=watcher"
    )
    place, _, left = parse(dsn, {"monitoring": {"password": "other", "write_timeout": "3", "ssl_cert": None}, "x": 1})
    assert place.params["user"] == "app"
    assert dict(place.monitoring) == {
        "user": "watcher",
        "password": "other",
        "bind_address": "127.0.0.1",
        "ssl_ca": "/etc/ca.pem",
        "charset": "utf8mb4",
        "autocommit": True,
        "connect_timeout": 10,
        "read_timeout": 10,
        "write_timeout": 3,
        "program_name": "bgpool-monitor",
    }
    assert left == {"x": 1}
    assert parse(URL, {"monitoring": {"database": "own"}})[0].monitoring["database"] == "own"
    for name in ("autocommit", "unix_socket", "conv"):
        with pytest.raises(ConfigurationError, match=f"'blue-green-monitoring-{name}'"):
            parse(URL, {"monitoring": {name: "x"}})


def test_how_long_data_may_be_under_way_is_for_every_connection() -> None:
    place = parse(f"{URL}?tcp_user_timeout=60000", {})[0]
    assert (place.params["tcp_user_timeout"], place.monitoring["tcp_user_timeout"]) == (60_000, 60_000)
    assert parse(URL, {"kwargs": {"tcp_user_timeout": 0}})[0].params["tcp_user_timeout"] == 0
    with pytest.raises(ConfigurationError, match="tcp_user_timeout=<str>: a whole number of ms"):
        parse(f"{URL}?tcp_user_timeout=soon", {})


def test_parameters_cross_the_pipe_as_they_are() -> None:
    config = monitor_of(f"{URL}?ssl_ca=/etc/ca.pem&ssl_verify_identity=1", kwargs={"server_public_key": KEY})
    assert config.engine is Engine.MYSQL
    assert config.first_target == Target("db.example.com", 3307, anew=True)
    assert config.params["ssl_verify_identity"] is True
    assert config.params["read_timeout"] == 10
    assert config.params["server_public_key"] == KEY.encode()
    assert config.rules.await_certificates
    assert "s3cret" not in repr(config)
    assert not monitor_of(URL).rules.await_certificates
    assert monitor_of("postgresql://app@db/app").engine is Engine.POSTGRESQL


def test_the_monitor_may_look_elsewhere_first() -> None:
    assert monitor_of(URL, monitoring={"host": "writer.example", "port": "7000"}).first_target == Target(
        "writer.example", 7000, anew=True
    )
    for name, value in (("host", "one,two"), ("port", "many")):
        with pytest.raises(ConfigurationError, match="allowed"):
            monitor_of(URL, monitoring={name: value})


def test_a_password_is_a_string_or_a_callable() -> None:
    made, _, left = parse(URL, {"password": token})
    assert made.password is made.monitoring_password is token
    assert "password" not in {**made.params, **made.monitoring}
    assert left == {}
    assert monitor_of(URL, password=token).password is token
    among, _, _ = parse(URL, {"kwargs": {"password": token}})
    assert among.password is token
    given, _, _ = parse(URL, {"password": "keyword", "kwargs": {"password": "static"}})
    assert (given.params["password"], given.monitoring["password"]) == ("keyword", "keyword")
    own, _, _ = parse(URL, {"password": token, "monitoring": {"password": "own"}})
    assert (own.password, own.monitoring_password, own.monitoring["password"]) == (token, None, "own")
    with pytest.raises(ConfigurationError, match=r"callable .* is allowed, not bytes") as caught:
        parse(URL, {"password": b"s3cret"})
    assert "s3cret" not in str(caught.value)


def test_where_a_name_has_to_be_proved() -> None:
    assert not parse(f"{URL}?ssl_ca=/etc/ca.pem&ssl_verify_cert=1", {})[0].names_matter
    assert parse(f"{URL}?ssl_ca=/etc/ca.pem&ssl_verify_identity=1", {})[0].names_matter
    assert parse(URL, {"password": token})[0].names_matter
