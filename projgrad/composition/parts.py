"""What the methods of an intersection need to know of its sets: their axes, bounds, norms and linear conditions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from projgrad.axes import INCOMING, group_size
from projgrad.constraint import Constraint
from projgrad.coupled import PairSet
from projgrad.frozen import FrozenArray
from projgrad.namespace import Array, Namespace
from projgrad.sets.balls import L2Ball, LInfBall
from projgrad.sets.box import Box, NonNeg, NonPos
from projgrad.sets.entries import Mask
from projgrad.sets.norms import MaxNorm, MinMaxNorm, UnitNorm
from projgrad.sets.sums import Halfspace, Hyperplane, SumTo, ZeroMean
from projgrad.values import known

__all__ = [
    "Ball",
    "Plane",
    "Undecided",
    "ball_of",
    "bounds_of",
    "entrywise",
    "group_values",
    "inside",
    "known",
    "plane_of",
    "same_groups",
    "shell_of",
    "signs_of",
]


class Undecided(Exception):  # noqa: N818  it is no error
    """Which axes are whose is not known before there is an array."""


# -- axes ---------------------------------------------------------------------------------------------------------


def entrywise(part: Constraint) -> bool:
    """Whether every entry is a group of its own."""
    return part.axis == ()


def same_groups(a: Constraint, b: Constraint, ndim: int | None) -> bool:
    """Whether the groups of both sets are the same."""
    return inside(a, b, ndim) and inside(b, a, ndim)


def inside(a: Constraint, b: Constraint, ndim: int | None) -> bool:
    """Whether every group of `a` is a part of one of `b`.

    Raises:
        Undecided: that depends on the number of dimensions.
    """
    if ndim is not None and INCOMING not in (a.axis, b.axis):
        return set(a.group_axes(ndim)) <= set(b.group_axes(ndim))
    of_a, of_b = _axes(a), _axes(b)
    if of_a == of_b or of_a == () or of_b is None:
        return True
    if not isinstance(of_a, tuple) or not isinstance(of_b, tuple):
        raise Undecided
    if len({d < 0 for d in of_a + of_b}) == 2:
        raise Undecided
    return set(of_a) <= set(of_b)


def _axes(part: Constraint) -> tuple[int, ...] | str | None:
    axis: Any = part.axis
    if isinstance(part, PairSet):
        return None if axis == INCOMING else tuple(sorted(_flat(axis)))
    if axis is None or axis == INCOMING:
        return axis
    return tuple(sorted(_flat((axis,))))


def _flat(axis: Iterable[Any]) -> list[int]:
    return [d for a in axis for d in (_flat(a) if isinstance(a, tuple) else [a])]


# -- bounds of the entries ----------------------------------------------------------------------------------------


def bounds_of(part: Constraint) -> tuple[Any, Any] | None:
    """The lower and the upper bound of every entry, each a number or an array; None where it is another kind of set."""
    if isinstance(part, Box):
        return part.lower, part.upper
    if isinstance(part, NonNeg):
        return 0.0, math.inf
    if isinstance(part, NonPos):
        return -math.inf, 0.0
    if isinstance(part, LInfBall) and known(part.radius, part.center):
        center = np.asarray(part.center)
        return _plain(center - part.radius), _plain(center + part.radius)
    if isinstance(part, Mask) and known(part.value):
        held, value = np.asarray(part.mask) != 0, np.asarray(part.value)
        return FrozenArray(np.where(held, value, -math.inf)), FrozenArray(np.where(held, value, math.inf))
    return None


def _plain(values: np.ndarray) -> Any:
    return FrozenArray(values) if values.shape else float(values)


def signs_of(part: Constraint) -> float | FrozenArray | None:
    """Where all bounds are 0 or infinite: 1 for entries from 0 on or free, -1 for entries up to 0, 0 for what is 0."""
    bounds = bounds_of(part)
    if bounds is None or not known(*bounds):
        return None
    lower, upper = (np.asarray(b) for b in bounds)
    if np.any((lower != 0) & np.isfinite(lower)) or np.any((upper != 0) & np.isfinite(upper)):
        return None
    return _plain(np.where(upper != 0, 1.0, np.where(lower != 0, -1.0, 0.0)))


# -- norms and linear conditions ----------------------------------------------------------------------------------


def shell_of(part: Constraint) -> tuple[Any, Any] | None:
    """The least and the largest l2 norm of a group, for a set that is given by these."""
    if isinstance(part, MaxNorm):
        return 0.0, part.max_value
    if isinstance(part, UnitNorm):
        return 1.0, 1.0
    if isinstance(part, MinMaxNorm):
        return part.min_value, part.max_value
    if isinstance(part, L2Ball) and isinstance(part.center, float) and part.center == 0:
        return 0.0, part.radius
    return None


class Ball(NamedTuple):
    """An l2 ball."""

    center: Any
    radius: Any


def ball_of(part: Constraint) -> Ball | None:
    """The ball that the set is."""
    if isinstance(part, L2Ball):
        return Ball(part.center, part.radius)
    shell = shell_of(part)
    return Ball(0.0, shell[1]) if shell is not None and shell[0] == 0 and known(shell[0]) else None


class Plane(NamedTuple):
    """``low <= sum(normal * x) <= high``, with a normal of length 1; None for equal entries."""

    normal: FrozenArray | None
    length: float  # by which the bounds are still to be divided
    low: Any
    high: Any

    def native(self, v: Array, xp: Namespace, axes: tuple[int, ...]) -> tuple[Array, Any, Any]:
        """The normal, which broadcasts to `v`, and the bounds."""
        if self.normal is not None:
            return group_values(self.normal, v, xp, axes), self.low / self.length, self.high / self.length
        length = math.sqrt(group_size(v.shape, axes))
        return _zero(v, xp) + 1 / length, self.low / length, self.high / length


def _zero(v: Array, xp: Namespace) -> Array:
    return xp.zeros_like(v[(slice(0, 1),) * len(v.shape)])


def group_values(values: FrozenArray, v: Array, xp: Namespace, axes: tuple[int, ...]) -> Array:
    """One value per entry of a group, in row-major order, as an array that broadcasts to `v`."""
    return xp.reshape(xp.constant(values, v), tuple(n if d in axes else 1 for d, n in enumerate(v.shape)))


def plane_of(part: Constraint) -> Plane | None:
    """The linear condition that the set is."""
    if isinstance(part, SumTo):
        return Plane(None, 1.0, part.total, part.total)
    if isinstance(part, ZeroMean):
        return Plane(None, 1.0, 0.0, 0.0)
    if isinstance(part, Hyperplane):
        return Plane(part._unit, part._length, part.offset, part.offset)  # type: ignore[attr-defined]
    if isinstance(part, Halfspace):
        return Plane(part._unit, part._length, -math.inf, part.offset)  # type: ignore[attr-defined]
    return None
