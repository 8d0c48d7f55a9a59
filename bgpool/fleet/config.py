"""What a monitor needs to know of its fleet's bus. It comes to the monitor over a pipe, because it holds secrets."""

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

#: Where a server of the protocol listens. Source: Redis.
_PORT: Final = 6379


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """A bus, and who may write to it.

    Attributes:
        url: Of the scheme redis or rediss, as redis-py reads it. Never shown: there may be a password in it.
        keys: Each of FLEET_KEY_BYTES bytes or more; the first one signs, all of them verify. Empty where everything
            on the bus is believed, and where *key_callable* makes them.
        trust: Whatever is on the bus is believed: there are no keys.
        password_callable: Makes the password of each connection, pickled; None where *url* has all it takes.
        key_callable: Makes the keys, pickled. KeyMaker calls it, in the monitor.
    """

    url: str = field(repr=False)
    keys: tuple[bytes, ...] = field(default=(), repr=False)
    trust: bool = False
    password_callable: bytes | None = field(default=None, repr=False)
    key_callable: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, settings: Settings) -> FleetConfig | None:
        """What a pool's parameters come to; None without a bus, and in a rehearsal.

        Raises:
            ConfigurationError: There is neither a key nor trust, there are two passwords, or a callable cannot be
                handed to another process.
        """
        url, key, password = settings.bg_fleet, settings.bg_fleet_key, settings.bg_fleet_password
        if url is None:
            return None
        if key is None and not settings.bg_fleet_trust:
            raise ConfigurationError(
                "bg_fleet needs a key, so that nobody else who can write to the bus can mislead the fleet: set "
                "$BGPOOL_FLEET_KEY (or bg_fleet_key) to what `openssl rand -hex 32` prints, the same on all hosts; or "
                "bg_fleet_trust=true to believe whatever is on the bus"
            )
        if password is not None and urlsplit(url).password:
            raise ConfigurationError("bg_fleet has a password, and bg_fleet_password makes one: one of them is allowed")
        config = cls(
            url,
            keys=key if isinstance(key, tuple) else (),
            # A key is asked for wherever there is one.
            trust=key is None,
            password_callable=(
                None if password is None else hand_over("bg_fleet_password", password, _PASSWORD_REMEDY)
            ),
            key_callable=hand_over("bg_fleet_key", key, _KEY_REMEDY) if callable(key) else None,
        )
        # What a rehearsed application reads of its servers is not for the hosts of the real one.
        return None if REHEARSAL in os.environ else config

    def as_map(self) -> dict[str, Any]:
        """For the pipe."""
        return {
            "url": self.url,
            "keys": list(self.keys),
            "trust": self.trust,
            "password_callable": self.password_callable,
            "key_callable": self.key_callable,
        }

    @classmethod
    def from_map(cls, given: Mapping[str, Any]) -> FleetConfig:
        """From the pipe, as as_map() has put it there."""
        return cls(**{**given, "keys": tuple(given["keys"])})

    @property
    def host(self) -> str:
        """The server's name or address, as the URL has it."""
        return unquote(urlsplit(self.url).hostname or "")

    @property
    def port(self) -> int:
        """Its port."""
        return urlsplit(self.url).port or _PORT

    @property
    def user(self) -> str:
        """Whom connections log in as; empty for the server's default."""
        return unquote(urlsplit(self.url).username or "")

    @property
    def is_encrypted(self) -> bool:
        """Whether connections are TLS's."""
        return urlsplit(self.url).scheme == "rediss"

    @property
    def place(self) -> str:
        """HOST:PORT, for people: what may be told of the URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def password(self) -> Password | None:
        """What makes the password of a connection.

        Raises:
            ConfigurationError: It cannot be imported here, or its module patches threads.
        """
        if self.password_callable is None:
            return None
        found: Password = take_over("the callable bg_fleet_password", self.password_callable, _PASSWORD_REMEDY)
        return found

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown, should a text of somebody else's hold it: the URL, and the passwords in it."""
        url = urlsplit(self.url)
        password = url.password or ""
        of_key_file = dict(parse_qsl(url.query)).get("ssl_password", "")
        return tuple(text for text in (self.url, password, unquote(password), of_key_file) if text)


class KeyMaker(SecretMaker):
    """The keys of a bus, wherever they come from."""

    def __init__(self, config: FleetConfig) -> None:
        """Nothing is imported or called yet."""
        super().__init__()
        self._config: Final = config

    def make(self) -> tuple[bytes, ...]:
        """The keys, the one that signs first; empty where everything on the bus is believed.

        A callable is called each time, so that a key that was changed is had without a new monitor. For a thread that
        may wait for up to PASSWORD_TIMEOUT_S.

        Raises:
            PasswordFailed: The callable failed, or has not returned in time; the text holds no secret.
            ConfigurationError: It cannot be imported here, or what it returns cannot be used as keys.
        """
        pickled = self._config.key_callable
        if pickled is None:
            return self._config.keys
        function = take_over("the callable bg_fleet_key", pickled, _KEY_REMEDY)
        return read_keys(
            "what the callable bg_fleet_key returns", self.call("the callable bg_fleet_key failed", function)
        )
