"""The only model."""

from django.db import models


class Entry(models.Model):
    """A row: the client's worker and thread that wrote it, and the running number of that thread."""

    seq = models.BigAutoField(primary_key=True)
    worker = models.IntegerField()
    thread = models.IntegerField()
    n = models.IntegerField()

    class Meta:
        """The name of the table."""

        db_table = "ledger"
