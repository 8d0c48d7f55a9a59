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
        """The keys, the one that signs first. The first time it may take as long as a password callable may.

        Raises:
            BusError: There are none to be had; the text holds no secret.
        """
        keys = self._keys
        if keys is None:
            with self._lock:
                return self._keys if self._keys is not None else self._make()
        if time.monotonic() - self._made_at > FLEET_KEYS_LIFE_S and self._lock.acquire(blocking=False):
            # Not here: one that hangs would make a leader silent, while the keys that there are still do.
            try:
                threading.Thread(target=self._renew, name="bgpool-keys", daemon=True).start()
            except RuntimeError:  # no more threads
                self._made_at = time.monotonic()
                self._lock.release()
        return keys

    def _make(self) -> tuple[bytes, ...]:
        try:
            self._keys = keys = self._maker.make()
        except (ConfigurationError, PasswordFailed) as error:
            raise BusError(str(error)) from error
        finally:
            self._made_at = time.monotonic()
        return keys

    def _renew(self) -> None:
        try:
            self._make()
        except BusError:
            # The ones that we have are as good as they were.
            pass
        finally:
            self._lock.release()
