"""System checks of ``DATABASES``. They open no connection. docs/django.md lists their ids and remedies.

Without the application in INSTALLED_APPS, ``manage.py check --tag database --database ALIAS`` runs the checks of one
database.
"""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from django.apps import apps
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from bgpool.errors import ConfigurationError
from bgpool.integrations.django import sources
from bgpool.integrations.drivers import split

if TYPE_CHECKING:
    from django.db.backends.base.validation import BaseDatabaseValidation as _Base

    from bgpool.doctor import Case
    from bgpool.integrations.django.wrapper import SwitchoverWrapper
else:
    _Base = object

__all__ = ["APP", "ChecksSettings", "case_of", "check_deployments", "check_settings", "wrappers"]

APP: Final = "bgpool.integrations.django"

_REFUSED: Final = "bgpool.E001"
_FOREIGN_ENGINE: Final = "bgpool.E002"
_POOL_UNDER_CELERY: Final = "bgpool.W001"
_NO_BG_ID: Final = "bgpool.W002"
_TWO_BG_IDS: Final = "bgpool.W003"
_DOCTORS: Final = "bgpool.W004"


class ChecksSettings(_Base):
    """Mixed in before the class with which a backend checks its settings."""

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        """Return Django's messages, and bgpool's for one of its databases."""
        wrapper: Any = self.connection
        found = list(_of_database(wrapper))
        refused = any(isinstance(message, checks.Error) for message in found)
        # If the settings are refused, there is no connection to query.
        djangos = [] if refused else super().check(**kwargs)
        return djangos if apps.is_installed(APP) else [*djangos, *found]


def check_settings(**_kwargs: object) -> list[checks.CheckMessage]:
    """Return the errors and warnings about DATABASES."""
    found: list[checks.CheckMessage] = []
    for alias in connections:
        if "bg_id" in connections.settings[alias]["OPTIONS"]:
            found += _of_engine(alias)
    for wrapper in _with_engine():
        found += _of_database(wrapper)
    return [*found, *_of_all(wrappers())]


def check_deployments(**_kwargs: object) -> list[checks.CheckMessage]:
    """Return the doctor's findings on the settings, for ``manage.py check --deploy``; one look-up follows an alias."""
    # Every process imports this module with the engine; only a few run the doctor.
    from bgpool.doctor import Result
    from bgpool.doctor.parameter_checks import parameter_checks

    found: list[checks.CheckMessage] = []
    for wrapper in wrappers():
        try:
            case = case_of(wrapper)
        except (ConfigurationError, ImproperlyConfigured):
            continue  # check_settings tells it
        for finding in parameter_checks.run(case, "parameters"):
            if finding.result in (Result.WARNING, Result.FAILED):
                text = f"DATABASES[{wrapper.alias!r}]: {finding.check}: {finding.text}"
                found.append(checks.Warning(text, hint=finding.remedy or None, id=_DOCTORS))
    return found


def wrappers() -> list[SwitchoverWrapper]:
    """Yield the databases whose connections are bgpool's."""
    return [wrapper for wrapper in _with_engine() if sources.is_wanted(wrapper.settings_dict)]


def case_of(wrapper: SwitchoverWrapper, **more: Any) -> Case:
    """Return the doctor's case of a database; for *more* see Case.

    Raises:
        ConfigurationError, ImproperlyConfigured: The settings cannot be used.
    """
    from bgpool.doctor import Case

    with _refused(wrapper.alias):
        params = wrapper.get_connection_params()
    dsn, options = sources.describe(wrapper.bgpool_engine, wrapper.alias, wrapper.settings_dict, params)
    if more.get("max_size") is None and sources.pool_options(wrapper.settings_dict) is not None:
        source = wrapper.bgpool_find(params)
        more["max_size"] = source.connections.max_size if source is not None else None
    return Case(dsn, options=options, of_django=True, **more)


