"""``"ENGINE": "bgpool.integrations.django.postgresql"``."""
