"""The site's settings. Its databases come from the environment."""

from __future__ import annotations

import json
import os

DATABASES = json.loads(os.environ["SITE_DATABASES"])
ALLOWED_HOSTS = ["127.0.0.1"]
SECRET_KEY = "of the tests"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
STATIC_URL = "static/"
ROOT_URLCONF = "tests.django.site.urls"
INSTALLED_APPS = ["bgpool.integrations.django", "tests.django.site.shop"]
