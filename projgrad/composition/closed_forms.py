"""Intersections whose nearest point is a formula; all take finite groups in the dtype of computation, along `axes`."""

from __future__ import annotations

import math
from typing import Any

from projgrad.axes import arrange, restore
from projgrad.composition.dual_root import bracketed_root, norm_of, point
from projgrad.constraint import Constraint
from projgrad.namespace import Array, Namespace
from projgrad.sets.sequences import positions
from projgrad.values import is_infinite

__all__ = ["affine_and_shell", "cone_and_ball", "orthant_and_shell", "shell_and_box", "shell_and_box_in"]

Axes = tuple[int, ...]


def cone_and_ball(v: Array, cone: Constraint, radius: Any, xp: Namespace, axes: Axes) -> Array:
    """First onto the cone, then onto the ball.

    Source: Bauschke, Bui and Wang, Projecting onto the intersection of a cone and a sphere, SIAM J. Optim. 28 (2018),
    theorem 7.1.
    """
    return _scaled(point(cone, v, xp), 0.0, radius, None, xp, axes)


def affine_and_shell(v: Array, flat: Constraint, low: Any, high: Any, xp: Namespace, axes: Axes) -> Array:
    """Onto the affine set, and there towards or away from its point of least norm, since the two are at right angles.

    Where that point itself is what has to move, it does so in the direction of the image of (1, 1/2, 1/3, ...).
    """
    origin = point(flat, xp.zeros_like(v), xp)
    near = norm_of(origin, xp, axes)

    def rest(bound: Any) -> Array:  # of the radius, once the point of least norm has taken its part
        inside = bound > near
        return xp.where(inside, xp.sqrt(xp.where(inside, bound - near, 1.0)) * xp.sqrt(bound + near), 0.0)

    fallback = None
    if not (isinstance(low, float) and low == 0):
        order = xp.astype(positions(arrange(v, (axes,), xp), xp), v.dtype)
        start = restore(1.0 / (1.0 + order), (axes,), tuple(v.shape), xp)
        away = point(flat, origin + start, xp) - origin
        size = norm_of(away, xp, axes)
        fallback = away / xp.where(size > 0, size, 1.0)
    top = xp.ones_like(near) * high if is_infinite(high) else rest(high)
    # the second time from around the norm, where the digits that are left of a short vector are enough
    for _ in range(2):
        v = origin + _scaled(point(flat, v, xp) - origin, rest(low), top, fallback, xp, axes)
    return v


def orthant_and_shell(
    v: Array, orthant: Constraint, signs: Array, low: Any, high: Any, xp: Namespace, axes: Axes
) -> Array:
    """First onto the orthant, then onto the shell; where nothing is left, the entry nearest to its legal sign gets all.

    Of several such entries, the first one.

    Args:
        signs: 1 for an entry that must not be negative, -1 for one that must not be positive, 0 for one that is 0.

    Source: as for `cone_and_ball`, section 8.
    """
    order = arrange(xp.where(signs == 0, -math.inf, xp.stop_gradient(v) * signs), (axes,), xp)
    one = xp.astype(positions(order, xp) == xp.argmax(order, axis=-1, keepdims=True), v.dtype)
    first = restore(one, (axes,), tuple(v.shape), xp) * signs
    return _scaled(point(orthant, v, xp), low, high, first, xp, axes)


def _scaled(y: Array, low: Any, high: Any, fallback: Array | None, xp: Namespace, axes: Axes) -> Array:
    """`y` scaled to the nearest norm from `low` to `high`; `fallback`, of norm 1, is the direction of zeros."""
    m, u = xp.norm(y, axes)
    norm = xp.astype(xp.times(m, u), y.dtype)
    goal = xp.where(norm > high, high + 0.0 * norm, low + 0.0 * norm)
    far = y / m * xp.astype(goal / xp.where(u > 0, u, 1.0), y.dtype)
    if fallback is not None:
        far = xp.where(u > 0, far, fallback * low)
    return xp.where((norm > high) | (norm < low), far, y)


