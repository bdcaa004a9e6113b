"""Sets whose nearest point is one threshold per group away: simplices and l1 balls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from projgrad.axes import Axis
from projgrad.coupled import VectorSet
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.sets.thresholds import above_threshold, off_sum, signs, within_bounds
from projgrad.values import check_bounds, check_broadcast, is_infinite, native_group, set_number

__all__ = ["CappedSimplex", "L1Ball", "L1Sphere", "Simplex"]


@register()
@dataclass(frozen=True, repr=False)
class Simplex(VectorSet):
    """The simplex ``{x : x >= 0, sum(x) = total}``, for every group of entries along `axis`.

    Convex. Exact: ``max(x - t, 0)`` with the t that makes the sum right, by Newton's method. Cost: O(n) per step, of
    which 11 were the most seen. In a metric: ``max(x - t / h, 0)``, with up to 30 steps.

    Args:
        total: the sum, at least 0.
        axis: the axes over which the sum is taken: an int, a tuple, None for all, or "incoming".
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `total` is negative or not finite, or `rate` is outside (0, 1].

    Source: Held, Wolfe and Crowder, Validation of subgradient optimization, Math. Programming 6 (1974); the root by
    Newton's method as in Michelot, J. Optim. Theory Appl. 50 (1986), started from the other side.
    """

    total: float = 1.0
    axis: Axis = -1
    rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "total", least=0, what="a sum of numbers of at least 0")

    def holds(self, v: Array, xp: Namespace) -> Array:
        return xp.min(v, axis=-1) >= 0

    def nearest(self, v: Array, xp: Namespace) -> Array:
        return above_threshold(v, self.total, xp)

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        return above_threshold(v, self.total, xp, 1.0 / h)

    def off(self, v: Array, xp: Namespace) -> Array:
        return off_sum(v, self.total, xp)

    def size_near(self, v: Array, xp: Namespace) -> Array | None:
        return _size(v, self.total, xp)

    has_tangent = True

    def tangent_in(self, v: Array, d: Array, xp: Namespace) -> Array:
        return _between(v, d, 0.0, math.inf, xp)


@register()
@dataclass(frozen=True, repr=False)
class CappedSimplex(VectorSet):
    """The capped simplex ``{x : lower <= x <= upper, sum(x) = total}``, for every group of entries along `axis`.

    Convex. Exact: ``clip(x - t, lower, upper)`` with the t that makes the sum right, by Newton's method between two
    ends that close in on it. Cost: O(n) per step.
    In a metric: ``clip(x - t / h, lower, upper)``.

    A bound of 0 holds exactly, others up to the tolerance. Bounds are rounded to the precision of the computation.

    Args:
        total: the sum.
        lower: a number, or a list of numbers, one per entry of a group (in row-major order, where `axis` has several
            axes); -inf for no bound.
        upper: the same; inf for no bound.
        axis: the axes over which the sum is taken: an int, a tuple, None for all, or "incoming".
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `total` is not finite, a bound is NaN, `lower` exceeds `upper` somewhere, no finite number lies
            between them, they do not fit the size of a group, no numbers between them have the sum `total`, or `rate`
            is outside (0, 1].

    Source: Helgason, Kennington and Lall, A polynomially bounded algorithm for a singly constrained quadratic program,
    Math. Programming 18 (1980).
    """

    total: float = 1.0
    lower: Any = 0.0
    upper: Any = 1.0
    axis: Axis = -1
    rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "total")
        check_bounds(self)
        for name in ("lower", "upper"):
            if len(np.shape(getattr(self, name))) > 1:
                raise ValueError(f"CappedSimplex: {name} must be a number or a list of them, one per entry of a group")
        bounds = [np.ravel(bound).tolist() for bound in (self.lower, self.upper)]
        sizes = [abs(b) for bound in bounds for b in bound if math.isfinite(b)]
        means = tuple(math.fsum(values) / max(len(values), 1) for values in (*bounds, sizes))
        object.__setattr__(self, "_means", means)

    def _fill(self, size: int) -> float | None:
        """As `within_bounds` asks for it."""
        lower, upper = self.lower, self.upper
        if not all(isinstance(bound, float) and not is_infinite(bound) for bound in (lower, upper)):
            return None
        if not isinstance(self.total, float) or lower == upper:
            return math.nan
        return (self.total / size - lower) / (upper - lower)

    def check_sizes(self, *sizes: int) -> None:
        for name in ("lower", "upper"):
            check_broadcast(self, name, sizes)
        (size,), total = sizes, self.total
        least, most, spread = (size * mean for mean in self._means)  # type: ignore[attr-defined]
        slack = 1e-12 * (abs(total) + spread)
        if not least - slack <= total <= most + slack:
            raise ValueError(
                f"CappedSimplex: {size} numbers between lower and upper have a sum of at least {least:g} and at most "
                f"{most:g}, which total={total:g} is not"
            )

    def holds(self, v: Array, xp: Namespace) -> Array | None:
        if isinstance(self.lower, float) and isinstance(self.upper, float):
            sides = [xp.min(v, axis=-1) >= 0] if self.lower == 0 else []
            sides += [xp.max(v, axis=-1) <= 0] if self.upper == 0 else []
            return sides[0] & sides[-1] if sides else None
        lower, upper = (native_group(bound, v, xp) for bound in (self.lower, self.upper))
        return xp.all(((v >= lower) | (lower != 0)) & ((v <= upper) | (upper != 0)), axis=-1)

    def nearest(self, v: Array, xp: Namespace) -> Array:
        lower, upper = (native_group(bound, v, xp) for bound in (self.lower, self.upper))
        return within_bounds(v, self.total, lower, upper, xp, fill=self._fill(v.shape[-1]))

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        lower, upper = (native_group(bound, v, xp) for bound in (self.lower, self.upper))
        return within_bounds(v, self.total, lower, upper, xp, 1.0 / h, self._fill(v.shape[-1]))

    has_tangent = True

    def tangent_in(self, v: Array, d: Array, xp: Namespace) -> Array:
        lower, upper = (native_group(bound, v, xp) for bound in (self.lower, self.upper))
        return _between(v, d, lower, upper, xp)


@register()
@dataclass(frozen=True, repr=False)
class L1Ball(VectorSet):
    """The l1 ball ``{x : sum(|x|) <= radius}``, for every group of entries along `axis`.

    Convex. Exact: ``sign(x) * max(|x| - t, 0)`` in a group outside, with the t that makes the sum right, by Newton's
    method. Cost: O(n) per step, of which 11 were the most seen. In a metric: with ``t / h``, as for `Simplex`.

    Args:
        radius: the largest sum, at least 0.
        axis: the axes over which the sum is taken: an int, a tuple, None for all, or "incoming".
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `radius` is negative or not finite, or `rate` is outside (0, 1].

    Source: Duchi, Shalev-Shwartz, Singer and Chandra, Efficient projections onto the l1-ball, ICML 2008.
    """

    radius: float = 1.0
    axis: Axis = -1
    rate: float = 1.0
    solid = True

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "radius", least=0, what="a norm")

    def nearest(self, v: Array, xp: Namespace) -> Array:
        sign = signs(xp.stop_gradient(v), xp)
        inside = xp.accurate_sum(xp.abs(xp.stop_gradient(v)), (-1,)) <= self.radius
        return xp.where(inside, v, sign * above_threshold(_folded(v, sign, xp), self.radius, xp))

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        sign = signs(xp.stop_gradient(v), xp)
        inside = xp.accurate_sum(xp.abs(xp.stop_gradient(v)), (-1,)) <= self.radius
        return xp.where(inside, v, sign * above_threshold(sign * v, self.radius, xp, 1.0 / h))

    def off(self, v: Array, xp: Namespace) -> Array:
        far = off_sum(xp.abs(v), self.radius, xp)
        return xp.where(xp.accurate_sum(xp.abs(v), (-1,)) > self.radius, far, 0.0)

    def size_near(self, v: Array, xp: Namespace) -> Array | None:
        return _size(v, self.radius, xp)


@register()
@dataclass(frozen=True, repr=False)
class L1Sphere(VectorSet):
    """The l1 sphere ``{x : sum(|x|) = radius}``, for every group of entries along `axis`.

    Not convex. Exact: ``sign(x) * max(|x| - t, 0)`` with the t that makes the sum right, by Newton's method. Cost: O(n)
    per step, of which 11 were the most seen. In a metric: with ``t / h``, as for `Simplex`.

    In a group inside, t is negative: all entries move away from 0 by the same amount. A zero may then take either sign;
    plus is chosen.

    Args:
        radius: the sum, at least 0.
        axis: the axes over which the sum is taken: an int, a tuple, None for all, or "incoming".
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `radius` is negative or not finite, or `rate` is outside (0, 1].

    Source: as for `L1Ball`. Inside, the distance to the plane ``sum(s * x) = radius`` is least for the signs s of x,
    and the nearest point of that plane has these signs.
    """

    radius: float = 1.0
    axis: Axis = -1
    rate: float = 1.0
    convex = False

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "radius", least=0, what="a norm")

    def nearest(self, v: Array, xp: Namespace) -> Array:
        sign = signs(xp.stop_gradient(v), xp)
        return sign * above_threshold(_folded(v, sign, xp), self.radius, xp)

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        sign = signs(xp.stop_gradient(v), xp)
        return sign * above_threshold(sign * v, self.radius, xp, 1.0 / h)

    def off(self, v: Array, xp: Namespace) -> Array:
        return off_sum(xp.abs(v), self.radius, xp)

    def size_near(self, v: Array, xp: Namespace) -> Array | None:
        return _size(v, self.radius, xp)


def _folded(v: Array, sign: Array, xp: Namespace) -> Array:
    """The size of every entry, by its `sign` where there may be a derivative."""
    return sign * v if xp.may_differentiate(v) else xp.abs(v)


def _size(v: Array, total: Any, xp: Namespace) -> Array | None:
    """The norm of every group whose sizes sum up to about a `total` that is no extreme number; None for one that is."""
    if not isinstance(total, float) or not 2.0**-40 < total < 2.0**40:
        return None
    squares = xp.accurate_sum(v * v, (-1,))
    return xp.sqrt(xp.where(squares < 2.0**100, squares, 0.0))


def _between(v: Array, d: Array, lower: Any, upper: Any, xp: Namespace) -> Array:
    """The nearest direction that leaves the sum and keeps ``lower <= v <= upper``, in which 0 is always possible."""
    size = xp.max(xp.abs(d), axis=-1, keepdims=True)
    size = xp.where(size > 0, size, 1.0)
    least, most = xp.where(v <= lower, 0.0 * v, -math.inf), xp.where(v >= upper, 0.0 * v, math.inf)
    return within_bounds(d / size, 0.0, least, most, xp) * size
