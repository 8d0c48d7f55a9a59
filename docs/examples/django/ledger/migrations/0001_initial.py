"""Create the table."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """The first migration."""

    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Entry",
            fields=[
                ("seq", models.BigAutoField(primary_key=True, serialize=False)),
                ("worker", models.IntegerField()),
                ("thread", models.IntegerField()),
                ("n", models.IntegerField()),
            ],
            options={"db_table": "ledger"},
        ),
    )
