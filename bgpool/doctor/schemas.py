"""What differs between two databases' relations and enums, as a pure function of what their catalogues list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["Column", "Differences", "SchemaObject", "compare", "first_few"]

#: As pg_class.relkind has them, and our own letter for an enum.
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
#: What replication brings rows of.
_TABLES: Final = frozenset({"r", "p"})
_NAMES_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Column:
    """A column, or a label of an enum, which has no type.

    Attributes:
        required: A row without it is refused: NOT NULL, and nothing that fills it in.
    """

    name: str
    type: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class SchemaObject:
    """A relation or an enum.

    Attributes:
        kind: One of those of `_KINDS`.
        columns: In their order; none of a sequence.
    """

    kind: str
    columns: tuple[Column, ...] = ()

    def column(self, name: str) -> Column | None:
        """The one of that name."""
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True, slots=True)
class Differences:
    """What differs, each in a few words.

    Attributes:
        missing: On green, of what blue has; and columns that green demands and blue cannot send.
        other: All the rest, which may be meant.
    """

    missing: tuple[str, ...]
    other: tuple[str, ...]


def compare(blue: Mapping[str, SchemaObject], green: Mapping[str, SchemaObject]) -> Differences:
    """Compare what is on both sides, by qualified name."""
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
    """The first names, and how many more there are."""
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
