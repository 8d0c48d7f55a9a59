"""The keys of a fleet in its monitor, for both of its threads."""

from __future__ import annotations

import threading
import time
from typing import Final

from bgpool.core.limits import FLEET_KEYS_LIFE_S
from bgpool.errors import ConfigurationError, PasswordFailed
from bgpool.fleet.bus import BusError
from bgpool.fleet.config import FleetConfig, KeyMaker

__all__ = ["Keys"]


class Keys:
    """Calls what makes the keys, and again after FLEET_KEYS_LIFE_S: a key that was changed needs no new monitor."""

    def __init__(self, config: FleetConfig) -> None:
        self._maker: Final = KeyMaker(config)
        self._lock: Final = threading.Lock()
        self._keys: tuple[bytes, ...] | None = None
        self._made_at = 0.0

    def __call__(self) -> tuple[bytes, ...]:
        """The keys, the one that signs first. May take as long as a password callable may.

        Raises:
            BusError: There are none to be had; the text holds no secret.
        """
        with self._lock:
            if self._keys is None or time.monotonic() - self._made_at > FLEET_KEYS_LIFE_S:
                try:
                    self._keys = self._maker.make()
                except (ConfigurationError, PasswordFailed) as error:
                    # The ones that we have are as good as they were.
                    if self._keys is None:
                        raise BusError(str(error)) from error
                self._made_at = time.monotonic()
            return self._keys
