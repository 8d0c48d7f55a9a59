"""The Django application: management commands, and checks of the settings by every ``manage.py check``."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks

from bgpool.integrations.django.checks import check_deployments, check_settings

__all__ = ["BgpoolConfig"]


class BgpoolConfig(AppConfig):
    """``bgpool.integrations.django`` in INSTALLED_APPS."""

    name = "bgpool.integrations.django"
    label = "bgpool"
    verbose_name = "bgpool"

    def ready(self) -> None:
        """Register the checks."""
        checks.register(check_settings)
        checks.register(check_deployments, deploy=True)