def shell_and_box(
    v: Array, lower: Array, upper: Array, low: Any, high: Any, xp: Namespace, axes: Axes, *, alike: bool = False
) -> tuple[Array, Array]:
    """The nearest point with ``lower <= x <= upper`` and ``low <= ||x|| <= high``, and how far its norm is off.

    It is ``clip(s v, lower, upper)`` with the s >= 0 that meets the norm, where there is one. There is none where the
    entries of a legal sign are too few to make up the norm; see `_largest_first`.

    Args:
        v: finite, in the dtype of computation.
        lower, upper: arrays that broadcast to `v`.
        low, high: numbers, `high` infinite for no bound.
        alike: the bounds are those that `_largest_first` needs.

    Source: duality, since ``clip(s v)`` maximises ``s sum(v x) - ||x||^2 / 2`` over the box, and so ``sum(v x)`` over
    all of the box that has this norm.
    """
    infinite = is_infinite(high)
    unit = xp.zeros_like(v[(slice(0, 1),) * len(v.shape)]) + (low if infinite else high)
    unit = xp.where(unit > 0, unit, 1.0)  # so that squares are around 1
    below, above = lower / unit, upper / unit
    inside = _clip(v, lower, upper, xp)
    norm = norm_of(xp.stop_gradient(inside), xp, axes)
    short, long = norm < low, norm > high
    goal = xp.where(long, 0.0 * norm + high, xp.where(short, 0.0 * norm + low, norm)) / unit

    size = xp.stop_gradient(xp.max(xp.abs(v), axis=axes, keepdims=True))
    v = v / xp.where(size > 0, size, 1.0)
    v = xp.where(xp.abs(v) < 1e-30, 0.0, v)
    fixed = xp.stop_gradient(v)
    away = norm_of(fixed, xp, axes)

    def lack(s: Array) -> Array:
        y = _clip(s * fixed, below, above, xp)
        return goal * goal - xp.accurate_sum(y * y, axes)

    most = xp.where(fixed > 0, above, xp.where(fixed < 0, below, _clip(fixed, below, above, xp)))
    reach = norm_of(xp.where(most > 1e18, 1e18, xp.where(most < -1e18, -1e18, most)), xp, axes)
    few = short & (reach < goal * (1 - 4 * float(xp.finfo(v.dtype).eps)))
    # the norm grows by no more than s times that of v, so the root is at least so far
    first = goal - norm_of(_clip(xp.zeros_like(v), below, above, xp), xp, axes)
    first = xp.where((short | long) & ~few & (first > 0), first, 0.0) / xp.where(away > 0, away, 1.0)
    s = bracketed_root(lack, first, 1e36, xp)
    y = _clip(s * fixed, below, above, xp)
    free = (s * fixed > below) & (s * fixed < above)
    # once more in closed form from the entries that are free, with the derivative
    v = xp.where(free, v, 0.0)
    squares = xp.accurate_sum(v * v, axes)
    rest = goal * goal - xp.accurate_sum(xp.where(free, 0.0, y * y), axes)
    useful = (squares > 0) & (rest > 0)
    s = xp.where(useful, xp.sqrt(xp.where(useful, rest, 1.0)) / xp.sqrt(xp.where(useful, squares, 1.0)), s)
    y = xp.where(free, s * v, y)
    if alike:
        y = xp.where(few, _largest_first(fixed, below, above, goal, xp, axes), y)
    y = xp.where(short | long, _clip(y * unit, lower, upper, xp), inside)
    norm = norm_of(xp.stop_gradient(y), xp, axes)
    return y, xp.where(norm > high, norm - high, xp.where(norm < low, low - norm, 0.0))


def _largest_first(v: Array, lower: Array, upper: Array, goal: Array, xp: Namespace, axes: Axes) -> Array:
    """The second form of `shell_and_box`, where all entries of a legal sign at their bound do not reach the norm.

    The bounds are equal in all entries of a group that are not fixed, and of one sign or opposite. The k entries that
    are largest, in their legal sign, are at the bound that is farther from 0, the next one is as far as the norm
    allows, and the others at the nearer bound (0, where the signs are opposite). Of equal entries, the first come
    first.

    Source: as a function of the squares of the entries, the sum to maximise is convex on all but the entries at their
    bound; so a vertex of a box cut by a plane is best, and the order of the entries tells which.
    """
    shape = tuple(v.shape)
    held = (lower == upper) & (v == v)
    sign = xp.where(upper <= 0, -1.0 + 0.0 * v, xp.where((lower < 0) & (v < 0), -1.0 + 0.0 * v, 1.0 + 0.0 * v))
    far = xp.maximum(xp.abs(lower), xp.abs(upper)) + 0.0 * v
    near = xp.where((lower < 0) & (upper > 0), 0.0 * v, xp.minimum(xp.abs(lower), xp.abs(upper)))
    order = xp.argsort(arrange(xp.where(held, -math.inf, v * sign), (axes,), xp), axis=-1, descending=True, stable=True)
    rank = restore(xp.argsort(order, axis=-1, stable=True), (axes,), shape, xp)
    rest = goal * goal - xp.accurate_sum(near * near, axes)
    more = xp.max(xp.where(held, 0.0, far * far - near * near), axis=axes, keepdims=True)
    count = xp.floor(rest / xp.where(more > 0, more, 1.0))
    used = xp.where(count > 0, count, 0.0) * xp.where(count > 0, more, 0.0)
    last = rest - used
    last = xp.sqrt(near * near + xp.where(last > 0, last, 0.0))
    rank = xp.astype(rank, v.dtype)
    return xp.where(held, lower, sign * xp.where(rank < count, far, xp.where(rank == count, last, near)))


