"""The errors that are no driver's. Apart from the others, so that to look at a run directory imports no driver:
the drivers take longer to import than ``bgpool status`` takes to answer."""

from __future__ import annotations

__all__ = ["ConfigurationError", "Error", "SegmentError"]


class Error(Exception):
    """The root of every error of bgpool."""


class ConfigurationError(Error, ValueError):
    """A parameter, a DSN or a file that bgpool was given cannot be used; the text names it and what is allowed."""


class SegmentError(Error):
    """A segment or its directory is not to be trusted: owner, mode, magic, version or checksum is wrong."""
