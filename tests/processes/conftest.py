"""What tests of whole processes share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import waiting

WaitUntil = Callable[..., None]


@pytest.fixture
def wait_until() -> WaitUntil:
    """Waits for a condition, with an end."""
    return waiting.wait_until
