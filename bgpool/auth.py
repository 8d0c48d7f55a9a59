"""Passwords that are made for each connection: calls of password callables, and tokens of IAM authentication."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final

from bgpool import signals
from bgpool.core.endpoints import parse_endpoint
from bgpool.core.limits import AWS_CLIENT_MIN_AGE_S, PASSWORD_TIMEOUT_S
from bgpool.dsn import Password
from bgpool.errors import ConfigurationError, PasswordFailed
from bgpool.logs import log_fields

__all__ = ["GIVE_PASSWORD", "ElastiCacheIam", "PasswordMaker", "RdsIam", "SecretMaker"]

_logger: Final = logging.getLogger("bgpool.pool")

#: Advice on a password for the monitor, if the application's is made for each connection.
GIVE_PASSWORD: Final = (
    "pass the callable that makes it as password, such as bgpool.auth.RdsIam(), or give the monitor a login of its own "
    "with monitoring={'user': ..., 'password': ...}; with SQLAlchemy, both belong in connect_args"
)


class SecretMaker:
    """Calls a callable that makes a secret in a separate thread, one call at a time.

    A callable that hangs, or raises SystemExit, affects only that thread.
    """

    def __init__(self) -> None:
        # Per process: after a fork the child lacks the thread that would end the current call.
        self._turns: Final[dict[int, _Turn]] = {}

    @property
    def is_stuck(self) -> bool:
        """True if a call has not returned within PASSWORD_TIMEOUT_S."""
        return self._turn.left_s() <= 0

    def call(self, what: str, function: Callable[..., object], *args: object) -> object:
        """Return the result of *function*.

        Args:
            what: The beginning of error texts: "the password callable failed for app@db".

        Raises:
            PasswordFailed: The call failed, with the failure as the cause, or took longer than PASSWORD_TIMEOUT_S. The
                text has *what* and the kind of failure.
        """
        call = self._begin(what, function, *args)
        if not call.done.wait(PASSWORD_TIMEOUT_S):
            raise _Stuck(f"{what}: it has not returned within {PASSWORD_TIMEOUT_S:.0f} s")
        if isinstance(call.error, ConfigurationError):
            raise PasswordFailed(f"{what}: {call.error}") from call.error
        if call.error is not None:
            # Without the text, which may quote a secret.
            raise PasswordFailed(f"{what}: {type(call.error).__name__}") from call.error
        if inspect.iscoroutine(call.made):
            call.made.close()
        return call.made

    @property
    def _turn(self) -> _Turn:
        return self._turns.setdefault(os.getpid(), _Turn())

    def _begin(self, what: str, function: Callable[..., object], *args: object) -> _Call:
        """Call *function* in a thread, after earlier calls have ended; raises PasswordFailed if one of them hangs."""
        turn = self._turn
        while not turn.lock.acquire(timeout=max(0.0, turn.left_s())):
            # The lock is held without a call: an interrupt came between the lock and the call.
            if turn.left_s() <= 0 or turn.since == math.inf:
                raise PasswordFailed(f"{what}: it has not returned within {PASSWORD_TIMEOUT_S:.0f} s")
        turn.since = time.monotonic()
        call = _Call(function, args, turn)
        try:
            threading.Thread(target=call.run, name="bgpool-password", daemon=True).start()
        except BaseException as error:
            if call.claim.acquire(blocking=False):
                turn.end()
            if isinstance(error, (RuntimeError, MemoryError)):
                raise PasswordFailed(f"{what}: {error}") from error
            raise
        return call


class _Stuck(PasswordFailed):
    """A call did not return in time."""


class PasswordMaker(SecretMaker):
    """Calls a password callable."""

    def __init__(self, password: Password) -> None:
        super().__init__()
        self._password: Final = password

    def make(self, host: str, port: int, user: str) -> str:
        """Return a password for *user* at *host* and *port*.

        Raises:
            PasswordFailed: The callable failed, with the failure as the cause, returned no string, or took longer than
                PASSWORD_TIMEOUT_S. The text names user, host and the kind of failure.
        """
        what = f"the password callable failed for {user}@{host}"
        try:
            made = self.call(what, self._password, host, port, user)
        except _Stuck:
            _logger.warning(
                "the password callable has not returned for %s@%s within %.0f s: no connection can be opened until it "
                "returns; check what it waits for",
                user,
                host,
                PASSWORD_TIMEOUT_S,
                extra=log_fields("password_callable_hangs", host=host),
            )
            raise
        if not isinstance(made, str):
            raise PasswordFailed(f"{what}: it returned {type(made).__name__} instead of a string")
        return made

    def prepare(self, host: str, port: int, user: str) -> None:
        """Call the callable's method ``prepare``, if it has one, in the background; does not wait."""
        prepare = getattr(self._password, "prepare", None)
        if prepare is not None and not self._turn.lock.locked():
            with contextlib.suppress(PasswordFailed):
                self._begin("", prepare, host, port, user)

    def forget(self) -> bool:
        """Call the callable's method ``forget``, if it has one, after a password was refused, to drop cached state.

        Returns:
            True if the next password may differ.
        """
        forget = getattr(self._password, "forget", None)
        if forget is None:
            return False
        try:
            call = self._begin("", forget)
        except PasswordFailed:
            return False
        return call.done.wait(PASSWORD_TIMEOUT_S) and bool(call.made)


