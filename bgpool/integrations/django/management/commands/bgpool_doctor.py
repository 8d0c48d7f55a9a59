"""``manage.py bgpool_doctor``: every prerequisite of a switchover, with the parameters of the settings."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from bgpool.integrations.django.management.databases import DatabasesCommand

__all__ = ["Command"]


class Command(DatabasesCommand):
    """Like ``bgpool doctor`` with the DSN that results from the settings, and with no secret in the process list."""

    help = "Check every prerequisite of a switchover on both sides, and say what to do. Changes nothing."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the common arguments, and those of ``bgpool doctor``."""
        super().add_arguments(parser)
        parser.add_argument("--workers", type=int, metavar="N", help="processes with connections, on all hosts")
        parser.add_argument("--max-size", type=int, metavar="N", help="connections of each of them")
        parser.add_argument(
            "--worker-timeout",
            type=float,
            metavar="SECONDS",
            help="after which the server ends a busy worker; 0: never",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the findings; the exit status is that of ``bgpool doctor``."""
        del args
        more = {
            "processes": options["workers"],
            "max_size": options["max_size"],
            "busy_limit_s": options["worker_timeout"],
        }
        cases = self.chosen(options["database"], **more)
        with self.printing():
            from bgpool.cli.doctor import tell

            ended = []
            for alias, case in cases.items():
                if len(cases) > 1 and not options["json"]:
                    print(f"DATABASES[{alias!r}]")
                ended.append(tell(case, as_json=options["json"]))
        if any(ended):
            sys.exit(max(ended))
