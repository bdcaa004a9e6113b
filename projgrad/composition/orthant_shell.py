"""An orthant with a sphere or a shell, in a diagonal metric: at most one entry has to leave 0 against its sign."""

from __future__ import annotations

import math
from typing import Any

from projgrad.namespace import Array, Namespace
from projgrad.precision import precision
from projgrad.sets.secular import onto_shell
from projgrad.sets.sequences import positions

__all__ = ["orthant_and_shell_in"]

_CELLS = 48
_SPLITS = 96
_STEPS = 60  # of Newton


def orthant_and_shell_in(
    v: Array, h: Array, signs: Array, free: Array | None, low: Any, high: Any, xp: Namespace
) -> Array:
    """The point y with signs and ``low <= ||y|| <= high`` along the last axis that minimises ``sum(h (y - v)^2)``.

    Let P be the entries of `v` that have their sign, and u its part on P. Where u is not too short, the point is that
    of u in the shell. Else the norm is `low`, and in ``z = y^2``, with ``a = -sign * v`` on the other entries, the
    problem is to minimise

        sum_P (h z - 2 h u sqrt(z)) + sum_others (h z + 2 h a sqrt(z))    where z >= 0 and sum(z) = low^2.

    As this is concave in the others, at most one of them is not 0. None is in the point of u in the shell, which has
    the multiplier L, with ``y = h u / (h - L)`` on P. With an entry j, of ``h_j < L``, the least value is that of

        A(L) + b^2 / (L - h_j),    b = h_j a_j,    A(L) = L (low^2 - sum_P(h u^2 / (h - L)))

    above ``h_j``, and up to the L of the point without it, where it is A(L) alone. A is concave, and the same for all
    j. So between two numbers at which it is known, its chord bounds it from below, and the least value with the chord
    has a closed form for every j. The interval with the least such bound is split at its minimum, until none is below
    the best value that is found, up to rounding. A split takes one pass over the group for A and three for the bounds.
    One or two are usual. Where the splits do not suffice, as for dozens of entries that are equally good up to
    rounding, the best value that is found is taken.

    Of equally good points, the one without j comes first, and of several j the first one.

    Args:
        v: finite groups.
        h: positive weights, at most 1.
        signs: 1 for an entry that must not be negative, -1 for one that must not be positive, 0 for one that is 0.
        free: True for an entry that may have any sign, whatever `signs` says; None for nowhere.
        low, high: bounds of the norm, numbers or one per group; `high` may be infinite.
        xp: the functions to call.

    Source: duality, for the part on P; the derivation is above.
    """
    if free is not None:
        signs = xp.where(free & (v < 0), -signs, signs)
    w = v * signs
    fixed, zero = xp.stop_gradient(w), 0.0 * h[..., :1]
    legal, other = fixed > 0, (fixed <= 0) & (signs != 0)
    moves = legal if free is None else legal | (other & free)
    short = xp.times(*xp.norm(xp.where(legal, fixed, 0.0), (-1,))) < low
    # the other entries, which are 0, are not those of least weight
    weights = xp.where(legal | (moves & ~short), 0.5 * h, 1.0)
    alone = onto_shell(xp.where(moves, w, 0.0), weights, low, high, xp)
    if isinstance(low, int | float) and low == 0:
        return alone * signs

    unit = xp.where(short, low + zero, 1.0)
    some = xp.any(legal, axis=-1, keepdims=True)
    a = xp.where(other, -fixed, 0.0)
    u, b = xp.where(legal & short, xp.divide(fixed, unit), 0.0), xp.times(h, xp.divide(a, unit))
    b = xp.where(b < 2.0, b, 2.0)  # what is larger does not pay: no value is more than 1
    y = xp.where(legal & short, xp.stop_gradient(alone) / unit, 0.0)
    least = xp.min(xp.where(legal, h, math.inf), axis=-1, keepdims=True)
    least = xp.where(some, least, 1.0)
    # how far L is from the least weight, from those entries of y that have it
    most = least * xp.max(xp.where(legal & (h == least), u / xp.where(y > 0, y, 1.0), 0.0), axis=-1, keepdims=True)
    chosen, added = _entry(u, b, h, y, least - most, other, short & some, xp)
    nearest = xp.argmin(xp.where(other, h * (0.5 * unit + a), math.inf), axis=-1, keepdims=True)
    chosen = xp.where(some, chosen, nearest)
    added = added | (short & ~some & xp.any(other, axis=-1, keepdims=True))

    one = (positions(h, xp) == chosen) & added
    weight, pull = (xp.sum(xp.where(one, c, 0.0), axis=-1, keepdims=True) for c in (h, b))
    x = _multiplier(u, pull, h, xp.where(legal & added, h - weight, 1.0), added & some, xp)
    left = xp.where(added, (h - weight) - x, (h - least) + most)  # h - L
    moves = moves & ~one & (left > 1e3 * precision(h.dtype).tiny)
    left = xp.where(moves, left, 1.0)
    y = xp.where(added, xp.where(legal, u * (h / left), 0.0), y)
    squares = xp.accurate_sum(y * y, (-1,))
    t = xp.where(x > 0, pull / xp.where(x > 0, x, 1.0), xp.sqrt(xp.where(squares < 1, 1.0 - squares, 0.0)))
    x, t = xp.where(added & some, x, 1.0), xp.where(added, xp.where(some, t, 1.0), 0.0)
    length = xp.sqrt(squares + t * t)
    y = xp.where(added, xp.where(one, t, y) / xp.where(length > 0, length, 1.0), y)
    if xp.may_differentiate(v):
        # of ``y (h - L) = h u``, of ``t (L - h_j) = b`` for the entry that is added, and of the norm
        change = xp.where(short, (w - fixed) / unit, 0.0)
        direct = xp.where(moves, h / left * change, 0.0)
        along, bend = (xp.sum(c, axis=-1, keepdims=True) for c in (y * direct, xp.where(moves, y * (y / left), 0.0)))
        down = -xp.sum(xp.where(one, h * change, 0.0), axis=-1, keepdims=True)
        turn = t * t - x * bend
        step = (x * along + t * down) / xp.where(turn != 0, turn, 1.0)
        up = -(along + bend * step) / xp.where(t > 0, t, 1.0)
        y = y + xp.where(one, up, xp.where(moves, direct + y * (step / left), 0.0))
    return xp.where(short, y * unit, alone) * signs


