"""``manage.py dbshell``: Django's, with a password that a callable returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from django.core.management import CommandError

from bgpool.auth import PasswordMaker
from bgpool.errors import PasswordFailed

if TYPE_CHECKING:
    from django.db.backends.base.client import BaseDatabaseClient as _Base
else:
    _Base = object

__all__ = ["AsksForPassword"]

#: The servers' default ports, by the name of the client program.
_PORTS: Final[Mapping[str | None, int]] = {"psql": 5432}
_MYSQL_PORT: Final = 3306
_IN_OPTIONS: Final = ("password", "passwd")


class AsksForPassword(_Base):
    """Mixed in before the class with which a backend starts the database's own shell."""

    @classmethod
    def settings_to_cmd_args_env(
        cls, settings_dict: dict[str, Any], parameters: Iterable[str]
    ) -> tuple[Sequence[str], dict[str, str] | None]:
        """Like Django's, which would use the callable itself as the password.

        Raises:
            CommandError: The callable failed.
        """
        return super().settings_to_cmd_args_env(_with_password(settings_dict, cls.executable_name), parameters)


def _with_password(settings_dict: Mapping[str, Any], program: str | None) -> dict[str, Any]:
    """Return *settings_dict* with the password as text, in the place where Django's engine for *program* reads it."""
    options = dict(settings_dict["OPTIONS"])
    given = [options.pop(name, None) for name in _IN_OPTIONS]
    # If there are two, the same one wins as for the connections of each engine.
    of_settings = settings_dict["PASSWORD"] or None
    order = [of_settings, *given] if program in _PORTS else [*given, of_settings]
    password = next((one for one in order if one is not None), "")
    if callable(password):
        port = settings_dict["PORT"] or options.get("port") or _PORTS.get(program, _MYSQL_PORT)
        # A token is for the endpoint, even if an alias resolves to it.
        host = options.get("endpoint") or settings_dict["HOST"] or options.get("host") or ""
        user = settings_dict["USER"] or options.get("user") or ""
        try:
            password = PasswordMaker(password).make(str(host), int(port), str(user))
        except PasswordFailed as error:
            raise CommandError(str(error)) from error
    return {**settings_dict, "PASSWORD": password, "OPTIONS": options}
