"""How the connections of one pool are made: where to, under which name, with what password. Each engine has its own."""

from __future__ import annotations

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Final, Protocol

import psycopg
import pymysql

from bgpool.auth import GIVE_PASSWORD, PasswordMaker
from bgpool.core.limits import ENDPOINTS
from bgpool.core.phase import Phase
from bgpool.core.routing import Action, Decision, Names, Purpose, names_to_try
from bgpool.core.snapshot import Snapshot
from bgpool.dsn import Dsn
from bgpool.failures import login_was_refused
from bgpool.logs import log_fields
from bgpool.pools.alias import Endpoint
from bgpool.pools.gate import Gate
from bgpool.pools.waits import finish
from bgpool.resolver import Resolver
from bgpool.settings import Settings, is_disabled

__all__ = ["DRIVER_FAILURES", "Aware", "DriversPool", "OpenedByCallers", "Destination", "Recipe"]

_logger: Final = logging.getLogger("bgpool.pool")

#: What a connection that cannot be opened or used raises.
DRIVER_FAILURES: Final = (psycopg.OperationalError, pymysql.OperationalError, OSError)

#: Where callers are held, or soon will be.
_BEGINNING: Final = (Phase.PREPARATION, Phase.IN_PROGRESS)

#: The application's own name for it.
_OWN: Final = Names("", "")


class Aware(Protocol):
    """A driver's connection that knows its generation; see the connection module of each engine.

    Attributes:
        bgpool_generation: What it was opened under. A returned connection goes back to it.
        bgpool_lent: From its checkout until it is returned, or closed by its user.
        bgpool_unfit: Set once the server turned out to be read-only, or may be: closed on return instead of used again.
        bgpool_cut: Set once it was cut at the socket: it is closed, whatever the driver has noticed of that.
        bgpool_refused: After a refused write, whether the server itself takes none (and not the caller's transaction);
            None if no write was refused, or the server could not be asked.
        bgpool_in_unit: While the function of a unit of work has it.
        bgpool_ended: Set once that function may have ended the unit's transaction itself.
        bgpool_in_doubt: Once it is lost, for good: why something may have been committed meanwhile, empty if nothing
            can have been. None before.
    """

    bgpool_generation: Any
    bgpool_lent: bool
    bgpool_unfit: bool
    bgpool_cut: bool
    bgpool_refused: bool | None
    bgpool_in_unit: bool
    bgpool_ended: bool
    bgpool_in_doubt: str | None

    @property
    def closed(self) -> bool:
        """Whether its user is to replace it: it was closed, is broken, or must not be used again, see looks_closed."""
        ...

    @property
    def bgpool_is_open(self) -> bool:
        """Whether the driver has a session, be it one that looks closed."""
        ...

    @property
    def bgpool_is_idle(self) -> bool:
        """Whether it is in no transaction and in no block, and no result is left to be read."""
        ...

    def fileno(self) -> int:
        """Its socket."""
        ...

    def bgpool_discard(self) -> None:
        """Close it for good, whatever close() means to its users."""
        ...

    async def bgpool_asettle_refusal(self) -> None:
        """Find out whose a refusal was that is not known yet; rolls back what is open. Raises nothing of a driver's."""
        ...

    def bgpool_pass_on(self) -> Aware | None:
        """The same session under another object, if it can be used again; None if not.

        What the last user still holds is closed after that: it cannot reach the session of the next one.
        """
        ...


