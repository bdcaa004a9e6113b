"""What the backends hand to a report: the rows, and what a projection did; and how they tell what is not finite."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from projgrad.namespace import Array, native
from projgrad.plan import PlanEntry
from projgrad.rules import Parameter

__all__ = ["NONE_YET", "rows_of", "rows_of_handles", "tell_nonfinite", "was_recorded", "what_it_did"]

NONE_YET = -1.0  # which no distance is, and, unlike NaN, nothing that jax_debug_nans stops at

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


def was_recorded(pair: Sequence[Any]) -> bool:
    """Whether two numbers are what a projection did, and not `NONE_YET`; they may be NaN."""
    return not any(number < 0 for number in pair)


def tell_nonfinite(names: Sequence[str], how: str | None) -> None:
    """Say which parameters are NaN or infinite, where there are any.

    Args:
        names: theirs.
        how: "warn" for a RuntimeWarning, of the module that calls this; "raise" for a RuntimeError.
    """
    if not names:
        return
    text = f"NaN or infinite after a step: {', '.join(names)}"
    if how == "raise":
        raise RuntimeError(text)
    warnings.warn(text, RuntimeWarning, stacklevel=2)
