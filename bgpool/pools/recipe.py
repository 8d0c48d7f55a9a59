"""The way to open the connections of one pool: destination, name to prove and password. Each engine has its own."""

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

#: The errors of a connection that cannot be opened or used.
DRIVER_FAILURES: Final = (psycopg.OperationalError, pymysql.OperationalError, OSError)

#: The phases in which callers are held, or soon will be.
_BEGINNING: Final = (Phase.PREPARATION, Phase.IN_PROGRESS)

#: The application's own name for the endpoint.
_OWN: Final = Names("", "")


class Aware(Protocol):
    """A driver's connection that knows its generation; see the connection module of each engine.

    Attributes:
        bgpool_generation: The generation in which it was opened. A returned connection goes back to it.
        bgpool_lent: True from its checkout until it is returned, or closed by its user.
        bgpool_unfit: Set once the server turned out to be read-only, or may be: closed on return instead of used again.
        bgpool_cut: Set once it was cut at the socket. It is closed, even if the driver has not noticed that.
        bgpool_refused: After a refused write, true if the server itself takes none (not only the caller's transaction);
            None if no write was refused, or the server could not be queried.
        bgpool_in_unit: True while the function of a unit of work has it.
        bgpool_ended: Set once that function may have ended the unit's transaction itself.
        bgpool_in_doubt: None until the connection is lost. Then the reason for which it may have committed data, empty
            if it cannot have.
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
        """True if its user must replace it: it was closed, is broken, or must not be used again, see looks_closed."""
        ...

    @property
    def bgpool_is_open(self) -> bool:
        """True if the driver has a session, even one that looks closed."""
        ...

    @property
    def bgpool_is_idle(self) -> bool:
        """True if it is in no transaction and in no block, and no result is left to be read."""
        ...

    def fileno(self) -> int:
        """Return the descriptor of its socket."""
        ...

    def bgpool_discard(self) -> None:
        """Close it for good, whatever close() means to its users."""
        ...

    async def bgpool_asettle_refusal(self) -> None:
        """Find the unknown origin of a refusal, and roll back an open transaction; raise no error of the driver."""
        ...

    def bgpool_pass_on(self) -> Aware | None:
        """Return the same session under another object, if it can be used again; None if not.

        The object that the last user still has is closed after that: it cannot reach the session of the next user.
        """
        ...


class DriversPool(Protocol):
    """The interface that a generation needs of a driver's pool, for threads or tasks. psycopg_pool's pools have it."""

    timeout: float
    #: True if close() of a connection returns it, provided that it can be used again.
    close_returns: bool
    #: The number of its threads that close() waits for, one after the other.
    num_workers: int

    #: The reason for which the last attempt to open a connection failed; empty once one was opened.
    failure: str

    #: True if a caller can open a connection itself: then the pool is an OpenedByCallers.
    opened_by_callers: bool

    @property
    def max_size(self) -> int:
        """The maximum number of connections."""
        ...

    def open(self) -> None:
        """Start connecting; idempotent."""
        ...

    def getconn(self, timeout: float | None = None) -> Any:
        """Return a connection to hand out, within *timeout* seconds; a coroutine if callers await."""
        ...

    def keep(self, conn: Any) -> Any:
        """Take back a connection that may be used again; a coroutine if callers await."""
        ...

    def replace(self, conn: Any) -> None:
        """Free the slot of a closed connection, and open another one if it is needed."""
        ...

    def close(self, timeout: float = ...) -> None:
        """Close idle connections, raise PoolClosed in waiting callers, close the other connections at their return.

        It waits at most *timeout* seconds for each of its threads.
        """
        ...

    def get_stats(self) -> dict[str, int]:
        """Return its figures, under psycopg_pool's names."""
        ...

    def forget_who_gave_up(self) -> None:
        """Correct the count of waiting callers by those that have given up."""
        ...


class OpenedByCallers(DriversPool, Protocol):
    """A driver's pool in which a caller can open a connection itself, see InnerPool."""

    def open_lazily(self) -> None:
        """Open, without starting to connect."""
        ...

    def begin(self) -> None:
        """Start connecting, as far as that has not begun; idempotent."""
        ...

    def fetch(self, timeout: float, openers: int) -> Any:
        """Like getconn; up to *openers* callers at a time may open a connection."""
        ...


