"""Hooks for servers. None is needed; they connect before the first request instead of during it."""

from __future__ import annotations

from bgpool.registry import open_pools

__all__ = ["open_pools"]
