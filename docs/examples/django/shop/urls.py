"""The URLs of the example."""

from django.urls import path
from ledger import views

urlpatterns = [
    path("", views.count),
    path("plain/", views.plain),
    path("unit/", views.unit),
    path("async/", views.in_async),
]
