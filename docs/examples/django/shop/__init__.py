"""An example project. Celery's application is loaded with Django, as Celery's documentation has it."""

from shop.celery import app as celery_app

__all__ = ["celery_app"]
