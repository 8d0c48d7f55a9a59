"""Tokens of IAM, made by boto3 as it is; making one takes credentials and no network."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pymysql
import pytest

from bgpool.auth import ElastiCacheIam, PasswordMaker, RdsIam
from bgpool.errors import ConfigurationError, PasswordFailed
from tests.pools.callers import wait_until

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


def test_a_token_is_signed_with_the_credentials_of_the_moment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials that end in five minutes, from a process that gives others every time."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    giver = tmp_path / "giver"
    giver.write_text(
        "#!/bin/sh\n"
        f"echo x >> {tmp_path}/calls\n"
        f"n=$(wc -l < {tmp_path}/calls)\n"
        'printf \'{"Version": 1, "AccessKeyId": "AKID%s", "SecretAccessKey": "s", "SessionToken": "t", \' $n\n'
        'printf \'"Expiration": "%s"}\' $(date -u -d "+5 minutes" +%Y-%m-%dT%H:%M:%SZ)\n'
    )
    giver.chmod(0o700)
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {giver}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    iam = RdsIam()
    signers = [parse_qs(urlsplit("//" + iam(HOST, 5432, "app")).query)["X-Amz-Credential"][0] for _ in range(2)]
    assert len({signer.partition("/")[0] for signer in signers}) == 2


def test_after_a_refusal_credentials_are_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr("bgpool.auth.time.monotonic", lambda: clock)
    iam = RdsIam()
    maker = PasswordMaker(iam)
    assert "AKIDEXAMPLE" in maker.make(HOST, 5432, "app")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDOTHER")
    assert not maker.forget(), "looked for just now"
    assert "AKIDEXAMPLE" in maker.make(HOST, 5432, "app")
    clock += 61
    assert maker.forget()
    assert "AKIDOTHER" in maker.make(HOST, 5432, "app")


def test_boto3_is_loaded_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    original = RdsIam._make_client

    def counting(self: RdsIam, region: str) -> Any:
        made.append(region)
        return original(self, region)

    monkeypatch.setattr(RdsIam, "_make_client", counting)
    iam = RdsIam()
    maker = PasswordMaker(iam)
    maker.prepare(HOST, 5432, "app")
    # After it, in the same thread's turn.
    maker.make("other" + HOST, 5432, "app")
    assert made == ["eu-west-1"]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            iam(HOST, 5432, "app")
            os.write(writer, str(len(made)).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 9) == b"2"
    os.close(reader)
    os.close(writer)


def test_it_can_be_handed_to_another_process_and_keeps_its_secrets() -> None:
    iam = RdsIam(region="eu-west-1", profile=None)
    token = iam("db.shop.example", 5432, "app")
    assert "%2Feu-west-1%2F" in token
    copy = pickle.loads(pickle.dumps(iam))
    assert copy == iam
    assert hash(copy) == hash(iam)
    assert copy._clients == {}
    assert token.encode() not in pickle.dumps(iam)
    assert "X-Amz" not in repr(iam)


def test_a_name_without_a_region_needs_one() -> None:
    with pytest.raises(ConfigurationError, match=r"'db.shop.example'.*RdsIam\(region="):
        RdsIam()("db.shop.example", 5432, "app")


def test_what_fails_to_make_a_password_is_named_and_not_quoted() -> None:
    class Odd(BaseException):
        pass

    def raising(error: BaseException) -> Callable[..., str]:
        def secretive(*_: object) -> str:
            raise error

        return secretive

    def wrong(*_: object) -> Any:
        return b"s3cret"

    for password, what in (
        (raising(RuntimeError("s3cret")), "RuntimeError"),
        (raising(SystemExit("s3cret")), "SystemExit"),
        (raising(KeyboardInterrupt("s3cret")), "KeyboardInterrupt"),
        (raising(Odd("s3cret")), "Odd"),
        (wrong, "bytes instead of a string"),
    ):
        with pytest.raises(PasswordFailed, match=f"failed for app@{HOST}: .*{what}") as caught:
            PasswordMaker(password).make(HOST, 5432, "app")
        assert isinstance(caught.value, psycopg.OperationalError)
        assert isinstance(caught.value, pymysql.err.OperationalError)
        assert "s3cret" not in str(caught.value)
    with pytest.raises(PasswordFailed, match="give one, as in RdsIam") as caught:
        PasswordMaker(RdsIam()).make("db.shop.example", 5432, "app")
    assert isinstance(caught.value.__cause__, ConfigurationError)


def test_a_callable_that_hangs_costs_one_thread_and_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bgpool.auth.PASSWORD_TIMEOUT_S", 0.1)
    go_on = threading.Event()

    def hang(*_: object) -> str:
        go_on.wait(60.0)
        return "at last"

    maker = PasswordMaker(hang)
    threads = threading.active_count()
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(PasswordFailed, match="has not returned within 0 s"):
            maker.make(HOST, 5432, "app")
        assert time.monotonic() - began < 30.0
    maker.prepare(HOST, 5432, "app")
    assert maker.is_stuck
    assert threading.active_count() == threads + 1
    assert caplog.text.count("the password callable has not returned for app@") == 1
    go_on.set()
    wait_until(lambda: not maker.is_stuck)
    assert maker.make(HOST, 5432, "app") == "at last"


def test_calls_follow_each_other_and_each_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgpool.auth.PASSWORD_TIMEOUT_S", 2.0)
    running: list[int] = [0]

    def slow(*_: object) -> str:
        running[0] += 1
        time.sleep(0.2)
        running[0] -= 1
        return f"with {running[0]} others"

    maker = PasswordMaker(slow)
    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(lambda _: maker.make(HOST, 5432, "app"), range(12)))
    assert made == ["with 0 others"] * 12


def test_a_forked_child_does_not_wait_for_its_parents_call() -> None:
    go_on = threading.Event()

    def hang(_host: str, port: int, _user: str) -> str:
        if port == 1:
            go_on.wait(10.0)
        return "made"

    maker = PasswordMaker(hang)
    parent = threading.Thread(target=maker.make, args=(HOST, 1, "app"))
    parent.start()
    child = os.fork()
    if child == 0:
        os._exit(0 if maker.make(HOST, 2, "app") == "made" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    go_on.set()
    parent.join()


def test_boto3_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ConfigurationError, match=r"bgpool\[aws\]"):
        RdsIam()(HOST, 5432, "app")


def test_a_lock_that_an_interrupt_left_taken_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgpool.auth.PASSWORD_TIMEOUT_S", 0.1)
    maker = PasswordMaker(lambda *_: "secret")
    maker._turn.lock.acquire()
    with pytest.raises(PasswordFailed):
        maker.make(HOST, 5432, "app")


# -- ElastiCache ---------------------------------------------------------------------------------------------------


@pytest.fixture
def region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")


@pytest.mark.parametrize("serverless", [False, True])
def test_a_token_of_elasticache_is_for_one_cache_and_user(serverless: bool) -> None:
    iam = ElastiCacheIam("Fleet", region="us-gov-west-1", serverless=serverless)
    token = iam("fleet.abc.ng.0001.usgw1.cache.amazonaws.com", 6379, "bg pool&x")
    parts = urlsplit("//" + token)
    query = parse_qs(parts.query)
    assert (parts.netloc, parts.path) == ("fleet", "/")
    assert (query["Action"], query["User"]) == (["connect"], ["bg pool&x"])
    assert query.get("ResourceType") == (["ServerlessCache"] if serverless else None)
    assert "/us-gov-west-1/elasticache/aws4_request" in query["X-Amz-Credential"][0]
    assert query["X-Amz-Expires"] == ["900"]
    assert query["X-Amz-SignedHeaders"] == ["host"]


@pytest.mark.parametrize("serverless", [False, True])
@pytest.mark.parametrize("session_token", ["", "FwoGZXIvYXdzE//w=="])
@pytest.mark.usefixtures("region")
def test_it_is_the_token_of_awss_own_recipe(
    monkeypatch: pytest.MonkeyPatch, serverless: bool, session_token: str
) -> None:
    """The Python code of AWS's documentation gives the same token with the same credentials in the same second."""
    import botocore.session
    from botocore.model import ServiceId
    from botocore.signers import RequestSigner

    if session_token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", session_token)

    def recipe() -> str:
        session = botocore.session.get_session()
        signer = RequestSigner(
            ServiceId("elasticache"), "eu-west-1", "elasticache", "v4",
            session.get_credentials(), session.get_component("event_emitter"),
        )  # fmt: skip
        resource = "&ResourceType=ServerlessCache" if serverless else ""
        request = {
            "method": "GET", "url": f"https://fleet/?Action=connect&User=bgpool{resource}",
            "body": {}, "headers": {}, "context": {},
        }  # fmt: skip
        url = signer.generate_presigned_url(request, operation_name="connect", expires_in=900, region_name="eu-west-1")
        return str(url).removeprefix("https://")

    iam = ElastiCacheIam("fleet", serverless=serverless)
    iam.prepare("", 0, "bgpool")

    def of_one_second() -> tuple[str, str]:
        while True:
            before, ours, after = recipe(), iam("", 0, "bgpool"), recipe()
            if before == after:
                return ours, before

    ours, theirs = of_one_second()
    assert parse_qs(urlsplit("//" + ours).query) == parse_qs(urlsplit("//" + theirs).query)
    assert ours.partition("?")[0] == theirs.partition("?")[0] == "fleet/"


