"""The settings of Django's tests, in a process of their own; the databases come from the environment."""

from __future__ import annotations

import json
import os

import pymysql

from tests.django.suite import DATABASES as DATABASES_VARIABLE

DATABASES = json.loads(os.environ[DATABASES_VARIABLE])
SECRET_KEY = "django_tests_secret_key"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
TEST_RUNNER = "tests.django.suite.runner.Runner"

if DATABASES["default"]["ENGINE"] == "django.db.backends.mysql":
    # Django's engine on the same driver.
    pymysql.install_as_MySQLdb()
