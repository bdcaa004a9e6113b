"""Several parameters as one array: how `projgrad.Joint` lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

from projgrad.axes import INCOMING, arrange, group_size, numeric_axes, restore
from projgrad.constraint import Constraint
from projgrad.coupled import PairSet
from projgrad.namespace import Array, native

__all__ = ["Layout", "Member", "all_axes", "lay_out"]

Member = tuple[str, tuple[int, ...], tuple[int, ...] | str]  # name, shape, "incoming" axes or why there are none
Parts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Layout:
    """Where the entries of several parameters are in one array, along its last axis one parameter after the other.

    Args:
        shapes: of the parameters.
        parts: for each, which of its axes make up each axis of the one array.
    """

    shapes: tuple[tuple[int, ...], ...]
    parts: tuple[Parts, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the one array."""
        return (*self._sizes(0)[:-1], sum(self._sizes(i)[-1] for i in range(len(self.shapes))))

    def gather(self, arrays: Sequence[Any]) -> Array:
        """The parameters, arrays or variables, as one array."""
        found = [native(array) for array in arrays]
        xp = found[0][1]
        return xp.concat([arrange(x, parts, xp) for (x, _), parts in zip(found, self.parts, strict=True)], axis=-1)

    def scatter(self, joint: Array) -> list[Array]:
        """The parameters of which `gather` made the one array."""
        xp = native(joint)[1]
        ends = list(accumulate(self._sizes(i)[-1] for i in range(len(self.shapes))))
        skip = (slice(None),) * (len(self.parts[0]) - 1)
        pieces = [joint[(*skip, slice(a, b))] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        return [restore(y, parts, shape, xp) for y, parts, shape in zip(pieces, self.parts, self.shapes, strict=True)]

    def _sizes(self, i: int) -> tuple[int, ...]:
        return tuple(group_size(self.shapes[i], axes) for axes in self.parts[i])


def lay_out(constraint: Constraint, members: Sequence[Member]) -> tuple[Constraint, Layout]:
    """One array of several parameters, and the constraint for it.

    Raises:
        ValueError: the parameters have no axes such as the constraint asks for, their units do not agree in number, or
            the constraint does not fit.
    """
    shapes = tuple(shape for _, shape, _ in members)
    axes = all_axes(constraint) - {()}
    if axes <= {None}:
        layout = Layout(shapes, tuple((tuple(range(len(shape))),) for shape in shapes))
        return constraint.bind(layout.shape, "several parameters are one vector"), layout
    axis = axes.pop()
    if axes:
        raise ValueError("over several parameters, all of its sets must have the same axis")
    if axis != INCOMING:
        if isinstance(constraint, PairSet) or "axis" not in {f.name for f in fields(constraint)}:  # type: ignore[arg-type]
            raise ValueError('over several parameters, it must have axis="incoming" or None')
        constraint = replace(constraint, axis=INCOMING)  # type: ignore[type-var]
    layout = Layout(shapes, tuple(_units_and_entries(axis, *member) for member in members))
    if not any(entries for _, entries in layout.parts):
        raise ValueError("none of the parameters has more than one entry per unit: axis=None takes all as one vector")
    counts = {name: group_size(shape, p[0]) for (name, shape, _), p in zip(members, layout.parts, strict=True)}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name} has {n}" for name, n in counts.items())
        raise ValueError(f"the parameters differ in their number of units ({shown}); axis=None takes all as one vector")
    return constraint.bind(layout.shape, (1,)), layout


def _units_and_entries(axis: Any, name: str, shape: tuple[int, ...], incoming: tuple[int, ...] | str) -> Parts:
    if len(shape) == 1 and (axis != INCOMING or isinstance(incoming, str)):
        return (0,), ()
    given = incoming if axis == INCOMING else axis
    if isinstance(given, str):
        raise ValueError(f"{name}: {given}")
    entries = numeric_axes(given, len(shape))
    return tuple(d for d in range(len(shape)) if d not in entries), entries


def all_axes(value: Any) -> set[Any]:
    """The axes of a constraint, or of those that it is made of."""
    if isinstance(value, Constraint):
        return all_axes(tuple(vars(value).values())) or {value.axis}
    return {axis for part in value for axis in all_axes(part)} if isinstance(value, tuple) else set()
