"""The bus on streams of Redis 6.2 and later, or Valkey. Its ids are the fence: an XADD needs a higher id.

There are two streams in one hash slot for each ``bg_id``. Neither may expire: deleting the key loses the order of ids.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final, TypeVar

from bgpool.base_errors import ConfigurationError, Error
from bgpool.core.limits import (
    FLEET_BLOCK_S,
    FLEET_ENTRIES,
    FLEET_ENTRIES_READ,
    FLEET_ENTRY_BYTES,
    FLEET_HOSTS,
    FLEET_TIMEOUT_S,
)
from bgpool.fleet.bus import BusError, Entry, KeyMissing, ReadResult, Refused, ReportEntry
from bgpool.fleet.config import FleetConfig
from bgpool.fleet.url import BusUrl, parse_bus_url

__all__ = ["HOSTS_KEPT", "StreamBus", "stream_keys"]

#: The only field of an entry.
FIELD: Final = b"m"
#: The approximate number of reports that are kept.
HOSTS_KEPT: Final = 4 * FLEET_HOSTS
#: After these errors the name may lead to another server, or this connection's state is insufficient: the next call
#: opens a new one. redis-py would keep the connection, and write to a replica forever.
ANEW: Final = frozenset(
    ("READONLY", "MOVED", "ASK", "TRYAGAIN", "UNBLOCKED", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "WRONGPASS")
)
#: The minimum permissions.
RIGHTS: Final = "+xadd +xread +xrevrange ~bgpool:*"

#: The meaning of a server's error by its code, as the end of a sentence that begins with the server. A text may use
#: {command}, {key} and {rights}.
MEANINGS: Final = {
    "READONLY": "is a replica and accepts no writes; its name is looked up again",
    "OOM": "has no memory left (maxmemory), and evicts nothing",
    "NOAUTH": "requires a password",
    "WRONGPASS": "refuses the user or the password",
    "NOPERM": "does not let the user run {command}; the required permissions are {rights}",
    "LOADING": "is starting and still loading its data",
    "MASTERDOWN": "is a replica that has lost its primary",
    "CLUSTERDOWN": "reports that its cluster is down",
    "UNBLOCKED": "is no longer a primary; its name is looked up again",
    "NOREPLICAS": "has fewer replicas than a write requires (min-replicas-to-write)",
    "MISCONF": "cannot save its data, and accepts no writes until it can",
    "BUSY": "is busy with another client's script",
    "WRONGTYPE": "has a value other than a stream under {key}; delete that key (DEL)",
    "MOVED": "redirects from one node to another and back",
    "ASK": "is moving {key} to another node",
    "TRYAGAIN": "is moving {key} to another node",
    "NOPROTO": "does not speak RESP2",
    "DENIED": "is in protected mode: it has no password and refuses other hosts",
}
#: The same for errors without a code of their own, by a part of their text.
PLAIN_MEANINGS: Final = {
    "exhausted the last possible ID": "has an entry with the highest possible id in {key}, which another client "
    "has written; delete that key (DEL)",
    "max number of clients reached": "has reached its maximum of clients (maxclients)",
    "without any password configured": "has no password for the default user, and bg_fleet has one",
    "DB index is out of range": "has no database of that number; a cluster has only the database 0",
    "SELECT is not allowed in cluster mode": "is a cluster, which has only the database 0",
    "unknown command": "does not know {command}; Redis 6.2 or later, or Valkey, is needed",
    "syntax error": "does not know a part of {command}; Redis 6.2 or later, or Valkey, is needed",
}
REFUSED: Final = "equal or smaller than the target stream top item"
#: The text for the id 0-0, which no stream ever accepts.
TOO_LOW: Final = "must be greater than 0-0"

T = TypeVar("T")


def stream_keys(bg_id: str) -> tuple[str, str]:
    """Return the leaders' stream of *bg_id*, and the hosts'. The part in braces makes a cluster keep them together."""
    key = f"bgpool:{{{bg_id}}}"
    return key, f"{key}:hosts"


class StreamBus:
    """A `Bus` on streams, for one thread, with one connection."""

    def __init__(self, config: FleetConfig, bg_id: str) -> None:
        """Create it; nothing is sent before the first call.

        Raises:
            BusError: redis-py is missing, or *config* cannot be used here.
        """
        try:
            from bgpool.fleet.connection import Connection
        except ImportError as error:
            raise BusError(f"bg_fleet needs redis-py: pip install 'bgpool[fleet]' ({error})") from None
        try:
            self._url: Final[BusUrl] = parse_bus_url(config.url)
            password = config.password
        except ConfigurationError as error:
            raise BusError(str(error)) from None
        if password is None:
            self._passwords = None
        else:
            from bgpool.auth import PasswordMaker  # imports the drivers, which no other code here needs

            self._passwords = PasswordMaker(password)
        self._class: Final = Connection
        self._key, self._hosts_key = stream_keys(bg_id)
        self._connection: Any = None
        # The node that a cluster has redirected to; None for the configured one.
        self._moved_to: tuple[str, int] | None = None

    # -- the interface of a bus ----------------------------------------------------------------------------

    def publish(self, term: int, seq: int, payload: bytes) -> None:
        """XADD with an explicit id, and with NOMKSTREAM unless it is a claim; see `Bus.publish`."""
        make = () if seq == 0 else ("NOMKSTREAM",)
        command = ("XADD", self._key, *make, "MAXLEN", "~", FLEET_ENTRIES, f"{term}-{seq}", FIELD, payload)
        if self._call(self._key, *command, parse=_same) is None:
            raise KeyMissing(f"{self._key} is gone from the bus")

    def read(self, after: tuple[int, int], timeout_s: float, reports_after: str | None = None) -> ReadResult:
        """XREAD of one or both streams; see `Bus.read`."""
        # 0 would block forever. A time above the socket's timeout would cause an error instead of an empty result.
        wait_ms = int(min(timeout_s, FLEET_BLOCK_S) * 1000)
        block = ("BLOCK", wait_ms) if wait_ms > 0 else ()
        keys, ids = [self._key], [f"{after[0]}-{after[1]}"]
        if reports_after is not None:
            keys.append(self._hosts_key)
            ids.append(reports_after)
        command = ("XREAD", "COUNT", FLEET_ENTRIES_READ, *block, "STREAMS", *keys, *ids)
        return self._call(" or ".join(keys), *command, parse=self._heard)

    def top(self) -> Entry | None:
        """XREVRANGE of one entry; see `Bus.top`."""
        entries = self._call(self._key, "XREVRANGE", self._key, "+", "-", "COUNT", 1, parse=_entries)
        return entries[0] if entries else None

    def report(self, payload: bytes) -> None:
        """XADD with an id chosen by the server; see `Bus.report`."""
        key = self._hosts_key
        self._call(key, "XADD", key, "MAXLEN", "~", HOSTS_KEPT, "*", FIELD, payload, parse=_same)

    def reports(self, count: int) -> list[ReportEntry]:
        """XREVRANGE; see `Bus.reports`."""
        return self._call(self._hosts_key, "XREVRANGE", self._hosts_key, "+", "-", "COUNT", count, parse=_reports)

    def try_writing(self) -> None:
        """Check that both streams can be written, without writing.

        It sends an XADD with the id 0-0. A server checks permissions, its role and its memory first, and then refuses
        that id, whatever the key contains.

        Raises:
            BusError: They cannot be written.
        """
        for key in (self._key, self._hosts_key):
            command = ("XADD", key, "NOMKSTREAM", "MAXLEN", "~", FLEET_ENTRIES, "0-0", FIELD, b"")
            with contextlib.suppress(Refused):
                self._call(key, *command, parse=_same)

    def eviction(self) -> tuple[str, int]:
        """Return the server's maxmemory-policy, and its maxmemory in bytes, 0 for no limit.

        Raises:
            BusError: It refuses; a fleet does not need the permission for INFO.
        """
        return self._call(self._key, "INFO", "memory", parse=_memory)

    def close(self) -> None:
        """Close the connection, and forget a cluster's redirection."""
        self._hang_up()
        self._moved_to = None

    def __repr__(self) -> str:
        return f"<StreamBus {self._key} at {self._place}>"

    # -- inside --------------------------------------------------------------------------------------------

    @property
    def _place(self) -> str:
        """The name, and the node that a cluster has redirected to, for error texts."""
        at = f" ({_joined(*self._moved_to)})" if self._moved_to else ""
        return _joined(self._url.host, self._url.port) + at

    def _call(self, key: str, *command: Any, parse: Callable[[Any], T]) -> T:
        """Return the parsed answer to *command*. It is sent once, and again after the first MOVED: it was not run."""
        try:
            answer = self._exchange(*command)
        except _ServerError as error:
            moved_to = error.moved_to(self._url)
            if moved_to is None:
                raise self._explained(error, key) from None
            self._hang_up()
            self._moved_to = moved_to
            try:
                answer = self._exchange(*command)
            except _ServerError as second:
                raise self._explained(second, key) from None
        try:
            return parse(answer)
        except (TypeError, ValueError, LookupError, AttributeError):
            self.close()
            raise BusError(f"the bus at {self._place} gave an answer to {command[0]} that is none") from None

    def _exchange(self, *command: Any) -> Any:
        """Send *command* and return the answer.

        Raises:
            _ServerError: The server has answered with an error; the connection is unchanged.
            BusError: Any other failure; the connection is closed.
        """
        from redis import exceptions

        running = "AUTH"
        try:
            if self._connection is None:
                connection = self._class(self._url, self._password(), self._moved_to)
                if self._url.db:
                    running = "SELECT"
                connection.connect()
                self._connection = connection
            running = command[0]
            return self._connection.exchange(*command)
        except exceptions.ResponseError as error:
            raise _ServerError(str(error), running) from None
        except Exception as error:
            place = self._place
            self.close()
            # The caller must see any other error as what it means for it: the bus does not answer.
            if isinstance(error, Error):
                said = str(error)
            elif isinstance(error, exceptions.TimeoutError):
                said = f"has not answered {running} within {FLEET_TIMEOUT_S:g} s"
            elif isinstance(error, exceptions.ConnectionError):
                said = f"has hung up at {running}"
                if running == "AUTH" and not self._url.tls:
                    said += "; a port of TLS needs rediss:// or valkeys://"
            else:
                said = f"does not speak the protocol of Redis ({type(error).__name__})"
            raise BusError(f"the bus at {place} {said}") from None

    def _password(self) -> str:
        if self._passwords is None:
            return self._url.password
        return self._passwords.make(self._url.host, self._url.port, self._url.user or "default")

    def _explained(self, error: _ServerError, key: str) -> BusError:
        """Return *error* for the operator; closes the connection if the next call needs a new one."""
        if TOO_LOW in error.text:
            return Refused(f"{key} accepts no entry with the id 0-0")
        if REFUSED in error.text:
            return Refused(f"another client has written to {key}: the message is not above its newest entry")
        place = self._place
        meaning = MEANINGS.get(error.code) or next(
            (meaning for part, meaning in PLAIN_MEANINGS.items() if part in error.text), None
        )
        if error.code in ANEW or meaning is None:
            self.close()
        if error.code == "WRONGPASS" and self._passwords is not None:
            self._passwords.forget()
        # Never include the server's text: it may quote the command, which may have been a login.
        said = (meaning or "answers {command} with the error {code}").format(
            command=error.command, code=error.code, key=key, rights=f"{RIGHTS}{' +select' if self._url.db else ''}"
        )
        return BusError(f"the bus at {place} {said}", error.code)

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # The connection is useless in any case.
            with contextlib.suppress(Exception):
                connection.disconnect()

    def _heard(self, answer: Any) -> ReadResult:
        streams = {bytes(name): entries for name, entries in answer or ()}
        return ReadResult(
            _entries(streams.get(self._key.encode(), ())), _reports(streams.get(self._hosts_key.encode(), ()))
        )


