"""The errors that are not subclasses of a driver's errors.

They have their own module so that reading a run directory imports no driver: that takes longer than ``bgpool status``.
"""

from __future__ import annotations

__all__ = ["ConfigurationError", "Error", "SegmentError"]


class Error(Exception):
    """The base class of all errors of bgpool."""


class ConfigurationError(Error, ValueError):
    """A parameter, a DSN or a file is invalid. The text names it and what is allowed."""


class SegmentError(Error):
    """A segment or its directory cannot be trusted: its owner, mode, magic, version or checksum is wrong."""
