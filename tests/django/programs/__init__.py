"""The example project of docs/examples/django, as the tests start it."""
