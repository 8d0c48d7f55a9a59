"""Detection of Django's test databases: bgpool takes no part in them, so that a test run starts no monitor."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from django.db import connections

from bgpool.settings import read_flag

if TYPE_CHECKING:
    from django.db.backends.base.creation import BaseDatabaseCreation as _Base
else:
    _Base = object

__all__ = ["IN_TESTS", "MarksTestDatabases", "is_under_test", "rehearses"]

#: The environment variable that makes test databases take part, for a rehearsal in a TransactionTestCase.
IN_TESTS: Final = "BGPOOL_IN_TESTS"
#: The mark of a test database in its settings. Threads share the settings, and test processes receive a copy.
_MARK: Final = "BGPOOL_TEST_DATABASE"
#: The path endings of programs that run management commands. ``__main__.py`` is that of ``python -m django``. An
#: application's own programs may use the word "test" differently.
_MANAGE: Final = ("/manage.py", "/manage", "/django-admin", "/django-admin.py", "/django/__main__.py")
#: The commands that create test databases.
_TESTING: Final = (["test"], ["testserver"])


class MarksTestDatabases(_Base):
    """Mixed in before the class with which a backend creates its test databases."""

    # Not create_test_db(), whose warnings name the file of its caller.
    def _create_test_db(self, *args: Any, **kwargs: Any) -> str:
        """Like Django's, after the connections to the database of the settings are closed."""
        self.connection.settings_dict[_MARK] = True
        _leave(self.connection)
        name: str = super()._create_test_db(*args, **kwargs)  # type: ignore[misc]  # not in the stubs
        return name

    def set_as_test_mirror(self, *args: Any, **kwargs: Any) -> None:
        """Like Django's."""
        self.connection.settings_dict[_MARK] = True
        _leave(self.connection)
        super().set_as_test_mirror(*args, **kwargs)

    def setup_worker_connection(self, *args: Any, **kwargs: Any) -> None:
        """Like Django's, which gives a process of parallel tests a database of its own."""
        _leave(self.connection)
        super().setup_worker_connection(*args, **kwargs)

    def _destroy_test_db(self, test_database_name: str, verbosity: int) -> None:
        """Like Django's, after this process's pools to it, and to its mirrors, are closed: the server would refuse."""
        for alias in connections:
            if connections[alias].settings_dict["NAME"] == test_database_name:
                _leave(connections[alias])
        super()._destroy_test_db(test_database_name, verbosity)  # type: ignore[misc]  # not in the stubs

    def destroy_test_db(self, *args: Any, **kwargs: Any) -> None:
        """Like Django's, which restores the database name in the settings."""
        super().destroy_test_db(*args, **kwargs)
        if kwargs.get("suffix") is None:
            self.connection.settings_dict.pop(_MARK, None)


def _leave(wrapper: Any) -> None:
    """Close the connections of *wrapper*."""
    wrapper.close()
    if hasattr(wrapper, "close_pool"):
        wrapper.close_pool()


def is_under_test(settings_dict: Mapping[str, Any]) -> bool:
    """Return whether the database of *settings_dict* is one of a test run, or this process will create one from it."""
    if settings_dict.get(_MARK):
        return True
    # It exists from setup_test_environment(), before test databases exist, to teardown_test_environment(). mail.outbox
    # is public but unsuitable: an application with the locmem email backend has it in production as well.
    if hasattr(getattr(sys.modules.get("django.test.utils"), "_TestState", None), "saved_data"):
        return True
    # Applications query their database while they are loaded.
    return "pytest_django" in sys.modules or _runs_tests(sys.argv)


def _runs_tests(arguments: list[str]) -> bool:
    """Return whether *arguments* are the command line of a command that creates test databases."""
    return arguments[1:2] in _TESTING and f"/{Path(arguments[0]).as_posix()}".endswith(_MANAGE)


def rehearses() -> bool:
    """Return whether ``$BGPOOL_IN_TESTS`` makes test databases take part.

    Raises:
        ConfigurationError: It is neither a word for yes nor one for no.
    """
    given = os.environ.get(IN_TESTS, "").strip()
    return bool(given) and read_flag(f"${IN_TESTS}", given)