def _clip(x: Array, lower: Array, upper: Array, xp: Namespace) -> Array:
    return xp.where(x < lower, lower, xp.where(x > upper, upper, x))


def shell_and_box_in(
    v: Array, h: Array, lower: Array, upper: Array, low: Any, high: Any, xp: Namespace, axes: Axes
) -> tuple[Array, Array]:
    """`shell_and_box` in the metric h: ``clip(h v / (h + l), lower, upper)`` with the l that meets the norm.

    That is the nearest point where l is at least ``-min h``, over the entries that are not fixed, since then ``sum(h (x
    - v)^2) + l ||x||^2`` is convex, and has its least value in the box there. Where there is no such l, the norm is not
    met.
    """
    inside = _clip(v, lower, upper, xp)
    norm = norm_of(xp.stop_gradient(inside), xp, axes)
    short, long = norm < low, norm > high
    goal = xp.where(long, 0.0 * norm + high, xp.where(short, 0.0 * norm + low, norm))
    unit = xp.where(goal > 0, goal, 1.0)
    # no entry of the point is larger than its norm
    two = 2.0 * xp.ones_like(h)
    below = xp.minimum(xp.maximum(lower / unit, -two), two)
    above = xp.maximum(xp.minimum(upper / unit, two), -two)
    least = xp.min(xp.where(lower < upper, h, math.inf), axis=axes, keepdims=True)
    least = xp.where(least < math.inf, least, 1.0)
    more = xp.where(h > least, h - least, 0.0)
    w = v / unit

    def at(m: Array, w: Array) -> Array:
        by = more + m
        free = xp.where(by > 0, h / xp.where(by > 0, by, 1.0) * w, 2.0 * xp.sign(w))
        return _clip(free, below, above, xp)

    def lack(m: Array) -> Array:
        return norm_of(at(m, xp.stop_gradient(w)), xp, axes) - goal / unit

    outside = short | long
    m = bracketed_root(lack, xp.where(outside, least, 0.0 * least), 1e30, xp)
    y = at(m, w)
    if xp.may_differentiate(v):
        by, fixed = more + m, xp.stop_gradient(y)
        free = (fixed > below) & (fixed < above) & (by > 0)
        slope = xp.accurate_sum(xp.where(free, fixed * fixed / xp.where(by > 0, by, 1.0), 0.0), axes)
        change = xp.accurate_sum(xp.where(free, fixed * y, 0.0), axes) / xp.where(slope > 0, slope, 1.0)
        y = at(m + change - xp.stop_gradient(change), w)
    # what rounding left, by a factor for the entries that are free
    fixed = xp.stop_gradient(y)
    free = (fixed > below) & (fixed < above)
    squares = xp.accurate_sum(xp.where(free, fixed * fixed, 0.0), axes)
    rest = goal / unit * goal / unit - xp.accurate_sum(xp.where(free, 0.0, fixed * fixed), axes)
    by = xp.sqrt(xp.where((squares > 0) & (rest > 0), rest, 1.0)) / xp.sqrt(
        xp.where((squares > 0) & (rest > 0), squares, 1.0)
    )
    y = xp.where(free & (by > 0.99) & (by < 1.01), by * y, y)
    y = xp.where(outside, _clip(y * unit, lower, upper, xp), inside)
    norm = norm_of(xp.stop_gradient(y), xp, axes)
    return y, xp.where(norm > high, norm - high, xp.where(norm < low, low - norm, 0.0))
