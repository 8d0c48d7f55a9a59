"""What can go wrong in the lab itself, as opposed to in what it tests."""

from __future__ import annotations

from typing import Final

import psycopg
import pymysql

DRIVER_ERRORS: Final = (psycopg.Error, pymysql.MySQLError)
"""What the engines' drivers raise."""


class LabError(RuntimeError):
    """The lab could not do what it was asked: a program missing, a wait that ran out, a server that died.

    The message names what was being done and what would help.
    """


class LabAbortError(LabError):
    """A wait was ended by ``abort()``; the servers are left as they were at that moment."""
