"""The cost of a receipt for a unit of work."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import bgpool
from benchmarks.machine import measured_on
from benchmarks.result import Column, Result, Table, Value
from benchmarks.rounds import compare
from bgpool import testing
from bgpool.core.engine import Engine
from bgpool.core.events import Answered, Instant
from bgpool.core.phase import Phase, Role
from bgpool.lab import Pair, ledger
from bgpool.lab.ledger import INSERT_SQL
from bgpool.lab.server_factories import find_servers
from bgpool.pools.mysql import receipts as mysql
from bgpool.pools.postgres import receipts as postgres

__all__ = ["QUESTION", "TITLE", "run"]

TITLE: Final = "Receipts"
QUESTION: Final = (
    "What does a receipt cost a unit of work (one INSERT with `pool.run`), compared with the same unit of a pool "
    "without a receipts table? Both pools talk to one server. Rounds of both alternate, and the figures are medians "
    "over the rounds."
)
TABLE: Final = "bgpool_receipts"

_COLUMNS: Final = (
    Column("servers", "servers", is_key=True),
    Column("what", "what", is_key=True),
    Column("theirs_us", "without, µs", 1),
    Column("bgpool_us", "with, µs", 1),
    Column("excess_us", "excess, µs", 1),
    Column("ratio", "ratio", 2),
)
#: The measurements: the name, the mode of receipts, and the phase of the deployment; None for no deployment.
_WAYS: Final[tuple[tuple[str, str, Phase | None], ...]] = (
    ("no deployment, `switchover`", "switchover", None),
    ("no deployment, `always`", "always", None),
    ("waiting deployment, `switchover`", "switchover", Phase.CREATED),
    ("switchover, `switchover`", "switchover", Phase.PREPARATION),
    ("switchover, an id from the caller", "id", Phase.PREPARATION),
)


def run(*, quick: bool) -> Result:
    """Run one repetition with both engines."""
    rounds, calls = (4, 50) if quick else (40, 300)
    rows: list[Mapping[str, Value]] = []
    for engine in Engine:
        with Pair(engine=engine) as pair:
            ledger.create(pair)
            _create(pair)
            servers = find_servers(engine)
            for what, mode, phase in _WAYS:
                with _units(pair, mode, phase) as (without, receipts):
                    figures = compare(without, receipts, rounds=rounds, calls=calls)
                rows.append({"servers": servers, "what": what, **figures})
    notes = (
        "The lab's servers do not wait for the disk (`fsync=off` and similar settings). On other servers a receipt is "
        "a smaller part of the total.",
        "In a switchover a unit on PostgreSQL without a receipts table notes what identifies its transaction, which "
        "takes the same round trip.",
        measured_on(),
    )
    return Result(
        (
            Table(
                "receipts",
                "A unit of work with a receipt, compared with one without",
                _COLUMNS,
                tuple(rows),
                notes=notes,
            ),
        )
    )


def _create(pair: Pair) -> None:
    module, user = (mysql, "'app'@'%'") if pair.engine is Engine.MYSQL else (postgres, "app")
    for statement in module.DDL.format(table=module.quoted(TABLE), user=user).split(";"):
        if statement.strip():
            pair.blue.execute(statement, database="app")


@contextlib.contextmanager
def _units(pair: Pair, mode: str, phase: Phase | None) -> Iterator[tuple[Callable[[], object], Callable[[], object]]]:
    """Yield one unit of each pool, in a deployment at *phase*."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        run_dir = Path(directory) / "run"
        if phase is not None:
            names = pair.names
            deployment = stack.enter_context(
                testing.deployment(
                    run_dir, blue=names.blue.primary, green=names.green.primary, bg_resolver=pair.resolver
                )
            )
            # A physical replica has blue's receipts, so nothing else is recorded.
            now = Instant(time.monotonic_ns(), time.time_ns())
            deployment.tell(Answered(now, Role.TARGET, read_only=True, replica=True))
            deployment.phase(phase)
        # Without a deployment they are plain pools, because no monitor is needed for an address.
        dsn = pair.dsn if phase is not None else pair.direct_dsn(pair.blue)
        usual: dict[str, Any] = {"bg_run_dir": run_dir, "min_size": 1, "max_size": 1}
        usual |= {"bg_resolver": pair.resolver} if phase is not None else {}
        always = {"bg_receipts": "always"} if mode == "always" else {}
        bare: Any = bgpool.get_pool(dsn, name="without", **usual)
        stack.callback(bare.close)
        ours: Any = bgpool.get_pool(dsn, name="with", bg_receipts_table=TABLE, **always, **usual)
        stack.callback(ours.close)
        keys = iter(range(10**9))
        insert = _insert_postgres if pair.engine is Engine.POSTGRESQL else _insert_mysql

        def without() -> None:
            bare.run(insert)

        def receipts() -> None:
            ours.run(insert)

        def own_id() -> None:
            ours.run(insert, receipt_id=f"{time.time_ns()}-{next(keys)}")

        yield without, own_id if mode == "id" else receipts


def _insert_postgres(conn: Any) -> None:
    conn.execute(INSERT_SQL, (1, 1, 1))


def _insert_mysql(conn: Any) -> None:
    with conn.cursor() as cursor:
        cursor.execute(INSERT_SQL, (1, 1, 1))
