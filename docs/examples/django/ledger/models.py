"""The one model."""

from django.db import models


class Entry(models.Model):
    """A row, and what its client knows of it: who wrote it, and that writer's running number."""

    seq = models.BigAutoField(primary_key=True)
    worker = models.IntegerField()
    thread = models.IntegerField()
    n = models.IntegerField()

    class Meta:
        """Its table."""

        db_table = "ledger"
