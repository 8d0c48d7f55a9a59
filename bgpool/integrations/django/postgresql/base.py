"""Django's engine for PostgreSQL, through switchovers."""

from __future__ import annotations

from django.db.backends.postgresql import base

from bgpool.integrations.django.postgres import PostgresWrapper

__all__ = ["DatabaseWrapper"]


class DatabaseWrapper(PostgresWrapper, base.DatabaseWrapper):
    """Django's DatabaseWrapper on bgpool's connections."""
