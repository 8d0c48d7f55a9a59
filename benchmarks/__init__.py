"""Benchmarks of bgpool and of other clients: ``python -m benchmarks``."""
