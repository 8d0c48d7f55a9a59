"""Model instances that are new in a unit of work: they are new again for each call of its function.

An instance from outside the function keeps the primary key that a cut call assigned. The promoted server has never seen
that call and assigns the same key to another row, which ``save()`` would overwrite.
"""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass
from typing import Any, Final

from django.db import connections
from django.db.models import Model
from django.db.models.expressions import DatabaseDefault
from django.db.models.signals import pre_save

__all__ = ["NewInstances", "watch_saves"]


@dataclass(frozen=True)
class _Noted:
    """An instance as it was before it was saved.

    Attributes:
        instance: A weak reference: a caller that has dropped it does not save it again.
        is_new: True if it had no row.
        given: If it is new, the values that the database assigns, by attribute name.
        db: The database from which it was loaded.
    """

    instance: weakref.ref[Model]
    is_new: bool
    given: dict[str, Any]
    db: str | None


class NewInstances:
    """The instances that the last call of a unit's function has saved, unless that is committed."""

    def __init__(self) -> None:
        """Create an empty collection."""
        self._noted: Final[dict[int, _Noted]] = {}

    def note(self, instance: Any) -> None:
        """Note that *instance* is saved next."""
        key, noted, state = id(instance), self._noted, instance._state
        if key not in noted:
            given = _given(instance) if state.adding else {}
            of_it = weakref.ref(instance, lambda _: noted.pop(key, None))
            noted[key] = _Noted(of_it, state.adding, given, state.db)

    def undo(self) -> None:
        """Make new instances new again, and have the other instances look up the keys of those."""
        # The references die with their instances, perhaps while this runs.
        noted = {key: (each, each.instance()) for key, each in self._noted.copy().items()}
        self._noted.clear()
        for each, instance in noted.values():
            if instance is not None and each.is_new:
                vars(instance).update(each.given)
                instance._state.adding, instance._state.db = True, each.db
        for _, instance in noted.values():
            if instance is None:
                continue
            related: list[Any] = [field for field in instance._meta.concrete_fields if field.is_relation]
            for field in related:
                other = field.get_cached_value(instance, default=None)
                if id(other) in noted and vars(other).get(field.target_field.attname) is None:
                    # save() fills in the key of the related instance, which stays assigned.
                    vars(instance)[field.attname] = None


def _given(instance: Any) -> dict[str, Any]:
    meta, values = instance._meta, vars(instance)
    keys = {
        field.attname for model in (meta, *(parent._meta for parent in meta.all_parents)) for field in model.pk_fields
    }
    return {name: value for name, value in values.items() if name in keys or isinstance(value, DatabaseDefault)}


@functools.cache
def watch_saves() -> None:
    """Notify the listeners of Django's wrappers of instances that are saved; installed by the first unit."""
    pre_save.connect(_tell, dispatch_uid=__name__)


def _tell(instance: Any, using: str, raw: bool, **_: object) -> None:
    listener = getattr(connections[using], "bgpool_listener", None)
    if listener is not None and not raw:
        listener.before_save(instance)
