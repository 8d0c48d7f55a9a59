"""PyMySQL under the name of mysqlclient."""

from __future__ import annotations

import subprocess
import sys

import pytest

INSTALLED_BY_US = ""
INSTALLED_BY_THE_APPLICATION = "import pymysql; pymysql.install_as_MySQLdb();"
#: As Django's engine imports it.
DJANGO = "import MySQLdb; from MySQLdb.constants import CLIENT; from MySQLdb.converters import conversions;"


@pytest.mark.parametrize("before", [INSTALLED_BY_US, INSTALLED_BY_THE_APPLICATION])
def test_its_modules_are_loaded_once(before: str) -> None:
    """Or pymysql.err would be another module than that of the errors that PyMySQL raises."""
    code = (
        f"{before}import bgpool.integrations.django.mysql; {DJANGO} import pymysql;"
        "assert pymysql.err.Error is pymysql.Error, pymysql.err; assert conversions is pymysql.converters.conversions"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_bgpool_knows_pymysqls_errors_where_others_load_them_twice() -> None:
    code = (
        f"{INSTALLED_BY_THE_APPLICATION} {DJANGO}"
        "from bgpool.mysql import code_of; assert code_of(pymysql.OperationalError(1053, '')) == 1053;"
        "import bgpool; assert issubclass(bgpool.SwitchoverError, pymysql.OperationalError)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
