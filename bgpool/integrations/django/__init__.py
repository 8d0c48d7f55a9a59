"""Django through switchovers: ``"ENGINE": "bgpool.integrations.django.postgresql"``, or ``.postgis``, or ``.mysql``.

The engines are Django's own, with connections that bgpool opens. With ``"OPTIONS": {"bg_id": …}`` a request is held at
its next ``cursor()`` outside ``atomic`` while a switchover lasts, and continues with a new connection. A unit of work
that a switchover cuts is called again: see run and transactional.
"""

from __future__ import annotations

__all__ = ["is_interrupted", "run", "transactional"]

try:
    from django import VERSION as _VERSION
except ImportError as error:
    raise ImportError("bgpool.integrations.django needs Django 5.2 or 6: pip install 'bgpool[django]'") from error

if _VERSION < (5, 2):
    raise ImportError(
        f"bgpool.integrations.django needs Django 5.2 or 6, and this is {'.'.join(map(str, _VERSION[:3]))}"
    )

# Imported after the check, because it needs Django.
from bgpool.integrations.django.units import is_interrupted, run, transactional  # see above
