"""What the commands have in common: which databases they are about."""

from __future__ import annotations

import contextlib
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError

from bgpool.integrations.django.checks import wrappers

if TYPE_CHECKING:
    from bgpool.integrations.django.wrapper import SwitchoverWrapper

__all__ = ["DatabasesCommand"]


class DatabasesCommand(BaseCommand):
    """A command about databases whose connections are bgpool's. No check of other settings keeps it from running."""

    requires_system_checks: Any = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """--database, --json."""
        parser.add_argument("--database", metavar="ALIAS", help="of which database; default: of all with a bg_id")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def chosen(self, alias: str | None) -> list[SwitchoverWrapper]:
        """The databases that the command is about, at least one.

        Raises:
            CommandError: There is none.
        """
        ours = wrappers()
        found = [wrapper for wrapper in ours if alias in (None, wrapper.alias)]
        if not found:
            known = ", ".join(repr(wrapper.alias) for wrapper in ours)
            which = f"DATABASES[{alias!r}]" if alias is not None else "DATABASES"
            told = f"; those with one are {known}" if known else '; add OPTIONS["bg_id"] with an engine of bgpool\'s'
            raise CommandError(f"{which} has no connections of bgpool's{told}", returncode=2)
        return found

    @contextlib.contextmanager
    def printing(self) -> Iterator[None]:
        """What is printed within goes to the command's standard output.

        Raises:
            CommandError: A package of the extra ``cli`` is missing.
        """
        try:
            output: Any = self.stdout
            with contextlib.redirect_stdout(output):
                yield
        except ModuleNotFoundError as error:
            if error.name not in ("typer", "rich"):
                raise
            raise CommandError(f"this needs {error.name}: pip install 'bgpool[cli]'", returncode=2) from error
