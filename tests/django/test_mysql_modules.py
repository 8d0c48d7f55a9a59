"""PyMySQL in the place of mysqlclient is one driver, with one set of errors."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Without mysqlclient, which would be found where it is installed.
_HEAD = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "MySQLdb":
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import pymysql
from django.conf import settings
settings.configure()
errors = pymysql.err
"""
_OURS = "import bgpool.integrations.django.mysql.base\n"
_DJANGOS = "pymysql.install_as_MySQLdb()\nimport django.db.backends.mysql.base\n"
_POOL = "import bgpool\nbgpool.get_pool('mysql://app@localhost/app')\n"
_SINGLE = """
import MySQLdb.err, MySQLdb.converters, MySQLdb.constants.ER
assert pymysql.err is errors is MySQLdb.err is sys.modules["pymysql.err"], pymysql.err
assert pymysql.converters.__name__ == "pymysql.converters"
assert pymysql.constants.ER is MySQLdb.constants.ER
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(_OURS, id="ours"),
        pytest.param(_DJANGOS + _OURS, id="Django's, then ours", marks=pytest.mark.once),
        pytest.param(_DJANGOS + _POOL, id="Django's, then a pool", marks=pytest.mark.once),
        pytest.param(
            "pymysql.install_as_MySQLdb()\n" + _POOL + _DJANGOS, id="a pool, then Django's", marks=pytest.mark.once
        ),
    ],
)
def test_the_errors_that_are_raised_are_those_that_are_caught(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HEAD + program + _SINGLE], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
