"""Different sets for slices of one parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

from projgrad.axes import group_size, numeric_axes
from projgrad.constraint import Constraint
from projgrad.function import as_constraint
from projgrad.moves import Move, Piecewise, cut
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.schedule import Schedule

__all__ = ["Slices"]

Range = tuple[int | None, int | None]


@register()
@dataclass(frozen=True, repr=False)
class Slices(Constraint):
    """Each slice of an array along one axis in a set of its own: gates, heads, q, k and v, rows of an embedding.

    The axes of a part are those of the array, and "incoming" is what it is for the whole array. `violation` gives the
    largest distance of each part that is constrained, in order.

    Args:
        parts: a mapping of ranges ``(start, stop)`` to constraints, with None for an open end and as the constraint of
            what is left free; or a sequence of constraints, or None, for as many blocks of equal length. What is in no
            range is left free, and comes back bit for bit.
        along: the axis that is cut.

    Raises:
        TypeError: `parts` or `along` is not of that form.
        ValueError: a range is empty or negative, two overlap, or nothing is constrained; later, the array is shorter or
            not made of equal blocks.

    Examples:
        >>> pg.Slices([pg.UnitNorm(), pg.UnitNorm(), None])  # q and k of an in_proj_weight, but not v
        >>> pg.Slices({(0, 1): pg.Box(0, 0), (1, None): pg.MaxNorm(1.0)})  # the padding row of an embedding is 0
    """

    parts: Any
    along: int = 0
    axis = None

    def __post_init__(self) -> None:
        if isinstance(self.along, bool) or not hasattr(self.along, "__index__"):
            raise TypeError(f"Slices: along={self.along!r} is not an int")
        object.__setattr__(self, "along", self.along.__index__())
        given = tuple(self.parts.items()) if isinstance(self.parts, Mapping) else self.parts
        if not isinstance(given, tuple | list):
            raise TypeError(
                f"Slices: {given!r} is neither a mapping of ranges to constraints nor a list of constraints"
            )
        parts = tuple(_checked(part) for part in given)
        ranges = [ends for ends, _ in parts if ends is not None]
        if ranges and len(ranges) < len(parts):
            raise TypeError("Slices: give either ranges with constraints or a list of constraints, not both")
        if ranges:
            parts = tuple(sorted(parts, key=lambda part: part[0][0] or 0))
            for (first, _), (second, _) in pairwise(parts):
                if first[1] is None or first[1] > (second[0] or 0):
                    raise ValueError(f"Slices: the ranges {first} and {second} overlap")
        if not any(part for _, part in parts):
            raise ValueError("Slices: nothing is constrained")
        object.__setattr__(self, "parts", parts)
        super().__post_init__()

    def ranges(self, shape: tuple[int, ...]) -> Iterator[tuple[int, int, Constraint | None]]:
        """Start, stop and constraint of every part of an array of this shape, the free ones included.

        Raises:
            ValueError: the array has no such axis, is shorter, or is not made of equal blocks.
        """
        (along,) = numeric_axes(self.along, len(shape))
        n, count, end = group_size(shape, (along,)), len(self.parts), 0
        if self.parts[0][0] is None:
            if n % count:
                raise ValueError(f"axis {self.along} of length {n} is not made of {count} equal blocks")
            yield from ((i * n // count, (i + 1) * n // count, part) for i, (_, part) in enumerate(self.parts))
            return
        for (start, stop), part in self.parts:
            start, stop = start or 0, n if stop is None else stop
            if not start < stop <= n:
                raise ValueError(f"axis {self.along} has the length {n}, so there is no range ({start}, {stop})")
            if end < start:
                yield end, start, None
            yield start, stop, part
            end = stop
        if end < n:
            yield end, n, None

    def check_shape(self, shape: tuple[int, ...]) -> None:
        for start, stop, part in self.ranges(shape):
            if part is not None:
                part.check_shape(self._of_slice(shape, start, stop))

    def check_dtype(self, dtype: Any) -> None:
        for _, constraint in self.parts:
            if constraint is not None:
                constraint.check_dtype(dtype)

    def bind(self, shape: tuple[int, ...], incoming: tuple[int, ...] | str) -> Self:
        parts = {
            (start, stop): None if part is None else part.bind(self._of_slice(shape, start, stop), incoming)
            for start, stop, part in self.ranges(shape)
        }
        return replace(self, parts=parts, along=self.along % len(shape))

    @property
    def in_metric(self) -> bool:
        parts = (part[1] if isinstance(part, tuple) else part for part in self.parts)
        return all(part is None or part.in_metric for part in parts)

    def relaxed(self, rate: float | Schedule) -> Self:
        return replace(self, parts=tuple((ends, part and part.relaxed(rate)) for ends, part in self.parts))

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Move:
        along, moves = numeric_axes(self.along, len(x.shape))[0], []
        for start, stop, part in self.ranges(tuple(x.shape)):
            here = cut(along, start, stop)
            weights = None if metric is None else metric[here]
            moves.append((start, stop, None if part is None else part.move(x[here], xp, weights)))
        return Piecewise(along, tuple(moves))

    def _of_slice(self, shape: tuple[int, ...], start: int, stop: int) -> tuple[int, ...]:
        along = self.along % len(shape)
        return (*shape[:along], stop - start, *shape[along + 1 :])

    def __repr__(self) -> str:
        shown = [part for _, part in self.parts] if self.parts[0][0] is None else dict(self.parts)
        return f"Slices({shown!r}, along={self.along})"


def _checked(part: Any) -> Any:
    """A part in the form it is kept: a range, or None for a block, with a constraint or None."""
    if not isinstance(part, tuple | list):
        return None, None if part is None else as_constraint(part)
    if len(part) == 2 and part[0] is None:  # as it is saved
        return _checked(part[1])
    if len(part) != 2 or not isinstance(part[0], tuple | list) or len(part[0]) != 2:
        raise TypeError(f"Slices: {part!r} is not a range (start, stop) with a constraint")
    (start, stop), constraint = part
    for end in (start, stop):
        if end is not None and (isinstance(end, bool) or not hasattr(end, "__index__")):
            raise TypeError(f"Slices: the range ({start!r}, {stop!r}) is not made of ints")
    if (start or 0) < 0 or (stop is not None and stop <= (start or 0)):
        raise ValueError(f"Slices: the range ({start}, {stop}) must count from 0, and have a stop above its start")
    ends = tuple(None if end is None else end.__index__() for end in (start, stop))
    return ends, None if constraint is None else as_constraint(constraint)
