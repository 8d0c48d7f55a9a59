"""An example project. It loads Celery's application with Django, as Celery's documentation recommends."""

from shop.celery import app as celery_app

__all__ = ["celery_app"]
