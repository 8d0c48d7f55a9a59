"""Model instances that a unit of work saves: what a cut call has made of them is undone before the next one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
from django.db import connections

import bgpool
from bgpool.integrations.django import run
from bgpool.integrations.django.instances import NewInstances
from bgpool.lab import Pair
from tests.django.models import parcel_models
from tests.django.test_connections import MakeDatabase
from tests.django.test_units import Work

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("prepared")]


@pytest.fixture
def alias(make_database: MakeDatabase) -> Iterator[str]:
    """A database with the tables."""
    alias = make_database()
    with connections[alias].schema_editor() as editor:
        for model in parcel_models():
            editor.create_model(model)
    yield alias
    with connections[alias].schema_editor() as editor:
        for model in reversed(parcel_models()):
            editor.delete_model(model)


def names(alias: str) -> dict[int, str]:
    return dict(parcel_models()[0].objects.using(alias).values_list("pk", "name"))


def test_a_row_that_has_since_received_its_first_key_is_not_overwritten(
    alias: str, make_database: MakeDatabase, pair: Pair
) -> None:
    """Green assigns keys that blue has already assigned, to transactions that did not commit."""
    parcel = parcel_models()[0](name="mine")
    other = make_database()
    keys: list[int] = []

    def save() -> None:
        parcel.save(using=alias)
        keys.append(parcel.pk)
        if len(keys) == 1:
            pair.blue.cut_clients()
            type(parcel)(pk=parcel.pk, name="theirs").save(using=other, force_insert=True)
            Work(alias).ask()

    run(save, using=alias)
    assert len(keys) == 2
    assert names(alias) == {keys[0]: "theirs", keys[1]: "mine"}
    assert (parcel.pk, parcel._state.adding, parcel._state.db) == (keys[1], False, alias)


def test_those_that_lead_to_it_lead_to_its_new_key(alias: str, pair: Pair) -> None:
    parcel_model, label_model = parcel_models()
    parcel = parcel_model(name="mine")
    parcel._state.db = alias  # as a router's answer
    label = label_model(parcel=parcel)
    keys: list[int] = []

    def save() -> None:
        parcel.save(using=alias)
        label.save(using=alias)
        keys.append(parcel.pk)
        if len(keys) == 1:
            pair.blue.cut_clients()
            Work(alias).ask()

    run(save, using=alias)
    assert keys[0] != keys[1]
    assert list(label_model.objects.using(alias).values_list("parcel", flat=True)) == [keys[1]]
    assert label.parcel is parcel


def test_a_unit_that_was_interrupted_for_good_leaves_it_new(alias: str, pair: Pair) -> None:
    parcel = parcel_models()[0](name="mine")

    def save() -> None:
        parcel.save(using=alias)
        pair.blue.cut_clients()
        Work(alias).ask()

    with pytest.raises(bgpool.SwitchoverInterrupted):
        run(save, using=alias, timeout=0)
    assert (parcel.pk, parcel._state.adding, parcel._state.db) == (None, True, None)


def test_what_has_a_row_and_what_another_error_has_rolled_back_stays_as_django_leaves_it(
    alias: str, pair: Pair
) -> None:
    parcel_model, _ = parcel_models()
    parcel, new = parcel_model.objects.using(alias).create(name="old"), parcel_model(name="new")
    key, calls = parcel.pk, []

    def save() -> None:
        calls.append(parcel.pk)
        parcel.name = f"call {len(calls)}"
        parcel.save(using=alias)
        if len(calls) == 1:
            pair.blue.cut_clients()
            Work(alias).ask()
        new.save(using=alias)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        run(save, using=alias)
    assert (calls, parcel._state.adding) == ([key, key], False)
    assert (new.pk is None, new._state.adding) == (False, False)
    assert names(alias) == {key: "old"}


def test_what_is_noted_is_not_kept_alive() -> None:
    instances, instance = NewInstances(), parcel_models()[0](name="mine")
    instances.note(instance)
    gone = weakref.ref(instance)
    del instance
    gc.collect()
    assert gone() is None
    instances.undo()
