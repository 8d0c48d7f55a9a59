"""GeoDjango's engine for PostGIS, through switchovers."""

from __future__ import annotations

from django.contrib.gis.db.backends.postgis import base

from bgpool.integrations.django.postgres import PostgresWrapper

__all__ = ["DatabaseWrapper"]


class DatabaseWrapper(PostgresWrapper, base.DatabaseWrapper):
    """GeoDjango's DatabaseWrapper on bgpool's connections."""