def _entry(
    u: Array, b: Array, h: Array, y: Array, end: Array, other: Array, active: Array, xp: Namespace
) -> tuple[Array, Array]:
    """The index of the best entry j, and whether it is better than none, where the point is y and L is `end`."""
    eps, tiny = 8 * float(xp.finfo(h.dtype).eps), precision(h.dtype).tiny

    def value(at: Array) -> Array:
        left = h - at
        y = xp.where(left > 0, u * (h / xp.where(left > 0, left, 1.0)), 1.0)
        return at * (1.0 - xp.accurate_sum(u * xp.where(y < 1.0, y, 1.0), (-1,)))

    def bound(low: Array, at_low: Array, high: Array, at_high: Array) -> tuple[Array, Array, Array]:
        """The least value with the chord from `low` to `high`, its entry, and its L - h_j."""
        width = high - low
        slope = (at_high - at_low) / xp.where(width > 0, width, 1.0)
        slope = xp.where(slope > tiny, slope, tiny)
        first, last = xp.where(low > h, low - h, 0.0), high - h
        x = b / xp.sqrt(slope)
        x = xp.where(x < first, first, xp.where(x > last, last, x))
        values = at_low + slope * ((h - low) + x) + b * (b / xp.where(x > 0, x, 1.0))
        values = xp.where(other & (last > 0), values, math.inf)
        k = xp.argmin(values, axis=-1, keepdims=True)
        return xp.min(values, axis=-1, keepdims=True), k, xp.take_along_axis(x, k, axis=-1)

    def split(moving: Array, best: Array, chosen: Array, *cells: Array) -> tuple[Array, ...]:
        index = positions(cells[-1], xp)
        one = index == xp.argmin(cells[-1], axis=-1, keepdims=True)
        low, at_low, high, at_high = (xp.sum(xp.where(one, cell, 0.0), axis=-1, keepdims=True) for cell in cells[:-1])
        _, k, x = bound(low, at_low, high, at_high)
        pull = xp.take_along_axis(b, k, axis=-1)
        middle = xp.take_along_axis(h, k, axis=-1) + x
        at_middle = value(middle)
        found = at_middle + pull * (pull / xp.where(x > 0, x, 1.0))
        better = moving & (found < best)
        best, chosen = xp.where(better, found, best), xp.where(better, k, chosen)
        left, right = (low, at_low, middle, at_middle), (middle, at_middle, high, at_high)
        # in place of the one that is split, and of the one that is least needed, if at all
        spare = index == xp.argmax(xp.where(one, -math.inf, cells[-1]), axis=-1, keepdims=True)
        parts = zip((*left, bound(*left)[0]), (*right, bound(*right)[0]), cells, strict=True)
        cells = tuple(xp.where(moving & one, a, xp.where(moving & spare, c, cell)) for a, c, cell in parts)
        least = xp.min(cells[-1], axis=-1, keepdims=True)
        return moving & (least < best * (1 - eps)), best, chosen, *cells

    end = xp.where(active, end, 0.0)
    start = end * (1.0 - xp.accurate_sum(u * y, (-1,)))
    zero = 0.0 * end
    lower, k, _ = bound(zero, zero, end, start)
    first = positions(xp.concat([zero] * _CELLS, axis=-1), xp) == 0
    cells = [xp.where(first, x, 0.0) for x in (zero, zero, end, start)]
    cells.append(xp.where(first, lower, math.inf))
    moving = active & (lower < start * (1 - eps))
    _, best, chosen, *_ = xp.iterate(split, (moving, start, k, *cells), _SPLITS)
    return chosen, active & (best < start)


def _multiplier(u: Array, b: Array, h: Array, gap: Array, active: Array, xp: Namespace) -> Array:
    """The least x for which ``h u / (gap - x)`` together with b / x has the norm 1; 0 where b is.

    1 / norm is concave between the poles, so that Newton's steps from the left do not go too far.
    """

    def step(moving: Array, x: Array) -> tuple[Array, Array]:
        left = gap - x
        y, t = u * (h / left), b / x
        squares = xp.accurate_sum(y * y, (-1,)) + t * t
        slope = (t * (t / x) - xp.accurate_sum(y * (y / left), (-1,))) / xp.where(squares > 0, squares, 1.0)
        further = x + xp.divide(xp.sqrt(squares) - 1.0, xp.where(slope > 0, slope, 1.0))
        further = xp.where(moving & (slope > 0) & (further > x) & (further < most), further, x)
        return further > x, further

    most = xp.min(gap, axis=-1, keepdims=True)
    moving = active & (b > 1e3 * precision(h.dtype).tiny) & (b < most)
    _, x = xp.iterate(step, (moving, xp.where(moving, b, 0.5 * most)), _STEPS)
    return xp.where(moving, x, 0.0)
