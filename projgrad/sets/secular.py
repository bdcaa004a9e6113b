"""The nearest point with a given l2 norm in a diagonal metric, by the root of a secular equation."""

from __future__ import annotations

from typing import Any

from projgrad.namespace import Array, Namespace
from projgrad.precision import precision

__all__ = ["onto_shell"]

_MOST = 60  # Newton steps; 9 were the most in groups of up to a million entries


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
    least = xp.min(h, axis=-1, keepdims=True)
    above, tiny = h - least, 1e3 * precision(h.dtype).tiny

    def point(a: Array, m: Array) -> Array:
        below = above + m
        return xp.times(a, xp.where(below > tiny, h / xp.where(below > tiny, below, 1.0), 0.0))

    def newton(y: Array, m: Array) -> tuple[Array, Array]:
        """The norm of `y`, and the slope of the logarithm of it."""
        size = xp.times(*xp.norm(y, (-1,)))
        below = above + m
        part = xp.abs(xp.divide(y, xp.where(size > 0, size, 1.0)))
        slope = part * xp.where(below > tiny, part / xp.where(below > tiny, below, 1.0), 0.0)
        return size, xp.sum(slope, axis=-1, keepdims=True)

    def step(moving: Array, m: Array) -> tuple[Array, Array]:
        size, slope = newton(point(fixed, m), m)
        further = m + (size - 1.0) / xp.where(slope > 0, slope, 1.0)
        further = xp.where(moving & (slope > 0) & (further > m), further, m)
        return further > m, further

    # every entry by itself has at most the norm
    start = xp.max(xp.times(xp.abs(fixed), h) - above, axis=-1, keepdims=True)
    start = xp.where((start > 0) & outside, start, 0.0)
    _, m = xp.iterate(step, (outside & (goal > 0), start), _MOST)
    # once more, with the derivative of the root
    y = point(fixed, m)
    size, slope = newton(y, m)
    if xp.may_differentiate(v):
        change = xp.times(*xp.norm(point(a, m), (-1,))) - size
        y = point(
            a, m + xp.where(slope > 0, (change - xp.stop_gradient(change)) / xp.where(slope > 0, slope, 1.0), 0.0)
        )
    free = above + m <= tiny
    missing = xp.any(free, axis=-1, keepdims=True) & (size < 1)
    count = xp.sum(xp.astype(free, size.dtype), axis=-1, keepdims=True)
    rest = xp.sqrt(xp.where(missing, (1.0 - size) * (1.0 + size) / xp.where(missing, count, 1.0), 1.0))
    sign = xp.where(xp.real(fixed) < 0, -rest, rest) if xp.is_complex(fixed) else xp.where(fixed < 0, -rest, rest)
    y = xp.where(missing & free, xp.astype(sign, y.dtype), y)
    y = xp.times(y, unit / xp.where(missing, 1.0, xp.where(size > 0, size, 1.0)))
    return xp.where(outside, xp.where(goal > 0, y, 0.0 * y), v)
