"""URLs of a bus: the parts that count, and the parts that no error shows."""

from __future__ import annotations

import pytest

from bgpool.errors import ConfigurationError
from bgpool.fleet.url import BusUrl, parse_bus_url


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("redis://bus", BusUrl("bus")),
        ("redis://bus:7000/3", BusUrl("bus", 7000, 3)),
        ("redis://:s%2Fe%40c@bus/", BusUrl("bus", password="s/e@c")),
        ("redis://bgpool:%2525@[::1]:7", BusUrl("::1", 7, user="bgpool", password="%25")),
        ("redis://bus/2?db=1&protocol=3&socket_timeout=30&health_check_interval=7", BusUrl("bus", db=2)),
        ("rediss://bus", BusUrl("bus", tls=True)),
        (
            "rediss://bus?ssl_ca_certs=/ca.pem&ssl_certfile=/c&ssl_keyfile=/k&ssl_password=p%25",
            BusUrl("bus", tls=True, ca_file="/ca.pem", certificate="/c", key="/k", key_password="p%"),
        ),
        ("rediss://bus?ssl_ca_path=/ca&ssl_cert_reqs=required", BusUrl("bus", tls=True, ca_path="/ca")),
        ("rediss://bus?ssl_cert_reqs=none", BusUrl("bus", tls=True, verify=False, check_name=False)),
        ("rediss://bus?ssl_check_hostname=false", BusUrl("bus", tls=True, check_name=False)),
    ],
)
def test_what_counts(url: str, found: BusUrl) -> None:
    assert parse_bus_url(url) == found


@pytest.mark.parametrize(
    "url",
    [
        "http://user:s3cret@bus",
        "redis://user:s3cret@",
        # As written, what follows the "/" is the path, and what stands before it the port.
        "redis://user:s3cret/more@bus",
        "redis://user:x@bus:s3cret",
        "redis://user:x@bus/s3cret",
    ],
)
def test_what_is_refused_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_bus_url(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_secrets_are_not_shown() -> None:
    assert "s3cret" not in repr(parse_bus_url("rediss://user:s3cret@bus?ssl_keyfile=/k&ssl_password=s3cret"))