@pytest.mark.usefixtures("region")
def test_elasticache_s_tokens_go_through_a_pickle_without_secrets_and_find_new_credentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 1000.0
    monkeypatch.setattr("bgpool.auth.time.monotonic", lambda: clock)
    iam = ElastiCacheIam("fleet", serverless=True)
    maker = PasswordMaker(iam)
    token = maker.make("", 6379, "bgpool")
    copy = pickle.loads(pickle.dumps(iam))
    assert copy == iam
    assert copy._clients == {}
    assert token.encode() not in pickle.dumps(iam)
    assert "wJalrXUtnFEMI" not in repr(iam) + str(pickle.dumps(iam))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDOTHER")
    assert not maker.forget(), "looked for just now"
    clock += 61
    assert maker.forget()
    assert "AKIDOTHER" in maker.make("", 6379, "bgpool")


def test_elasticache_s_region_and_credentials_have_to_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import NoCredentialsError

    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    with pytest.raises(ConfigurationError, match=r"'fleet' is not known.*region="):
        ElastiCacheIam("fleet")("fleet.abc.ng.0001.euw1.cache.amazonaws.com", 6379, "bgpool")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(NoCredentialsError):
        ElastiCacheIam("fleet", region="eu-west-1")("", 6379, "bgpool")
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ConfigurationError, match=r"ElastiCacheIam needs boto3: pip install 'bgpool\[aws\]'"):
        ElastiCacheIam("fleet", region="eu-west-1")("", 6379, "bgpool")
