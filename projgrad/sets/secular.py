"""The nearest point with a given l2 norm in a diagonal metric, by the root of a secular equation."""

from __future__ import annotations

from typing import Any

from projgrad.namespace import Array, Namespace
from projgrad.precision import precision

__all__ = ["onto_shell"]

_MOST = 60  # Newton steps; 23 were the most, with weights that span 24 orders of magnitude


def onto_shell(v: Array, h: Array, low: Any, high: Any, xp: Namespace) -> Array:
    """The point y with ``low <= ||y|| <= high`` along the last axis that minimises ``sum(h * |y - v|**2)``.

    It is ``h v / (h + l)`` with the one multiplier l above ``-min h`` that meets the norm. Where there is none, as all
    entries of least weight are 0, these share what is left of the norm, equally and with a plus.

    Args:
        v: finite groups, real or complex.
        h: positive weights, at most 1.
        low, high: bounds of the norm, numbers or one per group; `high` may be infinite.
        xp: the functions to call.

    Source: Conn, Gould and Toint, Trust-Region Methods (2000), section 7.3, of which this is the case of a diagonal
    matrix: 1 / ||y|| is concave in l, so that Newton's steps from the left do not go too far.
    """
    norm = xp.times(*xp.norm(xp.stop_gradient(v), (-1,)))
    zero = 0.0 * h[..., :1]
    goal = xp.where(norm > high, high + zero, xp.where(norm < low, low + zero, zero))
    outside = (norm > high) | (norm < low)
    unit = xp.where(goal > 0, goal, 1.0)
    a = xp.divide(v, unit)
    fixed = xp.stop_gradient(a)
    # with m = l + min h, in which the digits of a multiplier close to -min h are not lost
    above, tiny = h - xp.min(h, axis=-1, keepdims=True), 1e3 * precision(h.dtype).tiny
    size = xp.abs(fixed) * h

    def newton(m: Array) -> tuple[Array, Array]:
        """The norm of y, and the slope of its logarithm."""
        below = above + m
        y = size / below
        squares = xp.sum(y * y, axis=-1, keepdims=True)
        slope = xp.sum(y * (y / below), axis=-1, keepdims=True)
        return xp.sqrt(squares), slope / xp.where(squares > 0, squares, 1.0)

    def step(moving: Array, m: Array) -> tuple[Array, Array]:
        norm, slope = newton(m)
        further = m + (norm - 1.0) / xp.where(slope > 0, slope, 1.0)
        further = xp.where(moving & (slope > 0) & (further > m), further, m)
        return further > m, further

    # no entry has more than the norm by itself; from there on, none is larger than 1
    start = xp.max(size - above, axis=-1, keepdims=True)
    start = xp.where(outside, xp.where(start > tiny, start, tiny + zero), 1e30 + zero)
    _, m = xp.iterate(step, (outside & (goal > 0), start), _MOST)
    if xp.may_differentiate(v):  # that of the root
        slope = newton(m)[1]
        change = xp.times(*xp.norm(xp.times(a, h / (above + m)), (-1,)))
        change = (change - xp.stop_gradient(change)) / xp.where(slope > 0, slope, 1.0)
        m = m + xp.where(slope > 0, change, 0.0)
    # what is not larger than rounding has no part in it
    free = xp.stop_gradient(above + m) <= 2 * tiny
    y = xp.times(a, xp.where(free, 0.0, h / (above + m)))
    norm = xp.sqrt(xp.accurate_sum(xp.abs(xp.stop_gradient(y)) ** 2, (-1,)))
    missing = xp.any(free, axis=-1, keepdims=True) & (norm < 1)
    count = xp.sum(xp.astype(free, norm.dtype), axis=-1, keepdims=True)
    rest = xp.sqrt(xp.where(missing, (1.0 - norm) * (1.0 + norm) / xp.where(missing, count, 1.0), 1.0))
    negative = xp.real(fixed) < 0 if xp.is_complex(fixed) else fixed < 0
    y = xp.where(missing & free, xp.astype(xp.where(negative, -rest, rest), y.dtype), y)
    y = xp.times(y, unit / xp.where(missing, 1.0, xp.where(norm > 0, norm, 1.0)))
    return xp.where(outside, xp.where(goal > 0, y, 0.0 * y), v)
