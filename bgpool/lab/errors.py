"""Errors of the lab itself, as opposed to errors of the software under test."""

from __future__ import annotations

from typing import Final

import psycopg
import pymysql

DRIVER_ERRORS: Final = (psycopg.Error, pymysql.MySQLError)
"""The base errors of the engines' drivers."""


class LabError(RuntimeError):
    """The lab could not do its work: a program is missing, a wait timed out, a server died.

    The message names the failed step and a remedy.
    """


class LabAbortError(LabError):
    """A wait was ended by ``abort()``; the servers are left as they were at that time."""


class ProgramsError(LabError):
    """The servers' programs are not in the searched places, or cannot be used.

    Attributes:
        problem: A description of the problem and of the requirement.
        variable: The environment variable that names a directory with them.
    """

    def __init__(self, problem: str, variable: str) -> None:
        self.problem: Final = problem
        self.variable: Final = variable
        super().__init__(self.advise('programs="DIRECTORY"'))

    def advise(self, option: str) -> str:
        """Return the problem, and the ways to name another directory: the caller's *option*, or the variable."""
        return f"{self.problem}; name another directory with {option} or ${self.variable}"
