"""The table, and a row that is there from the beginning."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import migrations, models


def add_first(apps: Any, schema_editor: Any) -> None:
    """Add the row."""
    apps.get_model("shop", "Item").objects.using(schema_editor.connection.alias).create(name="first")


class Migration(migrations.Migration):
    """The first migration; see the module."""

    initial = True
    operations: ClassVar[list[Any]] = [
        migrations.CreateModel(
            name="Item",
            fields=[("id", models.BigAutoField(primary_key=True)), ("name", models.CharField(max_length=50))],
        ),
        migrations.RunPython(add_first),
    ]
