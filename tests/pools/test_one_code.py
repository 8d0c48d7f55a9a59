"""All decisions for tasks are made by the functions that decide for threads: none of these is duplicated."""

from __future__ import annotations

from typing import Any

import pytest

from bgpool.pools.connector import AsyncConnector, Connector
from bgpool.pools.gate import Gate
from bgpool.pools.generation import Generation
from bgpool.pools.generations import Generations
from bgpool.pools.loop_source import LoopSource
from bgpool.pools.postgres.async_connection import AsyncAware
from bgpool.pools.postgres.async_connector import AsyncPostgresConnector
from bgpool.pools.postgres.async_pool import AsyncPool
from bgpool.pools.postgres.async_recipe import AsyncPostgresRecipe
from bgpool.pools.postgres.blocking_connection import BlockingAware
from bgpool.pools.postgres.connector import PostgresConnector
from bgpool.pools.postgres.pool import PostgresPool
from bgpool.pools.postgres.recipe import PostgresRecipe

#: The own attributes of each class for tasks: they wait, or refer to the loop. All others are inherited by both forms.
OWN: dict[type[Any], set[str]] = {
    LoopSource: {
        "_reset", "_waits_of", "_here", "_generations_by_loop", "_bury_closed", "tick", "_count_connections", "open",
        "close", "start", "stop", "_end",
    },
    AsyncPool: {
        "__aenter__", "__aexit__", "connection", "getconn", "putconn", "run", "close", "KIND", "OPTIONS",
        "_recipe_class", "_unit_class",
    },
    AsyncConnector: {"KIND", "_make_inner", "is_fit"},
    AsyncPostgresConnector: {"OPTIONS", "_recipe_class", "_unit_class"},
    AsyncPostgresRecipe: {"make_inner", "aopen", "for_trials"},
    AsyncAware: {
        "wait", "_exchange", "__aexit__", "bgpool_end_block", "close", "bgpool_discard", "cancel_safe", "_try_cancel",
        "_ask_to_cancel", "_cut", "_interrupted", "_limit", "rollback",
    },
}  # fmt: skip
BOTH = [
    (AsyncPool, PostgresPool),
    (AsyncPostgresConnector, PostgresConnector),
    (AsyncConnector, Connector),
    (AsyncPostgresRecipe, PostgresRecipe),
    (AsyncAware, BlockingAware),
]
#: The attributes of every class.
_PYTHONS = {"__module__", "__doc__", "__annotations__", "__abstractmethods__", "_abc_impl", "__parameters__",
            "__orig_bases__", "__firstlineno__", "__static_attributes__", "__annotate_func__", "__annotate__",
            "__annotations_cache__"}  # fmt: skip


@pytest.mark.parametrize("form", OWN, ids=lambda form: form.__name__)
def test_a_form_for_tasks_defines_only_its_waits(form: type[Any]) -> None:
    assert set(vars(form)) - _PYTHONS == OWN[form]


@pytest.mark.parametrize(("tasks", "threads"), BOTH, ids=lambda form: form.__name__)
def test_all_other_attributes_are_inherited_by_both_forms(tasks: type[Any], threads: type[Any]) -> None:
    assert {each for each in tasks.__mro__ if each not in threads.__mro__} <= set(OWN)


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (
            AsyncPool,
            ("_atake", "_atake_gated", "_as_ours", "_arun", "agetconn", "amake_unit", "apply", "drain", "is_fit"),
        ),
        (AsyncPostgresConnector, ("_atake", "_atake_gated", "aconnect", "apply")),
        (AsyncPostgresRecipe, ("aconnect", "_aconnect", "_names", "is_silence", "like")),
        (
            AsyncAware,
            ("_before_sending", "_note_sending", "_explained", "_judge", "_settle", "closed", "bgpool_pass_on"),
        ),
    ],
)
def test_decisions_are_inherited(form: type[Any], names: tuple[str, ...]) -> None:
    threads = next(other for one, other in BOTH if one is form)
    for name in names:
        assert getattr(form, name) is getattr(threads, name), name


def test_gate_generation_and_generations_have_no_form_for_tasks() -> None:
    for kind in (Gate, Generation, Generations):
        assert [each.__name__ for each in kind.__subclasses__()] == []
    assert AsyncPool._unit_class is PostgresPool._unit_class
