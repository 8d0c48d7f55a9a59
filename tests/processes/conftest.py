"""Fixtures shared by tests of whole processes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import waiting

WaitUntil = Callable[..., None]


@pytest.fixture
def wait_until() -> WaitUntil:
    """Return a function that waits for a condition, with a time limit."""
    return waiting.wait_until
