"""Django's engine for MySQL and MariaDB, on PyMySQL, through switchovers."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pymysql
from django.db import IntegrityError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.mysql import base
from django.db.backends.utils import typecast_time
from django.db.utils import DatabaseErrorWrapper
from django.utils.functional import cached_property
from pymysql.constants import CLIENT, CR, FIELD_TYPE
from pymysql.converters import conversions

from bgpool.core.engine import Engine
from bgpool.integrations.django.wrapper import SwitchoverWrapper

if TYPE_CHECKING:
    _Base = base.DatabaseWrapper
else:
    _Base = object

__all__ = ["DatabaseWrapper", "MysqlWrapper"]

#: The arguments of PyMySQL's error for a closed connection.
_LOST: Final = (0, "")
_DATES: Final = (FIELD_TYPE.DATE, FIELD_TYPE.DATETIME, FIELD_TYPE.TIMESTAMP)


def _date_or_none(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap *convert*, PyMySQL's converter of a date type, which returns invalid dates such as 0000-00-00 as text.

    mysqlclient returns None for them, and Django's fields expect a date or None.
    """

    def typecast(value: Any) -> Any:
        made = convert(value)
        return made if isinstance(made, datetime.date) else None

    return typecast


#: Like Django's, with PyMySQL's: to Django, columns of type TIME are times, not time differences.
_CONVERSIONS: Final[dict[Any, Any]] = {
    **conversions,
    **{number: _date_or_none(conversions[number]) for number in _DATES},
    FIELD_TYPE.TIME: typecast_time,
}


class CursorWrapper(base.CursorWrapper):
    """Like Django's, with the errors of PyMySQL."""

    def execute(self, query: Any, args: Any = None) -> Any:
        """Like Django's."""
        return self._as_django(self.cursor.execute, query, args)

    def executemany(self, query: Any, args: Iterable[Any]) -> Any:
        """Like Django's."""
        return self._as_django(self.cursor.executemany, query, args)

    def _as_django(self, call: Callable[..., Any], query: Any, args: Any) -> Any:
        try:
            return call(query, args)
        except pymysql.OperationalError as error:
            # Like in Django, these are integrity errors.
            if error.args and error.args[0] in self.codes_for_integrityerror:
                raise IntegrityError(*error.args) from error
            raise


class _ErrorWrapper(DatabaseErrorWrapper):
    """Like Django's; a statement on a lost connection raises an OperationalError, as with mysqlclient.

    PyMySQL's InterfaceError is not a DatabaseError to Django: ``atomic`` would neither roll back nor close.
    """

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Like Django's."""
        if kind is None:
            # The common case first: Django uses it around every operation of a cursor.
            return
        if kind is pymysql.InterfaceError and error.args == _LOST:
            self.wrapper.errors_occurred = True  # type: ignore[attr-defined]  # not in the stubs
            lost = OperationalError(CR.CR_SERVER_GONE_ERROR, "MySQL server has gone away")
            raise lost.with_traceback(traceback) from error
        super().__exit__(kind, error, traceback)


class MysqlWrapper(SwitchoverWrapper, _Base):
    """Mixed in before a DatabaseWrapper for MySQL.

    PyMySQL does here all that Django does through the module that it has imported as the driver.
    """

    bgpool_engine: ClassVar[Engine] = Engine.MYSQL
    Database = pymysql

    @cached_property
    def wrap_database_errors(self) -> DatabaseErrorWrapper:
        """Like Django's, with the errors of PyMySQL."""
        return _ErrorWrapper(self)

    def get_connection_params(self) -> dict[str, Any]:
        """Like Django's, in PyMySQL's terms."""
        params = super().get_connection_params()
        params.pop("pool", None)
        if "conv" not in self.settings_dict["OPTIONS"]:
            params["conv"] = _CONVERSIONS
        # Django's own flag is lost if the settings have one: save() counts rows that were found, changed or not.
        params["client_flag"] = _with_found_rows(params["client_flag"])
        # Otherwise PyMySQL would turn it off when it connects, and Django on again.
        params.setdefault("autocommit", True)
        return params

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Return a connection of bgpool, or of PyMySQL if the settings do not enable bgpool."""
        source = self.bgpool_find(conn_params)
        if source is None:
            return pymysql.connect(**conn_params)
        connections: Any = source.connections
        connection = connections.connect(**source.others(conn_params)) if source.pool is None else source.pool.getconn()
        self.bgpool_note(source, connection)
        return connection

    def init_connection_state(self) -> None:
        """Like Django's, but one by one: the server accepts several statements at once only if that was enabled."""
        BaseDatabaseWrapper.init_connection_state(self)
        if self.pool:
            return
        for statement in self._assignments(auto_is_null=self.features.is_sql_auto_is_null_enabled):
            with self.cursor() as cursor:
                cursor.execute(statement)

    def _assignments(self, *, auto_is_null: bool) -> Iterator[str]:
        """Return the assignments for a session; *auto_is_null* if that is or may be on."""
        if auto_is_null:
            yield "SET SQL_AUTO_IS_NULL = 0"
        if self.isolation_level:
            yield f"SET SESSION TRANSACTION ISOLATION LEVEL {self.isolation_level.upper()}"

    def _bgpool_configured_by(self) -> object:
        return self.isolation_level

    def bgpool_configure_connection(self, connection: Any) -> None:
        """See SwitchoverWrapper."""
        self.get_connection_params()  # reads the isolation level
        with connection.cursor() as cursor:
            # Django queries whether it is on with a connection of the wrapper, which would wait for this one.
            for statement in self._assignments(auto_is_null=True):
                cursor.execute(statement)

    def create_cursor(self, name: str | None = None) -> Any:
        """Like Django's, or like that of the backend that the mixin precedes."""
        cursor: Any = super().create_cursor(name)
        return CursorWrapper(cursor.cursor) if type(cursor) is base.CursorWrapper else cursor

    def _rollback(self) -> None:
        BaseDatabaseWrapper._rollback(self)  # type: ignore[attr-defined]  # not in the stubs

    def is_usable(self) -> bool:
        """Like Django's; PyMySQL must not reconnect by itself."""
        if not self.bgpool_may_be_asked():
            return False
        try:
            self.connection.ping(reconnect=False)
        except pymysql.Error:
            return False
        return True


def _with_found_rows(flags: Any) -> Any:
    """Return *flags*, a number or its text, with FOUND_ROWS. Other values are refused when a connection is opened."""
    text = str(flags)
    return int(text) | CLIENT.FOUND_ROWS if text.isdecimal() else flags


class DatabaseWrapper(MysqlWrapper, base.DatabaseWrapper):
    """Django's DatabaseWrapper on bgpool's connections."""
