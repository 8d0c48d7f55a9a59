"""A model of the table that every pair has, and two of tables that tests make."""

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


@functools.cache
def parcel_models() -> tuple[Any, Any]:
    """A parcel, whose key the database gives, and a label that is stuck on one."""

    class Parcel(models.Model):
        name: Any = models.CharField(max_length=20)

        class Meta:
            app_label = "ledgers"

    class Label(models.Model):
        parcel: Any = models.OneToOneField(Parcel, models.CASCADE, primary_key=True)

        class Meta:
            app_label = "ledgers"

    return Parcel, Label
