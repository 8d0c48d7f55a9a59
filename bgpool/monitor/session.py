"""What a monitoring connection is to the monitor, whatever the engine: something that can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bgpool.core.events import StatusRow

__all__ = ["Answer", "Application", "Session", "SessionError"]


class Application(NamedTuple):
    """Whom the application's connections log in as, and where; neither is a secret."""

    user: str
    database: str


class SessionError(Exception):
    """The server cannot be reached, or has not answered. The text is one line and holds no secret.

    Attributes:
        refused: The server is there, and refused the login.
        remedy: What may help; empty where the text says it all.
    """

    def __init__(self, text: str, *, refused: bool = False, remedy: str = "") -> None:
        super().__init__(text)
        self.refused = refused
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said.

    Attributes:
        read_only: It takes no writes from anybody.
        role_read_only: It takes none from the application's role, by a setting of that role or of its database.
        subscribes: It has an enabled subscription.
        replica: It is a physical replica.
        max_connections: How many clients it takes; 0 where it was not asked, because it has no metadata to show.
        rows: Its metadata; None where it has none to show or the question for them failed.
        servers: Ids of the servers of its side, the writer first; empty where the rows name the instances.
        missing: What was looked for and what would help, where there are no metadata to be seen.
        failure: What the server said against the question for its metadata.
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
    """A monitoring connection: opened, asked and closed by one thread."""

    @property
    def socket(self) -> int:
        """Its descriptor, for cutting it."""
        ...

    def ask(self) -> Answer:
        """Ask the server for everything that the monitor wants to know.

        Raises:
            SessionError: It did not answer; the session is of no more use.
        """
        ...

    def await_promotion(self, seconds: float) -> bool:
        """Wait, at the server, until that is a physical replica no more, *seconds* at most.

        Tells nothing of it: ask() does. False, at once, where it is none, or cannot be waited for there.

        Raises:
            SessionError: As ask.
        """
        ...

    def close(self) -> None:
        """Close it; never raises."""
        ...
