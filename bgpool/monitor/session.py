"""The interface of a monitoring connection, independent of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bgpool.core.events import StatusRow

__all__ = ["Answer", "Application", "Session", "SessionError"]


class Application(NamedTuple):
    """The user and database of the application's connections; neither is a secret."""

    user: str
    database: str


class SessionError(Exception):
    """The server cannot be reached, or has not answered. The text is one line and contains no secret.

    Attributes:
        refused: True if the server was reached and refused the login.
        remedy: Advice; empty if the text says it all.
    """

    def __init__(self, text: str, *, refused: bool = False, remedy: str = "") -> None:
        super().__init__(text)
        self.refused = refused
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer.

    Attributes:
        read_only: True if it accepts no writes at all.
        role_read_only: True if a setting of the application's role, or of its database, makes that role read-only.
        subscribes: True if it has an enabled subscription.
        replica: True if it is a physical replica.
        max_connections: Its max_connections; 0 if it was not queried, because there are no metadata.
        rows: Its metadata; None if there are none, or the query failed.
        servers: Ids of the servers of its side, the writer first; empty if the rows name the instances.
        missing: The object that was looked for and the remedy, if the metadata are not visible.
        failure: The server's error at the metadata query.
    """

    read_only: bool
    replica: bool = False
    rows: tuple[StatusRow, ...] | None = None
    servers: tuple[str, ...] = ()
    missing: str = ""
    failure: str = ""
    max_connections: int = 0
    role_read_only: bool = False
    subscribes: bool = False


class Session(Protocol):
    """A monitoring connection, which is opened, used and closed by one thread."""

    @property
    def socket(self) -> int:
        """Its descriptor, for cutting it."""
        ...

    def ask(self) -> Answer:
        """Query everything that the monitor needs from the server.

        Raises:
            SessionError: It did not answer; the session can no longer be used.
        """
        ...

    def await_promotion(self, seconds: float) -> bool:
        """Wait at the server until it is no longer a physical replica, *seconds* at most.

        The result is not returned: ask() reports it. Returns False immediately if it is no replica, or cannot wait.

        Raises:
            SessionError: See ask.
        """
        ...

    def close(self) -> None:
        """Close it; never raises."""
        ...
