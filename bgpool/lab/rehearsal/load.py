"""A small load on a URL of this machine, and its results: answers, failures, and the longest time without an answer."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import threading
import time
from typing import Final
from urllib.parse import urlsplit

__all__ = ["THREADS", "Load"]

#: The number of clients, each with one request at a time.
THREADS: Final = 4
MOST_EXAMPLES: Final = 5
EXAMPLE_CHARACTERS: Final = 200
#: Longer than any hold by default (bg_connect_timeout_ms), so that an application's own answer is seen.
REQUEST_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 10.0
PROBE_TIMEOUT_S: Final = 1.0


class Load:
    """Clients that GET a URL, each on a connection of its own, at most one request per *every_s* seconds.

    Nothing is counted before `count`, because an application needs time to start. An answer has a status below 400;
    redirects are not followed.
    """

    def __init__(self, url: str, every_s: float) -> None:
        """Describe the load on *url*.

        Raises:
            ValueError: It is not the http URL of a loopback address, or another process listens there already.
        """
        self.url: Final = url
        self._every_s: Final = every_s
        self._host, self._port, self._target = _parse(url)
        if _listens(self._host, self._port):
            raise ValueError(
                f"{url}: another process listens there already, and would get the requests instead of the command"
            )
        self._halt: Final = threading.Event()
        self._lock: Final = threading.Lock()  # protects the following attributes
        self._counting_since_s = float("inf")
        self._last_error = ""
        self._answered_ever = False
        self.answered = 0
        self.failed = 0
        self.examples: tuple[str, ...] = ()
        self._clients: Final = [_Client(self) for _ in range(THREADS)]

    @property
    def answers(self) -> bool:
        """True once there was an answer."""
        return self._answered_ever

    @property
    def last_error(self) -> str:
        """The failure of the last request that failed; empty if none did."""
        return self._last_error

    @property
    def longest_gap_s(self) -> float:
        """The longest time that a client was without an answer, from `count` to `stop`."""
        return max(client.longest_gap_s for client in self._clients)

    def start(self) -> None:
        """Start the requests."""
        for client in self._clients:
            client.start()

    def count(self) -> None:
        """Count every request that begins from now on."""
        with self._lock:
            self._counting_since_s = time.monotonic()
        for client in self._clients:
            client.last_answer_s = self._counting_since_s

    def stop(self) -> None:
        """End after the current requests; one without an answer after `STOP_TIMEOUT_S` has failed. Idempotent."""
        if self._halt.is_set():
            return
        self._halt.set()
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        for client in self._clients:
            if client.ident is None:
                continue
            client.join(max(0.0, deadline_s - time.monotonic()))
            client.note_gap(time.monotonic())
            if client.is_alive():
                self.note(client.began_s, f"no answer after {time.monotonic() - client.began_s:.1f} s")

    # -- for the clients -----------------------------------------------------------------------------------------

    def request(self) -> str:
        """Make one request; return its failure, or an empty text."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=REQUEST_TIMEOUT_S)
        try:
            connection.request("GET", self._target, headers={"User-Agent": "bgpool-rehearse", "Connection": "close"})
            answer = connection.getresponse()
            body = answer.read(EXAMPLE_CHARACTERS)
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"[:EXAMPLE_CHARACTERS]
        finally:
            connection.close()
        if answer.status < 400:
            return ""
        text = " ".join(body.decode(errors="replace").split())
        return f"status {answer.status}: {text}"[:EXAMPLE_CHARACTERS]

    def note(self, began_s: float, wrong: str) -> None:
        """Record the end of a request that began at *began_s*."""
        with self._lock:
            self._answered_ever |= not wrong
            self._last_error = wrong or self._last_error
            if began_s < self._counting_since_s:
                return
            if not wrong:
                self.answered += 1
                return
            self.failed += 1
            if len(self.examples) < MOST_EXAMPLES:
                self.examples = (*self.examples, wrong)

    def pause(self, began_s: float) -> bool:
        """Wait until the next request may begin; return False if the load ends."""
        return not self._halt.wait(max(0.0, began_s + self._every_s - time.monotonic()))


class _Client(threading.Thread):
    """One client; *last_answer_s* is infinite until answers count."""

    def __init__(self, load: Load) -> None:
        super().__init__(name="bgpool-load", daemon=True)
        self._load: Final = load
        self.began_s = 0.0
        self.last_answer_s = float("inf")
        self.longest_gap_s = 0.0

    def run(self) -> None:
        """Make requests until the load ends."""
        go_on = True
        while go_on:
            self.began_s = time.monotonic()
            wrong = self._load.request()
            now_s = time.monotonic()
            self._load.note(self.began_s, wrong)
            if not wrong:
                self.note_gap(now_s)
            go_on = self._load.pause(self.began_s)

    def note_gap(self, now_s: float) -> None:
        """Measure the gap up to *now_s*: the time of an answer, or of the end."""
        self.longest_gap_s = max(self.longest_gap_s, now_s - self.last_answer_s)
        if self.last_answer_s <= now_s:
            self.last_answer_s = now_s


def _parse(url: str) -> tuple[str, int, str]:
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError as error:
        raise ValueError(f"{url}: {error}") from None
    if parts.scheme != "http" or parts.username is not None or not _is_loopback(parts.hostname or ""):
        raise ValueError(f"{url}: an http:// URL on 127.0.0.1, ::1 or localhost is allowed")
    target = parts.path or "/"
    return parts.hostname or "", port, f"{target}?{parts.query}" if parts.query else target


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True
