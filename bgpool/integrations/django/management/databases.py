"""The common base of the commands: the choice of databases."""

from __future__ import annotations

import contextlib
import io
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from bgpool.errors import ConfigurationError
from bgpool.integrations.django.checks import case_of, wrappers

if TYPE_CHECKING:
    from bgpool.doctor import Case

__all__ = ["DatabasesCommand"]


class DatabasesCommand(BaseCommand):
    """A command about databases whose connections are bgpool's. No check of other settings keeps it from running."""

    requires_system_checks: Any = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add --database and --json."""
        parser.add_argument("--database", metavar="ALIAS", help="of which database; default: of all with a bg_id")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def chosen(self, alias: str | None, **more: Any) -> dict[str, Case]:
        """Return the doctor's cases of the chosen databases, at least one, by alias; for *more* see Case.

        Raises:
            CommandError: There is none, or its settings cannot be used.
        """
        ours = wrappers()
        found = [wrapper for wrapper in ours if alias in (None, wrapper.alias)]
        if not found:
            known = ", ".join(repr(wrapper.alias) for wrapper in ours)
            which = f"DATABASES[{alias!r}]" if alias is not None else "DATABASES"
            told = f"; those with one are {known}" if known else '; add OPTIONS["bg_id"] with a bgpool engine'
            raise CommandError(f"{which} does not use bgpool{told}", returncode=2)
        try:
            return {wrapper.alias: case_of(wrapper, **more) for wrapper in found}
        except (ConfigurationError, ImproperlyConfigured) as error:
            raise CommandError(str(error), returncode=2) from error

    @contextlib.contextmanager
    def printing(self, output: io.StringIO | None = None) -> Iterator[None]:
        """Redirect what is printed in the block to *output*; without it, to the command's standard output.

        Raises:
            CommandError: A package of the extra ``cli`` is missing.
        """
        stdout: Any = self.stdout
        ending, stdout.ending = stdout.ending, ""  # print() ends its lines itself
        try:
            with contextlib.redirect_stdout(output if output is not None else stdout):
                yield
        except ModuleNotFoundError as error:
            if error.name not in ("typer", "rich"):
                raise
            raise CommandError(f"this needs {error.name}: pip install 'bgpool[cli]'", returncode=2) from error
        finally:
            stdout.ending = ending
