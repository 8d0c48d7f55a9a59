"""Tokens of IAM, made by boto3 as it is; making one takes credentials and no network."""

from __future__ import annotations

import pickle
import sys
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pymysql
import pytest

from bgpool.auth import RdsIam, make_password
from bgpool.errors import ConfigurationError, PasswordFailed

HOST = "ledger-green-abc123.c0.eu-west-1.rds.amazonaws.com"


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("host", "region"),
    [
        (HOST, "eu-west-1"),
        ("db.cluster-c0.us-gov-west-1.rds.amazonaws.com", "us-gov-west-1"),
        ("db.c0.rds.cn-north-1.amazonaws.com.cn", "cn-north-1"),
    ],
)
def test_a_token_is_for_one_host_port_and_user(host: str, region: str) -> None:
    token = urlsplit("//" + RdsIam()(host, 5433, "app"))
    query = parse_qs(token.query)
    assert token.netloc == f"{host}:5433"
    assert (query["Action"], query["DBUser"]) == (["connect"], ["app"])
    assert f"/{region}/rds-db/" in query["X-Amz-Credential"][0]
    assert query["X-Amz-Expires"] == ["900"]
    assert query["X-Amz-Signature"]


def test_tokens_are_kept_for_less_than_they_live(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr("bgpool.auth.time.monotonic", lambda: clock)
    made: list[str] = []

    def counting(_self: RdsIam, host: str, port: int, user: str) -> str:
        made.append(host)
        return f"{user}@{host}:{port} {len(made)}"

    monkeypatch.setattr(RdsIam, "_make", counting)
    iam = RdsIam()
    first = iam(HOST, 5432, "app")
    clock += 590
    assert iam(HOST, 5432, "app") == first
    assert len(made) == 1
    iam(HOST, 5432, "other")
    clock += 20
    iam(HOST, 5432, "app")
    assert len(made) == 3
    for number in range(300):
        iam(f"db{number}.c0.eu-west-1.rds.amazonaws.com", 5432, "app")
    assert len(iam._made) <= 256


def test_it_can_be_handed_to_another_process_and_keeps_its_secrets() -> None:
    iam = RdsIam(region="eu-west-1", profile=None)
    token = iam("db.shop.example", 5432, "app")
    assert "%2Feu-west-1%2F" in token
    copy = pickle.loads(pickle.dumps(iam))
    assert copy == iam
    assert hash(copy) == hash(iam)
    assert copy._made == {}
    assert token.encode() not in pickle.dumps(iam)
    assert "X-Amz" not in repr(iam)


def test_a_name_without_a_region_needs_one() -> None:
    with pytest.raises(ConfigurationError, match=r"'db.shop.example'.*RdsIam\(region="):
        RdsIam()("db.shop.example", 5432, "app")


def test_what_fails_to_make_a_password_is_named_and_not_quoted() -> None:
    def secretive(*_: object) -> str:
        raise RuntimeError("s3cret")

    def wrong(*_: object) -> Any:
        return b"s3cret"

    for password, what in ((secretive, "RuntimeError"), (wrong, "bytes instead of a string")):
        with pytest.raises(PasswordFailed, match=f"failed for app@{HOST}: .*{what}") as caught:
            make_password(password, HOST, 5432, "app")
        assert isinstance(caught.value, psycopg.OperationalError)
        assert isinstance(caught.value, pymysql.err.OperationalError)
        assert "s3cret" not in str(caught.value)
    with pytest.raises(PasswordFailed, match="give one, as in RdsIam") as caught:
        make_password(RdsIam(), "db.shop.example", 5432, "app")
    assert isinstance(caught.value.__cause__, ConfigurationError)


def test_boto3_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ConfigurationError, match=r"bgpool\[aws\]"):
        RdsIam()(HOST, 5432, "app")
