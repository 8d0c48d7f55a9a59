"""The application's configuration."""

from django.apps import AppConfig


class LedgerConfig(AppConfig):
    """The configuration of the application ``ledger``."""

    name = "ledger"