class _ServerError(Exception):
    """An error that the server has answered with.

    Attributes:
        code: The first word of the error, in capital letters.
        command: The command that was executed.
    """

    def __init__(self, text: str, command: str) -> None:
        super().__init__(text)
        self.text: Final = text
        self.command: Final = command
        word = text.partition(" ")[0]
        self.code: Final = word if word.isascii() and word.isupper() and len(word) <= 20 else "ERR"

    def moved_to(self, url: BusUrl) -> tuple[str, int] | None:
        """The node that a MOVED error names; None for any other error."""
        words = self.text.split()
        if self.code != "MOVED" or len(words) != 3:
            return None
        host, _, port = words[2].rpartition(":")
        if host == "?" or not port.isdigit() or not 0 < int(port) < 65536:
            return None
        # A node that does not know its own address omits it: it is the node that was queried.
        return host or url.host, int(port)


def _same(answer: Any) -> Any:
    return answer


def _entries(answer: Any) -> list[Entry]:
    found = []
    for identity, fields in answer or ():
        term, _, seq = identity.decode("ascii").partition("-")
        found.append(Entry(int(term), int(seq), _payload(fields)))
    return found


def _reports(answer: Any) -> list[ReportEntry]:
    return [ReportEntry(identity.decode("ascii"), _payload(fields)) for identity, fields in answer or ()]


def _payload(fields: Any) -> bytes:
    """Return the payload of an entry; empty if it lacks bgpool's field, or is too large."""
    pairs = dict(zip(fields[::2], fields[1::2], strict=False))
    payload = pairs.get(FIELD, b"")
    return payload if isinstance(payload, bytes) and len(payload) <= FLEET_ENTRY_BYTES else b""


def _memory(answer: Any) -> tuple[str, int]:
    lines = dict(line.split(":", 1) for line in answer.decode().split("\r\n") if ":" in line)
    return lines["maxmemory_policy"], int(lines["maxmemory"])


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