@contextlib.contextmanager
def _refused(alias: str) -> Iterator[None]:
    """Translate errors: Django reads a port, a time zone or a host unchecked; no check or command may end with that.

    Raises:
        ImproperlyConfigured: Any error is raised in the block.
    """
    try:
        yield
    except (ConfigurationError, ImproperlyConfigured):
        raise
    except Exception as error:
        raise ImproperlyConfigured(f"DATABASES[{alias!r}]: these settings cannot be used: {error!r}") from error


def _with_engine() -> list[SwitchoverWrapper]:
    ours: list[Any] = [connections[alias] for alias in connections if _is_ours(alias)]
    return ours


def _is_ours(alias: str) -> bool:
    """Return whether the database has a bgpool engine; Django reports one that cannot be loaded."""
    try:
        return hasattr(connections[alias], "bgpool_engine")
    except (ImproperlyConfigured, ImportError):
        return False


def _of_database(wrapper: SwitchoverWrapper) -> Iterator[checks.CheckMessage]:
    settings_dict, alias = wrapper.settings_dict, wrapper.alias
    own = split(settings_dict["OPTIONS"])[1]
    if not sources.is_wanted(settings_dict):
        if own.keys() - {sources.BG_ID}:
            names = ", ".join(sorted(own.keys() - {sources.BG_ID}))
            yield checks.Warning(
                f"DATABASES[{alias!r}]: OPTIONS has {names} and no bg_id: the engine is Django's own, and its "
                "connections go through no switchover.",
                hint='Add "bg_id" to OPTIONS, or leave the others out.',
                id=_NO_BG_ID,
            )
        return
    try:
        with _refused(alias):
            wrapper.bgpool_look(wrapper.get_connection_params())
    except ImproperlyConfigured as error:
        yield checks.Error(str(error), id=_REFUSED)
        return
    if "celery" in sys.modules and sources.pool_options(settings_dict) is not None:
        yield checks.Warning(
            f'DATABASES[{alias!r}]: OPTIONS has "pool", and Celery\'s prefork workers close it after each task.',
            hint='Leave "pool" out of the settings of Celery\'s workers; CELERY_DB_REUSE_MAX has them keep a '
            "connection for some tasks. Silence this check if the workers do not run under prefork.",
            id=_POOL_UNDER_CELERY,
        )


def _of_all(ours: list[SwitchoverWrapper]) -> Iterator[checks.CheckMessage]:
    """Yield warnings about databases of one host, which belong to one deployment."""
    bg_ids: dict[str, dict[str, str]] = defaultdict(dict)
    for wrapper in ours:
        host = str(wrapper.settings_dict["HOST"] or "").lower()
        bg_ids[host].setdefault(str(wrapper.settings_dict["OPTIONS"][sources.BG_ID]).strip().lower(), wrapper.alias)
    for host, aliases in bg_ids.items():
        if host and len(aliases) > 1:
            told = ", ".join(f"{bg_id!r} in DATABASES[{alias!r}]" for bg_id, alias in aliases.items())
            yield checks.Warning(
                f"Host {host} has several bg_ids: {told}. Each starts a monitor of its own.",
                hint="Give all databases of one Blue/Green Deployment the same bg_id.",
                id=_TWO_BG_IDS,
            )


def _of_engine(alias: str) -> Iterator[checks.CheckMessage]:
    """Yield an error about the engine of a database that has a bg_id."""
    try:
        wrapper: Any = connections[alias]
    except (ImproperlyConfigured, ImportError) as error:
        # PostGIS without GDAL, or a name that does not exist.
        wrong = f"cannot be loaded: {error}"
    else:
        if hasattr(wrapper, "bgpool_engine"):
            return
        wrong = "is not bgpool's."
    yield checks.Error(
        f"DATABASES[{alias!r}]: OPTIONS has bg_id, and ENGINE {connections.settings[alias]['ENGINE']} {wrong}",
        hint="bgpool's engines are bgpool.integrations.django.postgresql, .postgis and .mysql.",
        id=_FOREIGN_ENGINE,
    )
