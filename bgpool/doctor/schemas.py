"""The differences between two databases' relations and enums, as a pure function of their catalogues."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["Column", "Differences", "SchemaObject", "compare", "first_few"]

#: The values of pg_class.relkind, and bgpool's own letter for an enum.
_KINDS: Final = {
    "r": "table",
    "p": "partitioned table",
    "v": "view",
    "m": "materialized view",
    "S": "sequence",
    "f": "foreign table",
    "c": "type",
    "e": "enum",
}
#: The kinds whose rows replication transfers.
_TABLES: Final = frozenset({"r", "p"})
_NAMES_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Column:
    """A column, or a label of an enum, which has no type.

    Attributes:
        required: True if a row without it is refused: NOT NULL, and nothing fills it in.
    """

    name: str
    type: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class SchemaObject:
    """A relation or an enum.

    Attributes:
        kind: One of the keys of `_KINDS`.
        columns: The columns in order; none for a sequence.
    """

    kind: str
    columns: tuple[Column, ...] = ()

    def column(self, name: str) -> Column | None:
        """Return the column of that name."""
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True, slots=True)
class Differences:
    """The differences, each as a short text.

    Attributes:
        missing: Objects of blue that green lacks; and columns that green requires and blue cannot send.
        other: All other differences, which may be intended.
    """

    missing: tuple[str, ...]
    other: tuple[str, ...]


def compare(blue: Mapping[str, SchemaObject], green: Mapping[str, SchemaObject]) -> Differences:
    """Compare the objects of both sides by qualified name."""
    missing, other = [], []
    for name, thing in blue.items():
        kind = _KINDS[thing.kind]
        if (twin := green.get(name)) is None:
            missing.append(f"{kind} {name}")
        elif twin.kind != thing.kind and not {twin.kind, thing.kind} <= _TABLES:
            other.append(f"{name} is a {kind} on blue and a {_KINDS[twin.kind]} on green")
        else:
            missing += _missing(name, thing, twin)
            other += _other(name, thing, twin)
    other += [f"{_KINDS[thing.kind]} {name} on green alone" for name, thing in green.items() if name not in blue]
    return Differences(tuple(missing), tuple(other))


def first_few(names: tuple[str, ...] | list[str]) -> str:
    """Return the first names, and the number of the others."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _missing(name: str, blue: SchemaObject, green: SchemaObject) -> Iterator[str]:
    part = "enum label" if blue.kind == "e" else "column"
    for column in blue.columns:
        if green.column(column.name) is None:
            yield f"{part} {name}.{column.name}"
    if blue.kind in _TABLES:
        for column in green.columns:
            if column.required and blue.column(column.name) is None:
                yield f"a default for column {name}.{column.name}, which is NOT NULL and on green alone"


def _other(name: str, blue: SchemaObject, green: SchemaObject) -> Iterator[str]:
    if blue.kind != green.kind:
        yield f"{name} is a {_KINDS[blue.kind]} on blue and a {_KINDS[green.kind]} on green"
    for column in green.columns:
        twin = blue.column(column.name)
        if twin is None:
            if not (column.required and blue.kind in _TABLES):
                yield f"{'enum label' if blue.kind == 'e' else 'column'} {name}.{column.name} on green alone"
        elif twin.type != column.type:
            yield f"{name}.{column.name} is {twin.type} on blue and {column.type} on green"
