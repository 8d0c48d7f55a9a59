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
    """Calls the key callable, again after FLEET_KEYS_LIFE_S, so that a changed key requires no new monitor."""

    def __init__(self, config: FleetConfig) -> None:
        self._maker: Final = KeyMaker(config)
        self._lock: Final = threading.Lock()
        self._keys: tuple[bytes, ...] | None = None
        self._made_at = 0.0

    def __call__(self) -> tuple[bytes, ...]:
        """Return the keys, the signing one first. The first call may take as long as a password callable.

        Raises:
            BusError: There are no keys; the text contains no secret.
        """
        keys = self._keys
        if keys is None:
            with self._lock:
                return self._keys if self._keys is not None else self._make()
        if time.monotonic() - self._made_at > FLEET_KEYS_LIFE_S and self._lock.acquire(blocking=False):
            # In another thread: a callable that hangs would make a leader silent, although its current keys are still
            # valid.
            try:
                threading.Thread(target=self._renew, name="bgpool-keys", daemon=True).start()
            except RuntimeError:  # out of threads
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
            # The current keys remain valid.
            pass
        finally:
            self._lock.release()
