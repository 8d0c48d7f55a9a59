"""The application's configuration."""

from django.apps import AppConfig


class LedgerConfig(AppConfig):
    """The ledger."""

    name = "ledger"