class DriversPool(Protocol):
    """What a generation needs of a driver's pool, of threads or of tasks; psycopg_pool's have it."""

    timeout: float
    #: Whether close() of a connection returns it, where it can be used again.
    close_returns: bool
    #: Its threads that close() waits for, one after the other.
    num_workers: int

    #: Why the last attempt to open a connection failed; empty once one was opened.
    failure: str

    #: Whether a caller can open a connection itself: then it is an OpenedByCallers.
    opened_by_callers: bool

    @property
    def max_size(self) -> int:
        """Connections that it may have."""
        ...

    def open(self) -> None:
        """Start connecting; idempotent."""
        ...

    def getconn(self, timeout: float | None = None) -> Any:
        """A connection that is handed out, within *timeout* seconds; a coroutine where callers await."""
        ...

    def keep(self, conn: Any) -> Any:
        """Take back a connection that may be used again; a coroutine where callers await."""
        ...

    def replace(self, conn: Any) -> None:
        """Free the slot of a connection that is closed, and open another one where it is needed."""
        ...

    def close(self, timeout: float = ...) -> None:
        """Close what is idle, send waiting callers on with PoolClosed, close the rest when it comes back.

        Waits *timeout* seconds at most for each of its threads.
        """
        ...

    def get_stats(self) -> dict[str, int]:
        """Figures, named as psycopg_pool names them."""
        ...

    def forget_who_gave_up(self) -> None:
        """Count only those callers as waiting who do."""
        ...


