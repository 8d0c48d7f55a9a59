"""``"ENGINE": "bgpool.integrations.django.postgis"``."""
