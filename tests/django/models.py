"""A model of the table that every pair has."""

from __future__ import annotations

import functools
from typing import Any

from django.db import models


@functools.cache
def entry_model() -> Any:
    """A row of the ledger, which every pair has; made once Django is set up."""

    class Entry(models.Model):
        worker: Any = models.IntegerField()
        thread: Any = models.IntegerField()
        n: Any = models.IntegerField(primary_key=True)

        class Meta:
            app_label = "ledgers"
            db_table = "ledger"
            managed = False

    return Entry