class OpenedByCallers(DriversPool, Protocol):
    """A driver's pool of which a caller can open a connection itself, see InnerPool."""

    def open_lazily(self) -> None:
        """Open, and begin nothing."""
        ...

    def begin(self) -> None:
        """Connect, as far as nobody has begun; idempotent."""
        ...

    def fetch(self, timeout: float, openers: int) -> Any:
        """As getconn; *openers* callers at a time may open a connection."""
        ...


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a connection goes, and as whom the host is to prove itself.

    Attributes:
        address: An IP address; empty leaves it to the driver.
        host: The name to be proved; empty for the one that the application gave.
        password: For this connection; None for the one of the parameters.
    """

    address: str
    host: str
    password: str | None = field(repr=False)


class Recipe(ABC):
    """How the generations of one pool are made.

    Attributes:
        options: The options of the driver's pool, passed on as they are.
        waits: How those wait who connect.
        name: What the driver's pool is called in logs; the user's own, or host, port and database.
        passwords: Makes the password of each connection; None where the parameters have it, or none is needed.
        resolver: Who finds addresses where connections go by name; None leaves it to the driver.
        proved: The names under which an address was last connected to, its own and its token's; where names matter.
        given_password: Set once a connection was opened with a password that came with it: the DSN's may be of no use.
        cache_warning: Why logins that work here fail on a server that has not the password in its cache; empty where
            they do not. Logged once.
        failures: What a connection of the driver's that cannot be opened or used raises.
        TRIAL: What of the parameters is other for a login that is only tried: no statement of the application's, and
            no server refused because it is read-only.
        LOADS: Whether there is anything to load from files.
    """

    failures: ClassVar[tuple[type[Exception], ...]] = DRIVER_FAILURES
    TRIAL: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    LOADS: ClassVar[bool] = False

    def __init__(
        self,
        dsn: Dsn,
        settings: Settings,
        gate: Gate,
        endpoint: Endpoint,
        resolver: Resolver | None,
        options: Mapping[str, Any],
    ) -> None:
        self.dsn: Final = dsn
        self.settings: Final = settings
        self.gate: Final = gate
        self.endpoint: Final = endpoint
        self.waits = gate.waits
        self.proved: Final[dict[str, Names]] = {}
        self.passwords: Final = PasswordMaker(dsn.password) if dsn.password is not None else None
        self.resolver: Final = resolver
        self.options: Final = dict(options)
        database = dsn.params.get("dbname") or dsn.params.get("database") or ""
        self.name: Final[str] = self.options.get("name") or f"{dsn.host}:{dsn.port}/{database}"
        self.cache_warning = ""
        self.given_password = False
        self._phase: Phase | None = None

    # -- what an engine says of itself ---------------------------------------------------------------------------

    @abstractmethod
    def make_inner(self, connector: object) -> DriversPool:
        """A driver's pool, not open yet, whose connections the ``connect`` of *connector* makes.

        Raises:
            ValueError, TypeError: As the driver's pool raises them for its options.
        """

    @abstractmethod
    def open(self, place: Destination, kwargs: Mapping[str, Any]) -> Aware:
        """A connection to *place*; *kwargs* are what the driver's pool adds to the parameters of the DSN.

        Raises:
            OperationalError: The driver's.
        """

    async def aopen(self, place: Destination, kwargs: Mapping[str, Any]) -> Aware:
        """As open."""
        return self.open(place, kwargs)

    @abstractmethod
    def is_silence(self, error: Exception) -> bool:
        """Whether *error* means that nobody is there, whatever the name."""

    @abstractmethod
    def failure(self, text: str) -> Exception:
        """The driver's OperationalError with *text*."""

    @staticmethod
    @abstractmethod
    def like(error: BaseException | None, kind: Callable[..., Exception], text: str) -> Exception:
        """A *kind* of error with *text*, in the form of the driver's, that answers for the code of *error*, if any."""

    @property
    def names_matter(self) -> bool:
        """Whether a host has to prove its name, or gets a password that is for one name."""
        return self.dsn.names_matter

    def ends_within(self, timeout_s: float) -> bool:
        """Whether a connection to where callers are led now can be tried, and given up, within *timeout_s* seconds.

        It can be to recorded addresses, where neither a resolver nor a password callable is waited for.
        """
        decision = self.gate.decide(self.gate.newest(), Purpose.CONNECT)
        if decision.action is not Action.ROUTE or self.passwords is not None:
            return False
        return timeout_s > 0 and timeout_s >= self.shortest_s(decision)

    def shortest_s(self, decision: Decision) -> float:  # noqa:ARG002  # an engine's driver may keep to whole seconds
        """The shortest time limit, in seconds, that an attempt to connect to where *decision* leads can be given."""
        return 0.0

    def limited(self, kwargs: Mapping[str, Any], decision: Decision, limit_s: float) -> Mapping[str, Any]:
        """*kwargs* for an attempt that goes where *decision* leads and ends within *limit_s* seconds."""
        raise NotImplementedError((decision, limit_s, sorted(kwargs)))

    # -- connecting ----------------------------------------------------------------------------------------------

    async def aconnect(self, decision: Decision, kwargs: Mapping[str, Any]) -> Aware:
        """A connection to where *decision* leads, under the first name that is right there.

        Where a login is refused the password callable is told to forget, and all is tried once more at once.

        Args:
            decision: Where to.
            kwargs: Over the DSN's parameters; a password among them over the callable, too.

        Raises:
            OperationalError: No address and no name of it would do; the last one's failure.
        """
        self._note_password(kwargs.get("password"))
        failures: list[Exception] = []
        connection = await self._aconnect(decision, kwargs, failures)
        passwords = self.passwords
        refused = connection is None and any(map(login_was_refused, failures))
        if refused and passwords is not None and await self.waits.call(passwords.forget):
            connection = await self._aconnect(decision, kwargs, failures)
        if connection is None:
            try:
                raise failures[-1] if failures else self.failure(f"{self.dsn.host} does not exist")
            finally:
                # Or the error would keep itself, with this frame and its callers', until the collector comes by.
                failures.clear()
        return connection

    async def _aconnect(self, decision: Decision, kwargs: Mapping[str, Any], failures: list[Exception]) -> Aware | None:
        """As aconnect, once; what failed is added to *failures*."""
        routed = decision.action is Action.ROUTE
        for address in decision.addresses if routed else await self._addresses():
            for names in self._names(decision, address) if routed else (_OWN,):
                try:
                    connection = await self.aopen(await self._place(names, address, kwargs), kwargs)
                except self.failures as error:
                    # The frames of the driver hold the error that they have raised.
                    failures.append(error.with_traceback(None))
                    if self.is_silence(error):
                        break
                    continue
                if names is not _OWN:
                    self._remember(address, names)
                return connection
        return None

    def for_trials(self) -> Recipe:
        """A recipe for try_login, which is called in a thread of its own."""
        return self

    def try_login(self, decision: Decision, table: str | None = None) -> bool | None:
        """Log in where *decision* leads as the application would, and out again.

        Returns:
            Whether *table* is one whose rows are replicated there from blue; None if a row of it would stop the
            replication; false without one.

        Raises:
            OperationalError: As aconnect.
        """
        connection = finish(self.aconnect(decision, self.TRIAL))
        try:
            return self.reaches(connection, table) if table is not None else False
        finally:
            connection.bgpool_discard()

    def reaches(self, connection: Any, table: str) -> bool | None:  # noqa:ARG002  # PostgreSQL asks
        """Whether the rows of *table* are replicated to the server of *connection*, a green one, as all are.

        None if a row of it would stop the replication.
        """
        return True

    def warn_of_cache(self, text: str) -> None:
        """Log *text*, why the pool's logins depend on the server's cache, once; nothing if it is empty."""
        # In one step: several connections are opened at a time, and writing a log line lets the others go on.
        before, self.cache_warning = self.cache_warning, text
        if text and not before:
            extra = log_fields("login_depends_on_cache", bg_id=self.settings.bg_id, host=self.endpoint.name)
            _logger.warning("[bg_id: %r] user %r: %s", self.settings.bg_id, self.dsn.user, text, extra=extra)

    def _note_password(self, given: object) -> None:
        """Note that a connection comes with a password, and log once that the monitor does not have it."""
        dsn = self.dsn
        own = dsn.params.get("password")
        if given is None or given == own or self.given_password:
            return
        self.given_password = True
        if dsn.monitoring_password is None and dsn.monitoring.get("password") == own and not is_disabled():
            extra = log_fields("monitor_lacks_password", bg_id=self.settings.bg_id, host=self.endpoint.name)
            _logger.warning(
                "[bg_id: %r] the password of user %r comes with each connection, but the monitor is a process of its "
                "own and has %s: %s",
                self.settings.bg_id,
                dsn.user,
                "none" if own is None else "only that of the DSN",
                GIVE_PASSWORD,
                extra=extra,
            )

    def prepare(self) -> None:
        """Get ready to connect; have the password callable do so in the background."""
        if self.passwords is not None:
            self.passwords.prepare(self.endpoint.name, self.dsn.port, self.dsn.user)
        self.load()

    def load(self) -> None:  # noqa:B027  # most have nothing to load
        """Load from files what connections share, unless it is there; raises nothing of theirs."""

    def load_later(self, snapshot: Snapshot | None) -> None:
        """Load it in the background when a switchover begins: a file may have been replaced since the last login."""
        phase = snapshot.phase if snapshot is not None else None
        before, self._phase = self._phase, phase
        # Where nothing was known before, the first checkout has loaded it just now, or does so.
        if self.LOADS and before is not None and phase is not before and phase in _BEGINNING:
            with contextlib.suppress(RuntimeError, MemoryError):  # no thread now: the first connection loads it
                threading.Thread(target=self.load, name="bgpool-load", daemon=True).start()

    async def _addresses(self) -> tuple[str, ...]:
        """Where the endpoint is by name; one empty address leaves it to the driver."""
        resolver = self.resolver
        if resolver is None:
            return ("",)
        return (await self.waits.call(lambda: resolver.resolve(self.dsn.host)))[:1]

    def _names(self, decision: Decision, address: str) -> list[Names]:
        """The names to try at *address*, those that were right there last first."""
        if not self.names_matter:
            return [_OWN]
        last = self.proved.get(address)
        names = names_to_try(decision.names, tokens=self.passwords is not None)
        return sorted(names, key=lambda pair: pair != last)

    async def _place(self, names: Names, address: str, kwargs: Mapping[str, Any]) -> Destination:
        """What tells the driver where to go; without a name the host keeps the one that the application gave."""
        password = None
        passwords = self.passwords
        if passwords is not None and kwargs.get("password") is None:
            name = names.token or self.endpoint.name
            password = await self.waits.call(lambda: passwords.make(name, self.dsn.port, self.dsn.user))
        return Destination(address, names.host, password)

    def _remember(self, address: str, names: Names) -> None:
        if self.proved.get(address) != names:
            if len(self.proved) >= ENDPOINTS:
                self.proved.clear()
            self.proved[address] = names
