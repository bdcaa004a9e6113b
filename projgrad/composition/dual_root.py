"""A convex set with one more condition, linear or a ball, by the root of a function of one number per group.

The nearest point is ``P(v - t a)`` for a plane with the unit normal a, and ``P(c + s (v - c))`` for a ball around c,
with the projection P onto the other set and the one t or s that meets the condition, in which both are monotone.

Source: Bertsekas, Nonlinear Programming (1999), section 6.1, for the dual function of one constraint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from projgrad.axes import group_size
from projgrad.constraint import Constraint
from projgrad.namespace import Array, Namespace
from projgrad.precision import tolerance
from projgrad.sets.sums import conjugate_normal

__all__ = ["bracketed_root", "norm_of", "onto_ball", "onto_plane", "point"]

_WIDEN = 80  # times 4
_NARROW = 120
_FLAT = 1e-6  # a slope, of at most 1, that is none

Curve = Callable[[Array], Array]
Axes = tuple[int, ...]


def point(part: Constraint, w: Array, xp: Namespace, h: Array | None = None) -> Array:
    """The point of `part` nearest to `w`, as computed, also for groups within the tolerance of it.

    In the metric h, that may be `w` itself in groups within the tolerance.
    """
    return part.solve(w, xp, h).point(w, xp)


def norm_of(x: Array, xp: Namespace, axes: tuple[int, ...]) -> Array:
    """The l2 norm of every group, which may be infinite where a number is too large for its square."""
    return xp.astype(xp.times(*xp.norm(x, axes)), x.dtype)  # in place, norms are in double precision


def onto_plane(
    v: Array, part: Constraint, normal: Array, low: Any, high: Any, xp: Namespace, axes: Axes, h: Array | None = None
) -> tuple[Array, Array]:
    """The nearest point of `part` with ``low <= sum(normal * x) <= high``, and by how much the last fails.

    Args:
        v: finite, in the dtype of computation.
        part: a closed convex set, whose groups are not larger.
        normal: a unit vector, that broadcasts to `v`.
        low, high: numbers, infinite for no bound, or one per group.
        axes: the axes of a group.
        h: the weights of a metric; None for equal ones.
    """
    return _twice(lambda v: _onto_plane(v, part, normal, low, high, xp, axes, h), v, xp)


def onto_ball(
    v: Array, part: Constraint, center: Any, radius: Any, xp: Namespace, axes: Axes, h: Array | None = None
) -> tuple[Array, Array]:
    """The nearest point of `part` with ``||x - center|| <= radius``, and by how much the last fails.

    Args:
        v: finite, in the dtype of computation.
        part: a closed convex set, whose groups are not larger.
        center: a number, or an array that broadcasts to `v`.
        radius: a number, or one per group.
        axes: the axes of a group.
        h: the weights of a metric; None for equal ones.
    """
    if h is None:
        return _twice(lambda v: _onto_ball(v, part, center, radius, xp, axes), v, xp)
    return _twice(lambda v: _onto_ball_in(v, h, part, center, radius, xp, axes), v, xp)


def _twice(solve: Callable[[Array], tuple[Array, Array]], v: Array, xp: Namespace) -> tuple[Array, Array]:
    """Once more from the point that is found, which takes it into the sets as far as its own digits tell.

    It does not get farther from the nearest point of `v` by that, as projections do not add to distances.
    """
    y, _ = solve(v)
    again, error = solve(xp.stop_gradient(y))
    return (xp.graft(xp.stop_gradient(again), y) if xp.may_differentiate(v) else again), error


def _onto_plane(
    v: Array, part: Constraint, normal: Array, low: Any, high: Any, xp: Namespace, axes: Axes, h: Array | None
) -> tuple[Array, Array]:
    # moving along it by t takes the sum by t
    way = normal if h is None else conjugate_normal(normal, h, xp, axes)

    def along(x: Array) -> Array:
        return xp.accurate_sum(x * normal, axes)

    def gap(w: Array) -> Array:
        return along(point(part, w, xp, h)) - goal

    fixed = xp.stop_gradient(v)
    y = point(part, fixed, xp, h)
    start = along(y)
    goal = xp.where(start > high, high + 0.0 * start, xp.where(start < low, low + 0.0 * start, start))
    away = xp.abs(start - goal)
    active = away > 0.1 * tolerance(v.dtype, group_size(v.shape, axes), norm_of(y, xp, axes) + xp.abs(goal))
    sign = xp.where(start < goal, -xp.ones_like(start), xp.ones_like(start))
    # the projection moves by no more than its argument does, so the root is at least as far as the plane
    first = xp.where(active, away, 0.0)
    t = bracketed_root(lambda t: sign * gap(fixed - t * sign * way), first, 1e-3 * xp.largest(v.dtype), xp)
    fixed = fixed - t * sign * way
    y = point(part, fixed, xp, h)
    found = along(y)
    if xp.may_differentiate(v):  # that of t is the one of the gap, over the slope
        slope = _slope(lambda t: gap(fixed - t * way), 0.0 * start, norm_of(y, xp, axes) + xp.abs(goal), xp)
        v = xp.graft(fixed, v)
        step = xp.where(active & (slope > _FLAT), gap(v) / xp.where(slope > _FLAT, slope, 1.0), 0.0)
        y = point(part, v - (step - xp.stop_gradient(step)) * way, xp, h)
    return y, xp.where(found > high, found - high, xp.where(found < low, low - found, 0.0))


def _onto_ball(v: Array, part: Constraint, center: Any, radius: Any, xp: Namespace, axes: Axes) -> tuple[Array, Array]:

    def away(s: Array, v: Array) -> Array:
        return norm_of(point(part, center + s * (v - center), xp) - center, xp, axes)

    fixed = xp.stop_gradient(v)
    far = norm_of(fixed - center, xp, axes)
    one = xp.ones_like(far)
    nearest, start = away(0.0 * one, fixed), away(one, fixed)
    over = 0.1 * tolerance(v.dtype, group_size(v.shape, axes), radius)
    active = (start > radius + over) & (nearest < radius)
    # again, the projection moves by no more than its argument does
    first = xp.where(active, (radius - nearest) / xp.where(far > 0, far, 1.0), 0.0)
    s = bracketed_root(lambda s: radius - away(s, fixed), first, 1.0, xp)
    if xp.may_differentiate(v):
        slope = _slope(lambda s: -away(s, fixed), s, s, xp) / xp.where(far > 0, far, 1.0)  # at most 1
        step = (radius - away(s, v)) / xp.where(far > 0, far, 1.0) / xp.where(slope > _FLAT, slope, 1.0)
        s = s + xp.where(active & (slope > _FLAT), step - xp.stop_gradient(step), 0.0)
    s = xp.where(active, s, xp.where(start > radius + over, 0.0 * s, one))
    y = point(part, xp.where(start > radius + over, center + s * (v - center), v), xp)
    over = norm_of(xp.stop_gradient(y) - center, xp, axes) - radius
    return y, xp.where(over > 0, over, 0.0)


def _onto_ball_in(
    v: Array, h: Array, part: Constraint, center: Any, radius: Any, xp: Namespace, axes: Axes
) -> tuple[Array, Array]:
    """The same in a metric: ``P((h v + t c) / (h + t))``, in the metric ``h + t``, for the multiplier t of the ball."""

    def at(t: Array, v: Array) -> Array:
        return point(part, center + h / (h + t) * (v - center), xp, h + t)

    def away(t: Array, v: Array) -> Array:
        return norm_of(at(t, v) - center, xp, axes)

    fixed = xp.stop_gradient(v)
    zero = 0.0 * norm_of(fixed, xp, axes)
    start, nearest = away(zero, fixed), norm_of(point(part, center + 0.0 * fixed, xp) - center, xp, axes)
    over = start > radius + 0.1 * tolerance(v.dtype, group_size(v.shape, axes), radius)
    active = over & (nearest < radius)
    found = bracketed_root(lambda t: away(t, fixed) - radius, xp.where(active, 1e-3 + zero, zero), 1e30, xp)
    found = xp.where(over & ~active, 1e30 + zero, found)
    y = at(found, fixed)
    if xp.may_differentiate(v):
        # at a root that changes, as at a point that moves towards the center, so that the metric stays as it is
        metric, outwards = h + found, (y - center) / (h + found)
        start = center + h / metric * (fixed - center) + h / metric * (v - fixed)
        slope = _slope(lambda t: away(t, fixed), found, found, xp)
        step = norm_of(point(part, start, xp, metric) - center, xp, axes) - radius
        step = xp.where(active & (slope > 0), step / xp.where(slope > 0, slope, 1.0), 0.0)
        y = point(part, start - (step - xp.stop_gradient(step)) * outwards, xp, metric)
    beyond = norm_of(xp.stop_gradient(y) - center, xp, axes) - radius
    return y, xp.where(beyond > 0, beyond, 0.0)


def _slope(curve: Curve, t: Array, size: Array, xp: Namespace) -> Array:
    """By how much the nonincreasing `curve` falls at t, by a central difference."""
    h = size * xp.finfo(t.dtype).eps ** 0.4
    h = xp.where(h > 0, h, 1.0)
    return xp.stop_gradient((curve(t - h) - curve(t + h)) / (2 * h))


def bracketed_root(curve: Curve, first: Array, most: float, xp: Namespace) -> Array:
    """The t >= 0 at which the nonincreasing `curve` gets to 0; `most` if it does not before, and 0 where `first` is 0.

    The bracket is widened by factors of 4, then narrowed by inverse quadratic interpolation, or where that is not safe
    by half, until it is as small as numbers can tell. No derivative.

    Args:
        curve: a function of one number per group.
        first: where the root cannot be before, and 0 in a group without one.
        most: where the root cannot be after.

    Source: Chandrupatla, A new hybrid quadratic / bisection algorithm, Advances in Engineering Software 28 (1997).
    """
    eps = float(xp.finfo(first.dtype).eps)
    first = xp.stop_gradient(first)
    tiny = 1e-37
    first = xp.where((first > 0) & (first < tiny), tiny, first)
    first = xp.where(first > most, most, first)

    def widen(moving: Array, low: Array, at_low: Array, high: Array, at_high: Array) -> tuple[Array, ...]:
        further = xp.where(high < most / 4, 4 * high, most)
        t = xp.where(moving, further, high)
        value = xp.where(moving, curve(t), at_high)
        low, at_low = xp.where(moving, high, low), xp.where(moving, at_high, at_low)
        return moving & (value > 0) & (t < most), low, at_low, t, value

    at_zero, at_first = curve(0.0 * first), curve(first)
    wide = ((first > 0) & (at_first > 0) & (first < most), 0.0 * first, at_zero, first, at_first)
    _, low, at_low, high, at_high = xp.iterate(widen, wide, _WIDEN)

    def narrow(
        moving: Array, part: Array, a: Array, at_a: Array, b: Array, at_b: Array, c: Array, at_c: Array
    ) -> tuple[Array, ...]:
        t = xp.where(moving, a + part * (b - a), a)
        value = xp.where(moving, curve(t), at_a)
        same = (value > 0) == (at_a > 0)
        c_, at_c_ = xp.where(same, a, b), xp.where(same, at_a, at_b)
        b_, at_b_ = xp.where(same, b, a), xp.where(same, at_b, at_a)
        c, at_c = xp.where(moving, c_, c), xp.where(moving, at_c_, at_c)
        b, at_b = xp.where(moving, b_, b), xp.where(moving, at_b_, at_b)
        a, at_a = t, value
        width = xp.abs(b - a)
        least = xp.where(width > 0, 2 * eps * xp.abs(t) / xp.where(width > 0, width, 1.0), 1.0)
        moving = moving & (least < 0.5) & (at_a != 0)
        part = _interpolated(a, at_a, b, at_b, c, at_c, xp)
        part = xp.where(part < least, least, xp.where(part > 1 - least, 1 - least, part))
        return moving, part, a, at_a, b, at_b, c, at_c

    half = 0.5 + 0.0 * low
    state = ((at_low > 0) & (at_high < 0), half, high, at_high, low, at_low, high, at_high)
    _, _, a, at_a, b, at_b, _, _ = xp.iterate(narrow, state, _NARROW)
    found = xp.where(xp.abs(at_a) <= xp.abs(at_b), a, b)
    # without a change of sign there is no bracket
    return xp.where(at_high > 0, high, xp.where(at_low > 0, found, 0.0 * low))


def _interpolated(a: Array, at_a: Array, b: Array, at_b: Array, c: Array, at_c: Array, xp: Namespace) -> Array:
    """Where from a to b the next look is taken: by inverse quadratic interpolation where that is safe, or half way."""

    def over(x: Array, y: Array) -> Array:
        return x / xp.where(y == 0, 1.0, y)

    xi, phi = over(a - b, c - b), over(at_a - at_b, at_c - at_b)
    safe = (phi * phi < xi) & ((1 - phi) * (1 - phi) < 1 - xi) & (at_c != at_b) & (at_c != at_a) & (at_a != at_b)
    one = over(at_a, at_b - at_a) * over(at_c, at_b - at_c)
    other = over(c - a, b - a) * over(at_a, at_c - at_a) * over(at_b, at_c - at_b)
    return xp.where(safe, one + other, 0.5 + 0.0 * a)
