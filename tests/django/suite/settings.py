"""The settings of Django's tests, in a process of their own; the databases come from the environment."""

from __future__ import annotations

import importlib
import json
import os

import pymysql

from tests.django.suite import DATABASES as DATABASES_VARIABLE

# Django's own settings for its tests, in the directory of runtests.py.
_own = importlib.import_module("test_sqlite")
globals().update({name: value for name, value in vars(_own).items() if name.isupper()})
DATABASES = json.loads(os.environ[DATABASES_VARIABLE])
TEST_RUNNER = "tests.django.suite.runner.Runner"

if DATABASES["default"]["ENGINE"] == "django.db.backends.mysql":
    # Django's engine on the same driver.
    pymysql.install_as_MySQLdb()
