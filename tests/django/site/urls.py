"""The site's one view."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import path

from tests.django.site.shop.models import Item


def count(request: HttpRequest) -> HttpResponse:
    """Return the number of items."""
    del request
    return HttpResponse(str(Item.objects.count()))


urlpatterns = [path("count", count)]
