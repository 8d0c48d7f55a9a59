"""``manage.py bgpool_status``: what this host knows of the deployments that the settings name."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from bgpool.cli import status
from bgpool.errors import ConfigurationError
from bgpool.integrations.django.checks import case_of
from bgpool.integrations.django.management.databases import DatabasesCommand

__all__ = ["Command"]


class Command(DatabasesCommand):
    """As ``bgpool status``, for the bg_ids and run directories of the settings."""

    help = status.SUMMARY

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Those of all, and --ready."""
        super().add_arguments(parser)
        parser.add_argument("--ready", action="store_true", help="say whether this host may be switched over")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print it; the exit status is that of ``bgpool status``."""
        del args
        try:
            cases = [case_of(wrapper) for wrapper in self.chosen(options["database"])]
        except ConfigurationError as error:
            raise CommandError(str(error), returncode=2) from error
        flags = [f"--{name}" for name in ("json", "ready") if options[name]]
        # In the order of the settings, and each once.
        deployments = dict.fromkeys((case.settings.bg_id, str(case.run_dir)) for case in cases)
        with self.printing():
            ended = [status.main([f"--bg-id={bg_id}", f"--run-dir={where}", *flags]) for bg_id, where in deployments]
        if any(ended):
            sys.exit(max(ended))
