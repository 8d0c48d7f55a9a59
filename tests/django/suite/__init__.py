"""Django's own tests, on bgpool's engines and on Django's."""

from __future__ import annotations

from typing import Final

__all__ = ["DATABASES", "OUTCOMES"]

DATABASES: Final = "SUITE_DATABASES"
"""The environment variable with the setting DATABASES, as JSON."""
OUTCOMES: Final = "SUITE_OUTCOMES"
"""The environment variable that names the file to write the outcomes to."""
