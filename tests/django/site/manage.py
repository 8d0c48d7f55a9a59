"""Runs Django's commands; ``$SITE_START`` says how parallel test processes are started."""

from __future__ import annotations

import multiprocessing
import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.django.site.settings"
    if "SITE_START" in os.environ:
        multiprocessing.set_start_method(os.environ["SITE_START"])
    execute_from_command_line(sys.argv)
