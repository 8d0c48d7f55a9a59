"""What docs/units-of-work.md tells people to write works."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import bgpool
from bgpool.lab import Pair
from bgpool.pools.postgres.pool import PostgresPool

pytestmark = pytest.mark.lab


@pytest.mark.usefixtures("deployment")
def test_units_of_work(make_pool: Callable[..., PostgresPool], pair: Pair) -> None:
    text = (Path(__file__).parents[2] / "docs" / "units-of-work.md").read_text(encoding="utf-8")
    first, second = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    pool = make_pool()
    names = {"pool": pool, "bgpool": bgpool}
    with pool.connection() as conn:
        conn.execute("CREATE TABLE orders (item text)")
    try:
        exec(first, names)
        assert names["total"] == 1
        exec(second, names)
    finally:
        pair.blue.execute("DROP TABLE orders", database="app")