class _Turn:
    """The right to call, and the time at which it was taken, on the monotonic clock in seconds; infinite if free."""

    def __init__(self) -> None:
        self.lock: Final = threading.Lock()
        self.since = math.inf

    def left_s(self) -> float:
        """Return the remaining time of the current call in seconds, below 0 if it hangs."""
        return min(PASSWORD_TIMEOUT_S, PASSWORD_TIMEOUT_S + self.since - time.monotonic())

    def end(self) -> None:
        """Give up the right, so that the next call may begin."""
        self.since = math.inf
        self.lock.release()


class _Call:
    """One call, and its result once it is *done*."""

    def __init__(self, function: Callable[..., object], args: tuple[object, ...], turn: _Turn) -> None:
        self._function: Final = function
        self._args: Final = args
        self._turn: Final = turn
        # The thread that takes it ends the turn. After an interrupt it is not known whether the new thread has begun.
        self.claim: Final = threading.Lock()
        self.done: Final = threading.Event()
        self.made: object = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Make the call. The thread does nothing else."""
        if not self.claim.acquire(blocking=False):
            return
        try:
            signals.take_again()
            self.made = self._function(*self._args)
        except BaseException as error:
            self.error = error
        finally:
            self._turn.end()
            self.done.set()


@dataclass(frozen=True)
class _AwsSigner:
    """Base of the callables that sign with AWS credentials. The credentials are found once in each process.

    They are safe to use from any number of threads and processes, and can be passed to the monitor.
    """

    # The client that signs, and its creation time, by process and region. A forked child makes its own.
    _clients: dict[tuple[int, str], tuple[float, Any]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, host: str, port: int, user: str) -> str:
        """Return the token for *user* at *host* and *port*."""
        raise NotImplementedError

    def prepare(self, host: str, port: int, user: str) -> None:
        """Load boto3 and find the credentials, which takes 0.3 to 0.6 s in a new process."""
        self(host, port, user)

    def forget(self) -> bool:
        """Find the credentials again for the next token, unless that was done within AWS_CLIENT_MIN_AGE_S.

        boto3 reads credentials of a file or the environment, which it cannot renew, only once.

        Returns:
            True if they will be found again.
        """
        before = time.monotonic() - AWS_CLIENT_MIN_AGE_S
        old = [key for key, (since, _) in list(self._clients.items()) if since < before]
        for key in old:
            self._clients.pop(key, None)
        return bool(old)

    def __getstate__(self) -> dict[str, object]:
        # Another process makes its own client.
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    def __setstate__(self, state: dict[str, object]) -> None:
        for name, value in {**state, "_clients": {}}.items():
            object.__setattr__(self, name, value)

    def _client(self, region: str) -> Any:
        key = (os.getpid(), region)
        _, client = self._clients.get(key, (0.0, None))
        if client is None:
            # Two threads may make one at the same time; both are valid.
            client = self._make_client(region)
            self._clients[key] = (time.monotonic(), client)
        return client

    def _make_client(self, region: str) -> Any:
        raise NotImplementedError

    def _session(self, profile: str | None, region: str) -> Any:
        try:
            import boto3
        except ImportError:
            name = type(self).__name__
            raise ConfigurationError(f"bgpool.auth.{name} needs boto3: pip install 'bgpool[aws]'") from None
        return boto3.session.Session(profile_name=profile, region_name=region or None)


@dataclass(frozen=True)
class RdsIam(_AwsSigner):
    """A password callable for get_pool: makes tokens of IAM database authentication with boto3.

    A token is valid for one host name, port and user, and for 15 minutes. Every connection gets a new token, made with
    the current credentials in half a millisecond. The object is safe to use from any number of threads and processes,
    and can be passed to the monitor.

    >>> pool = bgpool.get_pool(dsn + "?sslmode=verify-full", password=bgpool.auth.RdsIam())

    Attributes:
        region: The databases' AWS region; None takes it from the host name.
        profile: The profile of the AWS configuration to use; None for boto3's default credentials.

    Source: AWS, "Connecting to your DB instance using IAM authentication".
    """

    region: str | None = None
    profile: str | None = None

    def __call__(self, host: str, port: int, user: str) -> str:
        """Return the token for *user* at *host* and *port*.

        Raises:
            ConfigurationError: boto3 is not installed, or the region is not given and not part of *host*.
            botocore.exceptions.BotoCoreError: There are no credentials, or they cannot be retrieved.
        """
        region = self.region or _region_of(host)
        return str(self._client(region).generate_db_auth_token(host, port, user, region))

    def _make_client(self, region: str) -> Any:
        return self._session(self.profile, region).client("rds")


@dataclass(frozen=True)
class ElastiCacheIam(_AwsSigner):
    """A password callable for ``bg_fleet_password``: makes tokens of ElastiCache's IAM authentication with boto3.

    A token is valid for one cache and user, and for 15 minutes; the connection ends after 12 hours. Every connection
    gets a new token, made with the current credentials. The object is safe to use from any number of threads and
    processes. ElastiCache accepts tokens only over TLS.

    >>> pool = bgpool.get_pool(
    ...     dsn, bg_fleet="rediss://bgpool@HOST:6379", bg_fleet_password=bgpool.auth.ElastiCacheIam("fleet")
    ... )

    Attributes:
        cache_name: The id of the replication group, or the name of the serverless cache. AWS writes it in lower case,
            and so does the token.
        region: Its AWS region; None for that of the environment or the profile. The host name has only an abbreviation.
        serverless: True for a serverless cache.
        profile: The profile of the AWS configuration to use; None for boto3's default credentials.

    Source: AWS, "Authenticating with IAM" of ElastiCache.
    """

    cache_name: str
    region: str | None = None
    serverless: bool = False
    profile: str | None = None

    def __call__(self, host: str, port: int, user: str) -> str:
        """Return the token for *user*: a signed URL without its scheme. *host* and *port* are not part of it.

        Raises:
            ConfigurationError: boto3 is not installed, or no region is configured.
            botocore.exceptions.BotoCoreError: There are no credentials, or they cannot be retrieved.
        """
        del host, port
        region, credentials = self._client(self.region or "")
        from botocore.auth import SigV4QueryAuth
        from botocore.awsrequest import AWSRequest

        asked = {"Action": "connect", "User": user}
        if self.serverless:
            asked["ResourceType"] = "ServerlessCache"
        request: Any = AWSRequest("GET", f"https://{self.cache_name.lower()}/", params=asked)
        # Frozen, so that all parts belong to the same credentials.
        signer: Any = SigV4QueryAuth(credentials.get_frozen_credentials(), "elasticache", region, expires=_TOKEN_S)
        signer.add_auth(request)
        return str(request.url).removeprefix("https://")

    def _make_client(self, region: str) -> Any:
        session = self._session(self.profile, region)
        if not session.region_name:
            raise ConfigurationError(
                f"bgpool.auth.ElastiCacheIam: the region of {self.cache_name!r} is not known; give it, as in "
                f"ElastiCacheIam({self.cache_name!r}, region='eu-west-1'), or set $AWS_DEFAULT_REGION"
            )
        credentials = session.get_credentials()
        if credentials is None:
            from botocore.exceptions import NoCredentialsError

            raise NoCredentialsError
        return session.region_name, credentials


#: The validity of an ElastiCache token, in seconds. Source: AWS.
_TOKEN_S: Final = 900


def _region_of(host: str) -> str:
    name = parse_endpoint(host)
    if name is None:
        raise ConfigurationError(
            f"bgpool.auth.RdsIam: the host name {host!r} has no region; give one, as in RdsIam(region='eu-west-1')"
        )
    return name.region
