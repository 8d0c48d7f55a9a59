"""The configuration of a fleet's bus. The monitor receives it through a pipe, because it contains secrets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from bgpool.auth import SecretMaker
from bgpool.callables import hand_over, take_over
from bgpool.dsn import Password
from bgpool.errors import ConfigurationError
from bgpool.settings import REHEARSAL, Settings, read_keys

__all__ = ["FleetConfig", "KeyMaker"]

_TOP_LEVEL: Final = "define it at the top level of a module that can be imported"
_KEY_REMEDY: Final = f"{_TOP_LEVEL}, or give the key itself, as in $BGPOOL_FLEET_KEY"
_PASSWORD_REMEDY: Final = f"{_TOP_LEVEL}, or write user and password into bg_fleet"

#: The default port of the protocol. Source: Redis.
_PORT: Final = 6379


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """A bus, and the keys of the hosts that may write to it.

    Attributes:
        url: The URL with the scheme redis or rediss, in redis-py's format. Never shown, because it may contain a
            password.
        keys: The keys, each of FLEET_KEY_BYTES bytes or more; the first one signs, all of them verify. Empty if
            unsigned messages are trusted, or if *key_callable* makes the keys.
        trust: True if unsigned messages are trusted, without keys.
        password_callable: The callable that makes the password of each connection, pickled; None if *url* has the
            credentials.
        key_callable: The callable that makes the keys, pickled. KeyMaker calls it, in the monitor.
    """

    url: str = field(repr=False)
    keys: tuple[bytes, ...] = field(default=(), repr=False)
    trust: bool = False
    password_callable: bytes | None = field(default=None, repr=False)
    key_callable: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, settings: Settings) -> FleetConfig | None:
        """Return the configuration from a pool's parameters; None without a bus, and in a rehearsal.

        Raises:
            ConfigurationError: There is neither a key nor trust, there are two passwords, or a callable cannot be
                passed to another process.
        """
        url, key, password = settings.bg_fleet, settings.bg_fleet_key, settings.bg_fleet_password
        if url is None:
            return None
        if key is None and not settings.bg_fleet_trust:
            raise ConfigurationError(
                "bg_fleet needs a key, so that other clients of the bus cannot mislead the fleet: set "
                "$BGPOOL_FLEET_KEY (or bg_fleet_key) to the output of `openssl rand -hex 32`, the same on all "
                "hosts; or bg_fleet_trust=true to trust unsigned messages"
            )
        if password is not None and urlsplit(url).password:
            raise ConfigurationError("bg_fleet has a password, and bg_fleet_password makes one: one of them is allowed")
        config = cls(
            url,
            keys=key if isinstance(key, tuple) else (),
            # With a key, messages must be signed.
            trust=key is None,
            password_callable=(
                None if password is None else hand_over("bg_fleet_password", password, _PASSWORD_REMEDY)
            ),
            key_callable=hand_over("bg_fleet_key", key, _KEY_REMEDY) if callable(key) else None,
        )
        # A rehearsed application's readings must not reach the hosts of the real one.
        return None if REHEARSAL in os.environ else config

    def as_map(self) -> dict[str, Any]:
        """Return the configuration for the pipe."""
        return {
            "url": self.url,
            "keys": list(self.keys),
            "trust": self.trust,
            "password_callable": self.password_callable,
            "key_callable": self.key_callable,
        }

    @classmethod
    def from_map(cls, given: Mapping[str, Any]) -> FleetConfig:
        """Return the configuration from the pipe, in the format of as_map()."""
        return cls(**{**given, "keys": tuple(given["keys"])})

    @property
    def host(self) -> str:
        """The server's name or address in the URL."""
        return unquote(urlsplit(self.url).hostname or "")

    @property
    def port(self) -> int:
        """The server's port."""
        return urlsplit(self.url).port or _PORT

    @property
    def user(self) -> str:
        """The user that connections log in as; empty for the server's default."""
        return unquote(urlsplit(self.url).username or "")

    @property
    def is_encrypted(self) -> bool:
        """True if connections use TLS."""
        return urlsplit(self.url).scheme == "rediss"

    @property
    def place(self) -> str:
        """HOST:PORT, the part of the URL that may be shown."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def password(self) -> Password | None:
        """The callable that makes the password of a connection.

        Raises:
            ConfigurationError: It cannot be imported here, or its module patches threads.
        """
        if self.password_callable is None:
            return None
        found: Password = take_over("the callable bg_fleet_password", self.password_callable, _PASSWORD_REMEDY)
        return found

    @property
    def secrets(self) -> tuple[str, ...]:
        """The strings that must not appear in texts of other libraries: the URL, and the passwords in it."""
        url = urlsplit(self.url)
        password = url.password or ""
        of_key_file = dict(parse_qsl(url.query)).get("ssl_password", "")
        return tuple(text for text in (self.url, password, unquote(password), of_key_file) if text)


class KeyMaker(SecretMaker):
    """The keys of a bus, from any source."""

    def __init__(self, config: FleetConfig) -> None:
        """Create it without importing or calling anything."""
        super().__init__()
        self._config: Final = config

    def make(self) -> tuple[bytes, ...]:
        """Return the keys, the signing one first; empty if unsigned messages are trusted.

        A callable is called each time, so that a changed key requires no new monitor. Only for a thread that may block
        for up to PASSWORD_TIMEOUT_S.

        Raises:
            PasswordFailed: The callable failed, or did not return in time; the text contains no secret.
            ConfigurationError: It cannot be imported here, or its result is not usable as keys.
        """
        pickled = self._config.key_callable
        if pickled is None:
            return self._config.keys
        function = take_over("the callable bg_fleet_key", pickled, _KEY_REMEDY)
        return read_keys(
            "what the callable bg_fleet_key returns", self.call("the callable bg_fleet_key failed", function)
        )
