"""What the backends hand to a report: the rows, and what a projection did."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from projgrad.namespace import Array, native
from projgrad.plan import PlanEntry
from projgrad.rules import Parameter

__all__ = ["rows_of", "rows_of_handles", "what_it_did"]

Key = TypeVar("Key", bound=Hashable)


def rows_of(
    held: Iterable[tuple[PlanEntry, Sequence[Key]]], parameters: Iterable[tuple[Key, str]]
) -> Iterator[tuple[PlanEntry | str, Sequence[Key]]]:
    """What a row is about, in the order of the parameters: an entry of a plan, or the name of what is free.

    Args:
        held: the entries, each with the keys of its parameters.
        parameters: all of them, as keys and names.

    Yields:
        It, with the keys of its parameters.
    """
    entries = {key: (entry, keys) for entry, keys in held for key in keys}
    for key, name in parameters:
        entry, keys = entries.get(key, (name, [key]))
        if key == keys[0]:
            yield entry, keys


def rows_of_handles(
    plan: Iterable[PlanEntry], parameters: Iterable[Parameter]
) -> Iterator[tuple[PlanEntry | str, list[Any]]]:
    """`rows_of` parameters whose handles are the arrays, which come in the place of keys."""
    handles = {id(parameter.handle): parameter for parameter in parameters}
    held = ((entry, [id(handle) for handle in entry.handles]) for entry in plan)
    for row, keys in rows_of(held, ((key, parameter.name) for key, parameter in handles.items())):
        yield row, [handles[key].handle for key in keys]


def what_it_did(entry: PlanEntry, before: Sequence[Any], after: Sequence[Any], step: Any = None) -> tuple[Array, Array]:
    """The largest violation before a projection, and how far that moved the parameters, as arrays without dimensions.

    Args:
        entry: of the plan.
        before: its parameters before the projection, and `after` it.
        step: the number of steps made, for schedules.
    """
    x, xp = native(entry.gather(before))
    y, _ = native(entry.gather(after))
    away, change = entry.constraint.violation(x, step=step), xp.upcast(y) - xp.upcast(x)
    if 0 in tuple(x.shape):
        return (xp.sum(away),) * 2
    return xp.max(away), xp.reshape(xp.times(*xp.norm(change, tuple(range(len(x.shape))))), ())
