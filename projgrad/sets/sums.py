"""Sets given by one linear condition: sums, hyperplanes and halfspaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from projgrad.axes import Axis, arrange, restore
from projgrad.coupled import VectorSet
from projgrad.frozen import FrozenArray
from projgrad.moves import Either, Move, Replace
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.values import set_array, set_number

__all__ = ["Halfspace", "Hyperplane", "SumTo", "ZeroMean"]


@register()
@dataclass(frozen=True, repr=False)
class SumTo(VectorSet):
    """The plane ``{x : sum(x) = total}``, for every group of entries along `axis`.

    Convex. Exact: ``x - (sum(x) - total) / n``. Cost: O(n). In a metric: each entry moves by a share of ``1 / h``.

    Args:
        total: the sum.
        axis: the axes over which the sum is taken: an int, a tuple, None for all, or "incoming".
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `total` is not finite, or `rate` is outside (0, 1].

    Source: Bauschke and Combettes, Convex Analysis and Monotone Operator Theory (2017), chapter 29, with a normal of
    ones.
    """

    total: float = 1.0
    axis: Axis = -1
    rate: float = 1.0
    affine = True

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "total")

    def nearest(self, v: Array, xp: Namespace) -> Array:
        return to_sum(v, self.total, xp)

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        return to_sum(v, self.total, xp, 1.0 / h)

    @property
    def cone(self) -> bool:  # type: ignore[override]
        return isinstance(self.total, float) and self.total == 0


@register()
@dataclass(frozen=True, repr=False)
class ZeroMean(VectorSet):
    """The plane ``{x : sum(x) = 0}``, for every group of entries along `axis`.

    Convex. Exact: ``x - mean(x)``. Cost: O(n). In a metric: as for `SumTo`.

    Args:
        axis: the axes over which the mean is taken: an int, a tuple, None for all, or "incoming".
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `rate` is outside (0, 1].

    Source: Huang et al., Centered weight normalization, ICCV 2017, for incoming weights of zero mean.
    """

    axis: Axis = -1
    rate: float = 1.0
    affine = True
    cone = True

    def nearest(self, v: Array, xp: Namespace) -> Array:
        return to_sum(v, 0.0, xp)

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        return to_sum(v, 0.0, xp, 1.0 / h)


@dataclass(frozen=True, repr=False)
class _Linear(VectorSet):
    """What a hyperplane and a halfspace share."""

    normal: Any
    offset: float = 0.0
    axis: Axis = -1
    rate: float = 1.0
    #: what is below the plane is in the set
    below: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        set_array(self, "normal", ndim=1)
        set_number(self, "offset")
        normal = np.asarray(self.normal)
        most = float(np.max(np.abs(normal), initial=0.0))
        if most == 0:
            raise ValueError(f"{type(self).__name__}: normal={self.normal} must have an entry that is not 0")
        # a unit normal, worked out in double precision, since in single the squares of its entries may be lost
        length = float(np.linalg.norm(normal / most))
        object.__setattr__(self, "_length", most * length)
        object.__setattr__(self, "_unit", FrozenArray(normal / most / length))

    def check_sizes(self, *sizes: int) -> None:
        if self.normal.shape != sizes:
            raise ValueError(f"{type(self).__name__}: normal has {self.normal.shape[0]} entries, a group {sizes[0]}")

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Move:
        """As `nearest`, in fewer passes over the array where groups are of ordinary size and not along the normal."""

        def slow(x: Array) -> Move:
            return super(_Linear, self).solve(x, xp, metric)

        if metric is not None:
            return slow(x)
        parts, last = self.parts(len(x.shape)), (-1,)
        v = arrange(xp.upcast(x), parts, xp)
        unit = xp.constant(self._unit, v)  # type: ignore[attr-defined]
        offset = self.offset / self._length  # type: ignore[attr-defined]

        def sums(v: Array) -> tuple[Array, Array]:
            fixed = xp.stop_gradient(v)
            return xp.accurate_sum(xp.times(v, unit), last), xp.accurate_sum(xp.times(fixed, fixed), last)

        part, squares = sums(v)
        along = xp.abs(xp.stop_gradient(part))
        # then nothing that matters over- or underflows, and what rounding leaves is within the tolerance
        ok = (squares > 2.0**-60) & (squares < 2.0**100) & (along + abs(offset) < 2.0**50)
        ok = ok & (xp.times(along, along) < 0.94 * squares)

        def quick(x: Array, *known: Array) -> Move:
            v = arrange(xp.upcast(x), parts, xp)
            part, squares = known or sums(v)
            size, first = xp.sqrt(squares), part - offset
            if self.below:
                first = xp.where(xp.stop_gradient(first) > 0, first, 0.0)
            y = restore(v - first * unit, parts, tuple(x.shape), xp)
            away, size = (self._per_group(values, x, xp) for values in (xp.abs(first), size))
            return Replace(y, self.group_axes(len(x.shape)), away=away, size=size)

        return Either(ok, (part, squares), quick, slow)

    @property
    def cone(self) -> bool:  # type: ignore[override]
        return isinstance(self.offset, float) and self.offset == 0

    def nearest(self, v: Array, xp: Namespace) -> Array:
        return self._along(v, xp)

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        return self._along(v, xp, h)

    def _along(self, v: Array, xp: Namespace, h: Array | None = None) -> Array:
        """`v`, moved along the normal, in the metric h, onto the plane; not at all where the set goes on below it."""
        unit: Array = xp.constant(self._unit, v)  # type: ignore[attr-defined]
        offset = self.offset / self._length  # type: ignore[attr-defined]
        scale = comfortable(v, offset, xp)
        y = v * scale

        def excess(y: Array) -> Array:
            return xp.accurate_sum(y * unit, (-1,)) - offset * scale

        way = unit if h is None else conjugate_normal(unit, h, xp, (-1,))
        moved = y - excess(y) * way
        moved = moved - excess(moved) * way  # what rounding left
        if self.below:
            moved = xp.where(excess(xp.stop_gradient(y)) > 0, moved, y)
        return moved / scale


@register()
@dataclass(frozen=True, repr=False)
class Hyperplane(_Linear):
    """The hyperplane ``{x : sum(normal * x) = offset}``, for every group of entries along `axis`.

    Convex. Exact: ``x - (sum(normal * x) - offset) / sum(normal**2) * normal``. Cost: O(n). In a
    metric: along ``normal / h``.

    Args:
        normal: a list of numbers, one per entry of a group (in row-major order, where `axis` has several axes).
        offset: the value of the sum.
        axis: the axes over which the sum is taken: an int, a tuple, None for all, or "incoming".
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `normal` is not one list of finite numbers, is zero, or does not have the size of a group; `offset`
            is not finite; `rate` is outside (0, 1].

    Source: Bauschke and Combettes, Convex Analysis and Monotone Operator Theory (2017), chapter 29.
    """

    affine = True


@register()
@dataclass(frozen=True, repr=False)
class Halfspace(_Linear):
    """The halfspace ``{x : sum(normal * x) <= offset}``, for every group of entries along `axis`.

    Convex. Exact: a group outside goes to the hyperplane ``sum(normal * x) = offset``. Cost: O(n). In a
    metric: as for `Hyperplane`.

    Args:
        normal: a list of numbers, one per entry of a group (in row-major order, where `axis` has several axes).
        offset: the largest value of the sum.
        axis: the axes over which the sum is taken: an int, a tuple, None for all, or "incoming".
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `normal` is not one list of finite numbers, is zero, or does not have the size of a group; `offset`
            is not finite; `rate` is outside (0, 1].

    Source: Bauschke and Combettes, Convex Analysis and Monotone Operator Theory (2017), chapter 29.
    """

    below = True


def to_sum(v: Array, total: float, xp: Namespace, w: Array | None = None) -> Array:
    """The nearest point to `v` whose entries along the last axis sum to `total`; they move by a multiple of `w`."""
    scale = comfortable(v, total, xp)
    y = v * scale
    share = 1.0 / v.shape[-1] if w is None else w / xp.sum(w, axis=-1, keepdims=True)
    for _ in range(2):  # the second time for what rounding left
        y = y - (xp.accurate_sum(y, (-1,)) - total * scale) * share
    return y / scale


def conjugate_normal(normal: Array, h: Array, xp: Namespace, axes: tuple[int, ...]) -> Array:
    """The way onto a plane in the metric h, ``normal / h``, of such a length that the unit `normal` has 1 along it."""
    way = normal / h
    way = way / xp.max(xp.abs(way), axis=axes, keepdims=True)
    return way / xp.accurate_sum(way * normal, axes)


def comfortable(v: Array, value: Any, xp: Namespace) -> Array:
    """A power of 2 per group, by which its entries and `value` are far from the largest and the smallest numbers."""
    most = xp.max(xp.abs(xp.stop_gradient(v)), axis=-1, keepdims=True)
    most = xp.where(most > abs(value), most, abs(value))
    one = xp.ones_like(most)
    return xp.where(most > 2.0**60, 2.0**-60 * one, xp.where(most < 2.0**-60, 2.0**60 * one, one))
