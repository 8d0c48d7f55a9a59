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


class ProgramsError(LabError):
    """The servers' programs are not where they were looked for, or cannot be used.

    Attributes:
        problem: What is wrong, and what would be right.
        variable: The environment variable that names a directory with them.
    """

    def __init__(self, problem: str, variable: str) -> None:
        self.problem: Final = problem
        self.variable: Final = variable
        super().__init__(self.advise('programs="DIRECTORY"'))

    def advise(self, option: str) -> str:
        """The problem, and how to name another directory: *option*, which depends on the caller, or the variable."""
        return f"{self.problem}; name another directory with {option} or ${self.variable}"
