"""Settings: DATABASE_URL names the database; its engine and OPTIONS["bg_id"] select bgpool."""

import os

import dj_database_url

# Without these lines dj-database-url would select Django's own engines.
dj_database_url.register("postgres", "bgpool.integrations.django.postgresql")
dj_database_url.register("postgresql", "bgpool.integrations.django.postgresql")
dj_database_url.register("mysql", "bgpool.integrations.django.mysql")

DATABASES = {"default": dj_database_url.config(conn_max_age=int(os.environ.get("CONN_MAX_AGE", "600")))}
DATABASES["default"].setdefault("OPTIONS", {}).setdefault("bg_id", "shop")

SECRET_KEY = os.environ.get("SECRET_KEY", "for the example alone")
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
INSTALLED_APPS = ["bgpool.integrations.django", "ledger"]
MIDDLEWARE = ["ledger.middleware.switchover_as_503"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
ASGI_APPLICATION = "shop.asgi.application"
TIME_ZONE = "UTC"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# bgpool logs its actions in a switchover at INFO.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {"bgpool": {"level": "INFO"}},
}

CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL", "memory://")