@dataclass(frozen=True, slots=True)
class Destination:
    """The destination of a connection, and the name that the host must prove.

    Attributes:
        address: An IP address; empty leaves it to the driver.
        host: The name to prove; empty for the one that the application gave.
        password: The password for this connection; None for the one of the parameters.
    """

    address: str
    host: str
    password: str | None = field(repr=False)


class Recipe(ABC):
    """The way to open the connections of one pool's generations.

    Attributes:
        options: The options of the driver's pool, passed on as they are.
        waits: The waits of the callers that connect.
        name: The name of the driver's pool in logs; the user's own, or host, port and database.
        passwords: Makes the password of each connection; None if the parameters contain it, or none is needed.
        resolver: Resolves the DNS name if connections use it; None leaves it to the driver.
        proved: The names under which an address was last connected to, its own and its token's; if names matter.
        given_password: Set once a connection was opened with a password that came with it, so that the DSN's may not
            work.
        cache_warning: The reason for which logins that work here fail on a server without the password in its cache;
            empty if they do not. Logged once.
        failures: The driver's errors for a connection that cannot be opened or used.
        TRIAL: The parameters that differ for a login that is only a test: no statement of the application, and no
            refusal of a read-only server.
        LOADS: True if there is data to load from files.
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

    # -- implemented by each engine ------------------------------------------------------------------------------

    @abstractmethod
    def make_inner(self, connector: object) -> DriversPool:
        """Return a driver's pool, not open yet, whose connections are opened by ``connect`` of *connector*.

        Raises:
            ValueError, TypeError: The errors of the driver's pool about its options.
        """

    @abstractmethod
    def open(self, place: Destination, kwargs: Mapping[str, Any]) -> Aware:
        """Return a connection to *place*; *kwargs* are the driver's pool's additions to the parameters of the DSN.

        Raises:
            OperationalError: The driver's.
        """

    async def aopen(self, place: Destination, kwargs: Mapping[str, Any]) -> Aware:
        """Like open."""
        return self.open(place, kwargs)

    @abstractmethod
    def is_silence(self, error: Exception) -> bool:
        """Return whether *error* means that no server answers there, under any name."""

    @abstractmethod
    def failure(self, text: str) -> Exception:
        """Return the driver's OperationalError with *text*."""

    @staticmethod
    @abstractmethod
    def like(error: BaseException | None, kind: Callable[..., Exception], text: str) -> Exception:
        """Return an error of *kind* with *text*, in the driver's form, that keeps the code of *error*, if any."""

    @property
    def names_matter(self) -> bool:
        """True if a host must prove its name, or gets a password that is valid for one name."""
        return self.dsn.names_matter

    def ends_within(self, timeout_s: float) -> bool:
        """Return whether one attempt to connect to the current destination fits into *timeout_s* seconds.

        This is possible only for recorded addresses, which need no wait for a resolver, and without a password
        callable.
        """
        decision = self.gate.decide(self.gate.newest(), Purpose.CONNECT)
        if decision.action is not Action.ROUTE or self.passwords is not None:
            return False
        return timeout_s > 0 and timeout_s >= self.shortest_s(decision)

    def shortest_s(self, decision: Decision) -> float:  # noqa:ARG002  # a driver may accept only whole seconds
        """Return the shortest time limit that an attempt to connect by *decision* can have, in seconds."""
        return 0.0

    def limited(self, kwargs: Mapping[str, Any], decision: Decision, limit_s: float) -> Mapping[str, Any]:
        """Return *kwargs* for an attempt to connect by *decision* that ends within *limit_s* seconds."""
        raise NotImplementedError((decision, limit_s, sorted(kwargs)))

    # -- connecting ----------------------------------------------------------------------------------------------

    async def aconnect(self, decision: Decision, kwargs: Mapping[str, Any]) -> Aware:
        """Return a connection by *decision*, under the first name that is right there.

        If a login is refused, the password callable's value is discarded, and all is tried once more immediately.

        Args:
            decision: The destination.
            kwargs: They override the DSN's parameters; a password among them overrides the callable, too.

        Raises:
            OperationalError: No address and no name of it worked; this is the last failure.
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
                # Otherwise the error would refer to itself through this frame, and would live until the garbage
                # collector runs.
                failures.clear()
        return connection

    async def _aconnect(self, decision: Decision, kwargs: Mapping[str, Any], failures: list[Exception]) -> Aware | None:
        """Like aconnect, but only once; errors are added to *failures*."""
        routed = decision.action is Action.ROUTE
        for address in decision.addresses if routed else await self._addresses():
            for names in self._names(decision, address) if routed else (_OWN,):
                try:
                    connection = await self.aopen(await self._place(names, address, kwargs), kwargs)
                except self.failures as error:
                    # The driver's frames refer to the error that they have raised.
                    failures.append(error.with_traceback(None))
                    if self.is_silence(error):
                        break
                    continue
                if names is not _OWN:
                    self._remember(address, names)
                return connection
        return None

    def for_trials(self) -> Recipe:
        """Return a recipe for try_login, which is called in a thread of its own."""
        return self

    def try_login(self, decision: Decision, table: str | None = None) -> bool | None:
        """Log in by *decision* as the application would, and log out again.

        Returns:
            True if the rows of *table* are replicated there from blue; None if a row of it would stop the replication;
                false without a table.

        Raises:
            OperationalError: The same as in aconnect.
        """
        connection = finish(self.aconnect(decision, self.TRIAL))
        try:
            return self.reaches(connection, table) if table is not None else False
        finally:
            connection.bgpool_discard()

    def reaches(self, connection: Any, table: str) -> bool | None:  # noqa:ARG002  # PostgreSQL queries it
        """Return whether the rows of *table* are replicated to *connection*'s server, a green one; here all are.

        None if a row of it would stop the replication.
        """
        return True

    def warn_of_cache(self, text: str) -> None:
        """Log *text*, which says why the logins depend on the server's cache, once; nothing if it is empty."""
        # In one step: several connections are opened at a time, and another thread may run while a log line is written.
        before, self.cache_warning = self.cache_warning, text
        if text and not before:
            extra = log_fields("login_depends_on_cache", bg_id=self.settings.bg_id, host=self.endpoint.name)
            _logger.warning("[bg_id: %r] user %r: %s", self.settings.bg_id, self.dsn.user, text, extra=extra)

    def _note_password(self, given: object) -> None:
        """Record that a connection comes with a password, and log once that the monitor does not have it."""
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
        """Get ready to connect; make the password callable do so in the background."""
        if self.passwords is not None:
            self.passwords.prepare(self.endpoint.name, self.dsn.port, self.dsn.user)
        self.load()

    def load(self) -> None:  # noqa:B027  # most engines have nothing to load
        """Load shared data of connections from files, unless it is loaded; raises no errors of that."""

    def load_later(self, snapshot: Snapshot | None) -> None:
        """Load it in the background when a switchover begins: a file may have been replaced since the last login."""
        phase = snapshot.phase if snapshot is not None else None
        before, self._phase = self._phase, phase
        # If no phase was known before, the first checkout loads it.
        if self.LOADS and before is not None and phase is not before and phase in _BEGINNING:
            with contextlib.suppress(RuntimeError, MemoryError):  # no thread now: the first connection loads it
                threading.Thread(target=self.load, name="bgpool-load", daemon=True).start()

    async def _addresses(self) -> tuple[str, ...]:
        """Return the addresses of the endpoint's name; one empty address leaves it to the driver."""
        resolver = self.resolver
        if resolver is None:
            return ("",)
        return (await self.waits.call(lambda: resolver.resolve(self.dsn.host)))[:1]

    def _names(self, decision: Decision, address: str) -> list[Names]:
        """Return the names to try at *address*, beginning with those that were right there last."""
        if not self.names_matter:
            return [_OWN]
        last = self.proved.get(address)
        names = names_to_try(decision.names, tokens=self.passwords is not None)
        return sorted(names, key=lambda pair: pair != last)

    async def _place(self, names: Names, address: str, kwargs: Mapping[str, Any]) -> Destination:
        """Return the destination for the driver; without a name the host keeps the one that the application gave."""
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
