"""Passwords that are made for each connection: calling what makes them, and tokens of IAM database authentication."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from bgpool.core.endpoints import parse_endpoint
from bgpool.core.limits import TOKEN_LIFE_S, TOKENS
from bgpool.dsn import Password
from bgpool.errors import ConfigurationError, PasswordFailed

__all__ = ["RdsIam", "make_password"]


def make_password(password: Password, host: str, port: int, user: str) -> str:
    """What *password* makes for a connection, or an error that is fit for a log.

    Raises:
        PasswordFailed: It failed, with the failure as the cause, or it made no string. The text names user,
            host and the kind of failure.
    """
    what = f"the password callable failed for {user}@{host}"
    try:
        made: object = password(host, port, user)
    except ConfigurationError as error:
        raise PasswordFailed(f"{what}: {error}") from error
    except Exception as error:
        # Not its text: what makes secrets may quote them.
        raise PasswordFailed(f"{what}: {type(error).__name__}") from error
    if not isinstance(made, str):
        raise PasswordFailed(f"{what}: it returned {type(made).__name__} instead of a string")
    return made


@dataclass(frozen=True)
class RdsIam:
    """A password callable for get_pool: makes tokens of IAM database authentication with boto3.

    A token is good for the one host name, port and user that it is made for, and for 15 minutes; tokens are kept for
    TOKEN_LIFE_S of them. Safe to use from any number of threads and processes, and to hand to the monitor.

    >>> pool = bgpool.get_pool(dsn + "?sslmode=verify-full", password=bgpool.auth.RdsIam())

    Attributes:
        region: The databases' AWS region; None takes it from the host name.
        profile: The profile of the AWS configuration to use; None for boto3's default credentials.

    Source: AWS, "Connecting to your DB instance using IAM authentication".
    """

    region: str | None = None
    profile: str | None = None
    _made: dict[tuple[str, int, str], tuple[float, str]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, host: str, port: int, user: str) -> str:
        """The token for *user* at *host* and *port*.

        Raises:
            ConfigurationError: boto3 is not installed, or the region is not given and not part of *host*.
            botocore.exceptions.BotoCoreError: There are no credentials, or they cannot be had.
        """
        key, now = (host, port, user), time.monotonic()
        made_at, token = self._made.get(key, (0.0, ""))
        if token and now - made_at < TOKEN_LIFE_S:
            return token
        token = self._make(host, port, user)
        # Two threads may make one at the same time; either is good.
        if len(self._made) >= TOKENS:
            self._made.clear()
        self._made[key] = (now, token)
        return token

    def __getstate__(self) -> dict[str, object]:
        # Another process makes its own.
        return {"region": self.region, "profile": self.profile}

    def __setstate__(self, state: dict[str, object]) -> None:
        for name, value in {**state, "_made": {}}.items():
            object.__setattr__(self, name, value)

    def _make(self, host: str, port: int, user: str) -> str:
        region = self.region or _region_of(host)
        try:
            import boto3
        except ImportError:
            raise ConfigurationError("bgpool.auth.RdsIam needs boto3: pip install 'bgpool[aws]'") from None
        session: Any = boto3.session.Session(profile_name=self.profile, region_name=region)
        return str(session.client("rds").generate_db_auth_token(host, port, user, region))


def _region_of(host: str) -> str:
    name = parse_endpoint(host)
    if name is None:
        raise ConfigurationError(
            f"bgpool.auth.RdsIam: {host!r} does not tell its region; give one, as in RdsIam(region='eu-west-1')"
        )
    return name.region
