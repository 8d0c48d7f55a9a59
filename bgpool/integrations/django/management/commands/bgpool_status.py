"""``manage.py bgpool_status``: the state on this host of the deployments that the settings name."""

from __future__ import annotations

import io
import itertools
import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

from bgpool.cli import status
from bgpool.integrations.django.management.databases import DatabasesCommand

__all__ = ["Command"]


class Command(DatabasesCommand):
    """Like ``bgpool status``, for the bg_ids and run directories of the settings."""

    help = status.SUMMARY

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the common arguments, and --ready."""
        super().add_arguments(parser)
        parser.add_argument("--ready", action="store_true", help="say whether this host may be switched over")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the state; the exit status is that of ``bgpool status``."""
        del args
        cases = self.chosen(options["database"]).values()
        flags = [f"--{name}" for name in ("json", "ready") if options[name]]
        # In the order of the settings, without duplicates.
        deployments = dict.fromkeys((case.settings.bg_id, str(case.run_dir)) for case in cases)
        output = io.StringIO()
        with self.printing(output if options["json"] else None):
            ended = [status.main([f"--bg-id={bg_id}", f"--run-dir={where}", *flags]) for bg_id, where in deployments]
        if options["json"]:
            # One list, like the output of a single ``bgpool status``.
            self.stdout.write(json.dumps(list(itertools.chain(*_values(output.getvalue()))), indent=1))
        if any(ended):
            sys.exit(max(ended))


def _values(text: str) -> Iterator[list[Any]]:
    """Yield the JSON lists in *text*, one after the other."""
    decoder = json.JSONDecoder()
    while text := text.lstrip():
        value, end = decoder.raw_decode(text)
        text = text[end:]
        yield value
