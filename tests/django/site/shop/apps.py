"""An application that asks its database while it is loaded, as Django advises against and many do."""

from __future__ import annotations

import multiprocessing

from django.apps import AppConfig
from django.db import connection


class ShopConfig(AppConfig):
    """The application of this site."""

    name = "tests.django.site.shop"

    def ready(self) -> None:
        """Ask, but not in a test process, whose database Django has not named yet."""
        if multiprocessing.parent_process() is None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
