"""Work that psycopg may have committed before a lost connection: every generator is judged, also on a real server."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import bgpool
from bgpool.core.phase import Phase
from bgpool.lab import Pair
from bgpool.pools.pool import Pool
from bgpool.pools.postgres.classify import JUDGED
from bgpool.pools.postgres.text import commits
from bgpool.testing import Deployment

ON_ASYNC_POOL = pytest.mark.full

MakePool = Callable[..., Pool[Any]]

# -- every generator ---------------------------------------------------------------------------------------------


def modules(package: Any) -> Iterator[Any]:
    """Return the modules of *package* that wait; those of asyncio have their own way."""
    for path in Path(package.__path__[0]).rglob("*.py"):
        if "async" not in path.stem and ".wait(" in path.read_text():
            name = path.relative_to(Path(package.__path__[0]).parent).with_suffix("")
            yield importlib.import_module(".".join(name.parts))


def waited_for(module: Any) -> set[str]:
    """Return the qualified names of the generators that *module* passes to a connection's wait()."""
    tree = ast.parse(inspect.getsource(module))
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and "Async" not in node.name]
    found: set[str] = set()
    scopes: list[ast.ClassDef | ast.FunctionDef] = [*classes]
    scopes += [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for scope in scopes:
        for call in (node for node in ast.walk(scope) if isinstance(node, ast.Call)):
            is_wait = isinstance(call.func, ast.Attribute) and call.func.attr == "wait"
            if is_wait and ast.unparse(call.func.value) != "waiting" and call.args:  # type: ignore[attr-defined]  # so
                found |= named(module, scope.name, call.args[0])
    return found


def named(module: Any, scope: str, argument: ast.expr) -> set[str]:
    """Return the qualified names of the generators that *argument*, found in the class *scope*, may be."""
    assert isinstance(argument, ast.Call), f"{module.__name__}: wait({ast.unparse(argument)}) is no call of a generator"
    if isinstance(argument.func, ast.Name):
        return {getattr(module, argument.func.id).__qualname__}
    assert isinstance(argument.func, ast.Attribute)
    name, owner = argument.func.attr, ast.unparse(argument.func.value)
    if owner == "self":
        classes = [getattr(module, scope)]
    else:
        assert owner.endswith("._pipeline"), f"{module.__name__}: what is {owner} in wait({ast.unparse(argument)})?"
        classes = [psycopg.Pipeline]
    return {getattr(each, name).__qualname__ for each in with_subclasses(classes) if hasattr(each, name)}


def with_subclasses(classes: list[type]) -> list[type]:
    return classes + [found for each in classes for found in with_subclasses(each.__subclasses__())]


def test_every_generator_that_psycopg_waits_for_is_judged_and_no_other() -> None:
    found = {name for module in modules(psycopg) for name in waited_for(module)}
    found = {name for name in found if "Async" not in name}
    assert len(found) > 20
    assert found == set(JUDGED)


@pytest.mark.parametrize(
    ("text", "does"),
    [
        ("SELECT 1", False),
        ("INSERT INTO commits VALUES ('end')", False),
        ("SELECT CASE WHEN a THEN b END", False),
        ("PREPARE commit AS SELECT 1", False),
        ("ROLLBACK", False),
        ("rollback;  ", False),
        ("ROLLBACK TO a", False),
        ("commit", True),
        (" END;", True),
        ("SELECT 1;COMMIT", True),
        ("-- no more\rCOMMIT", True),
        ("/* a /* b */ c */ COMMIT", True),
        ("INSERT INTO t VALUES ('/*'); COMMIT", True),
        ("PREPARE TRANSACTION 'x'", True),
        ("PREPARE/**/TRANSACTION 'x'", True),
        ("ROLLBACK; INSERT INTO t VALUES (1)", True),
        ("ABORT;SELECT 1", True),
        (";" + "/**/" * 5000 + "SELECT 1", False),
    ],
)
def test_statements_that_end_a_transaction_are_recognized(text: str, does: bool) -> None:
    assert commits(text) is does


# -- on a server ---------------------------------------------------------------------------------------------------

Use = Callable[[Any, Callable[[], object]], object]

INSERT = "INSERT INTO ledger (worker, thread, n) VALUES (55, 5, 5)"
#: Wide rows, so that the server soon sends some, but never all.
ROWS = "SELECT repeat('x', 9000), pg_sleep(0.001) FROM generate_series(1, 20000)"


def after(statement: str, use: Callable[[Any], object]) -> Use:
    """Call *use* with a connection that has run *statement* and was then cut."""

    def cut_between(conn: Any, cut: Callable[[], object]) -> None:
        conn.execute(statement)
        cut()
        use(conn)

    return cut_between


def cut_before(statement: str) -> Use:
    return lambda conn, cut: (cut(), conn.execute(statement))


def fetch(conn: Any, cut: Callable[[], object]) -> None:
    with conn.cursor("c", withhold=conn.autocommit) as cursor:
        cursor.execute("SELECT generate_series(1, 100000)").fetchmany(10)
        cut()
        cursor.fetchmany(10)


def move(conn: Any, cut: Callable[[], object]) -> None:
    with conn.cursor("c", scrollable=True) as cursor:
        cursor.execute("SELECT generate_series(1, 100000)")
        cut()
        cursor.scroll(10)


def declare(conn: Any) -> Any:
    with conn.cursor("c", withhold=True) as cursor:
        return cursor.execute("SELECT 1")


def copy_out(conn: Any, cut: Callable[[], object], more: str = "") -> None:
    with conn.cursor().copy(f"COPY ({ROWS}) TO STDOUT{more}") as copy:
        copy.read()
        cut()
        for _ in copy:
            pass


def copy_in(conn: Any, cut: Callable[[], object], more: str = "", count: int = 1) -> None:
    with conn.cursor().copy(f"COPY ledger (worker, thread, n) FROM STDIN{more}") as copy:
        cut()
        for _ in range(count):
            copy.write("55\t5\t5\n" * 20_000)


def stream(conn: Any, cut: Callable[[], object], query: str = ROWS) -> None:
    for number, _ in enumerate(conn.cursor().stream(query)):
        if not number:
            cut()


def leave_savepoint(conn: Any, cut: Callable[[], object]) -> None:
    conn.execute("SELECT 1")
    with conn.transaction():
        cut()


def in_block(use: Use, *, before: str = "SELECT 1") -> Use:
    def within(conn: Any, cut: Callable[[], object]) -> None:
        with conn.transaction():
            conn.execute(before)
            use(conn, cut)

    return within


def in_pipeline(*statements: str, begin: str = "", block: bool = False) -> Use:
    def pipelined(conn: Any, cut: Callable[[], object]) -> None:
        if begin:
            conn.execute(begin)
        with conn.pipeline() as pipeline, conn.transaction() if block else contextlib.nullcontext():
            for statement in statements:
                getattr(conn, statement)() if statement.islower() else conn.execute(statement)
            cut()
            pipeline.sync()

    return pipelined


def prepare(conn: Any, cut: Callable[[], object], end: str = "") -> None:
    conn.tpc_begin("bgpool-test")
    conn.execute("SELECT 1")
    if not end:
        cut()
        conn.tpc_prepare()
    conn._tpc = (conn._tpc[0], end != "tpc_rollback")  # the state after tpc_prepare(), which needs a server setting
    cut()
    getattr(conn, end)()


def listen(conn: Any, cut: Callable[[], object]) -> None:
    conn.execute("LISTEN x")
    cut()
    next(conn.notifies())


def then(text: str) -> Callable[[Any], object]:
    return lambda conn: conn.execute(text)


def many(query: str) -> Callable[[Any], object]:
    return lambda conn: conn.cursor().executemany(query, [(), ()])


CERTAIN: dict[str, tuple[bool, Use]] = {
    "statement": (False, after("SELECT 1", then(INSERT))),
    "first statement": (False, cut_before(INSERT)),
    "rollback": (False, after(INSERT, lambda conn: conn.rollback())),
    "fetch": (False, fetch),
    "scroll": (False, move),
    "declare": (False, after("SELECT 1", declare)),
    "copy out": (False, copy_out),
    "copy in": (False, copy_in),
    "copy in, data": (False, lambda conn, cut: copy_in(conn, cut, "; COMMIT", 200)),
    "stream": (False, stream),
    "executemany": (False, after("SELECT 1", many(INSERT))),
    "leaving a savepoint": (False, leave_savepoint),
    "pipeline": (False, in_pipeline(INSERT, "SELECT 1")),
    "pipeline in a transaction": (True, in_pipeline(INSERT, begin="BEGIN")),
    "pipeline with rollback": (False, in_pipeline(INSERT, "rollback")),
    "pipeline that has begun again": (False, in_pipeline(INSERT, "commit", INSERT)),
    "pipeline in a block": (True, in_pipeline(INSERT, block=True)),
    "tpc_rollback of what was not prepared": (False, lambda conn, cut: prepare(conn, cut, "tpc_rollback")),
    "autocommit: notifies": (True, listen),
    "autocommit: fetch": (True, fetch),
    "autocommit: SET": (True, cut_before("SET work_mem = '1MB'")),
    "autocommit: BEGIN by hand": (True, after("BEGIN", then(INSERT))),
    "autocommit, block: copy": (True, in_block(copy_out)),
    "autocommit, block: executemany": (True, in_block(lambda conn, cut: (cut(), many(INSERT)(conn)))),
}

IN_DOUBT: dict[str, tuple[bool, Use, str]] = {
    "commit": (False, after(INSERT, lambda conn: conn.commit()), "during COMMIT"),
    "commit of a block": (True, in_block(lambda _conn, cut: cut()), "during COMMIT"),
    "commit in words": (False, after(INSERT, then("COMMIT")), "during COMMIT"),
    "commit behind a statement": (False, after(INSERT, then("SELECT 1; COMMIT")), "may have committed by itself"),
    "insert behind a rollback": (False, after("SELECT 1", then("ROLLBACK; " + INSERT)), "may have committed by itself"),
    "commit in a stream": (False, after(INSERT, lambda conn: list(conn.cursor().stream("COMMIT"))), "during COMMIT"),
    "commit by executemany": (False, after(INSERT, many("COMMIT")), "pipeline"),
    "commit behind copy out": (False, lambda conn, cut: copy_out(conn, cut, "; COMMIT"), "may have committed"),
    "commit behind copy in": (False, lambda conn, cut: copy_in(conn, cut, "; COMMIT"), "may have committed"),
    "commit in a pipeline, in words": (False, in_pipeline(INSERT, "COMMIT"), "pipeline"),
    "insert behind it": (False, in_pipeline("COMMIT", INSERT), "pipeline"),
    "insert behind a rollback in a pipeline": (False, in_pipeline("ROLLBACK", INSERT, "COMMIT"), "pipeline"),
    "tpc_prepare": (False, prepare, "pg_prepared_xacts"),
    "tpc_commit": (False, lambda conn, cut: prepare(conn, cut, "tpc_commit"), "pg_prepared_xacts"),
    "tpc_commit of another's": (False, lambda conn, cut: (cut(), conn.tpc_commit("x")), "pg_prepared_xacts"),
    "autocommit": (True, cut_before(INSERT), "in autocommit"),
    "autocommit: select": (True, cut_before("SELECT f()"), "in autocommit"),
    "autocommit: stream": (True, stream, "in autocommit"),
    "autocommit: copy out": (True, copy_out, "in autocommit"),
    "autocommit: copy in": (True, copy_in, "in autocommit"),
    "autocommit: declare": (True, lambda conn, cut: (cut(), declare(conn)), "in autocommit"),
    "autocommit: executemany": (True, lambda conn, cut: (cut(), many(INSERT)(conn)), "pipeline"),
    "autocommit: pipeline": (True, in_pipeline(INSERT), "pipeline"),
    "autocommit: ROLLBACK PREPARED": (
        True,
        lambda conn, cut: (cut(), conn.execute("ROLLBACK PREPARED 'x'")),
        "in auto",
    ),
    "autocommit, block that was ended in words": (
        True,
        in_block(cut_before(INSERT), before="COMMIT"),
        "in autocommit",
    ),
}


def cut_in(use: Use, make_pool: MakePool, deployment: Deployment, pair: Pair, autocommit: bool) -> Exception:
    """Return the error of *use* with a connection that the server ends."""
    deployment.phase(Phase.PREPARATION)
    pool = make_pool(max_size=1, kwargs={"autocommit": autocommit})
    with pytest.raises(psycopg.Error) as caught, pool.connection() as conn:
        use(conn, lambda: pair.blue.cut_clients())
    return caught.value


@pytest.mark.lab
@pytest.mark.parametrize("what", CERTAIN)
def test_work_that_cannot_have_committed_is_interrupted(
    what: str, make_pool: MakePool, deployment: Deployment, pair: Pair
) -> None:
    autocommit, use = CERTAIN[what]
    assert type(cut_in(use, make_pool, deployment, pair, autocommit)) is bgpool.SwitchoverInterrupted


@pytest.mark.lab
@pytest.mark.parametrize("what", IN_DOUBT)
def test_work_that_may_have_committed_is_in_doubt(
    what: str, make_pool: MakePool, deployment: Deployment, pair: Pair
) -> None:
    autocommit, use, text = IN_DOUBT[what]
    error = cut_in(use, make_pool, deployment, pair, autocommit)
    assert type(error) is bgpool.CommitOutcomeUnknown
    assert text in str(error)
