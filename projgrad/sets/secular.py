"""The nearest point with a given l2 norm in a diagonal metric, by the root of a secular equation."""

from __future__ import annotations

from typing import Any

from projgrad.namespace import Array, Namespace
from projgrad.precision import precision

__all__ = ["onto_shell"]

_MOST = 30  # steps; 24 were the most, with weights that span 24 orders of magnitude, and 2 or 3 are usual


def onto_shell(
    v: Array, h: Array, low: Any, high: Any, xp: Namespace, norm: tuple[Array, Array] | None = None
) -> Array:
    """The point y with ``low <= ||y|| <= high`` along the last axis that minimises ``sum(h * |y - v|**2)``.

    It is ``h v / (h + l)`` with the one multiplier l above ``-min h`` that meets the norm. Where there is none, as all
    entries of least weight are 0, these share what is left of the norm, equally and with a plus.

    Args:
        v: finite groups, real or complex.
        h: positive weights, at most 1.
        low, high: bounds of the norm, numbers or one per group; `high` may be infinite.
        xp: the functions to call.
        norm: that of every group, where it is known, as the two factors that `Namespace.norm` gives.

    Source: Conn, Gould and Toint, Trust-Region Methods (2000), section 7.3, of which this is the case of a diagonal
    matrix.
    """
    fixed, zero = xp.stop_gradient(v), 0.0 * h[..., :1]
    largest, u = (xp.stop_gradient(factor) for factor in norm or xp.norm(v, (-1,)))
    largest = xp.where(largest > 0, largest, 1.0)
    length = xp.times(largest, u)
    pull = xp.times(*xp.norm(xp.times(xp.divide(fixed, largest), h), (-1,)))  # ||h v||, relative to the largest entry
    ratio = pull / xp.where(u > 0, u, 1.0)
    goal = xp.where(length > high, high + zero, xp.where(length < low, low + zero, zero))
    outside = (length > high) | (length < low)
    # the direction of y no longer depends on the length of v where l is that large
    unit = xp.maximum(xp.where(goal > 0, goal, 1.0), xp.times(largest, precision(h.dtype).unit ** 1.5 * pull))
    a = xp.divide(fixed, unit)
    # with m = l + min h, in which the digits of a multiplier close to -min h are not lost
    least, tiny = xp.min(h, axis=-1, keepdims=True), 1e3 * precision(h.dtype).tiny
    above, size = h - least, xp.abs(a) * h
    start = xp.max(size - above, axis=-1, keepdims=True)  # as no entry has more than the norm by itself
    start = xp.where(length > high, xp.maximum(start, least), start)  # l is above 0 where it is too long
    start = xp.where(start > tiny, start, tiny + zero)
    # l is 0 where the norm is met, and more or less in proportion to what is too much
    guess = least + xp.where(length > high, xp.times(largest, pull / unit) - ratio, 0.0)
    moving = outside & (goal > 0)
    state = (moving, xp.where(moving, xp.maximum(start, guess), 1.0), start)
    _, m, _ = xp.iterate(lambda go, m, low: _step(go, m, low, above, size, xp), state, _MOST)

    def shared(y: Array) -> Array:
        """What is not larger than rounding has no part in y, but shares what is left of the norm."""
        free = above + m <= 2 * tiny
        bound = xp.where(free, xp.zeros_like(y), y)
        rest = 1.0 - xp.accurate_sum(xp.abs(bound) ** 2, (-1,))
        count = xp.sum(xp.astype(free, rest.dtype), axis=-1, keepdims=True)
        rest = xp.sqrt(xp.where((rest > 0) & (count > 0), rest / xp.where(count > 0, count, 1.0), 0.0))
        negative = xp.real(a) < 0 if xp.is_complex(a) else a < 0
        return xp.where(free, xp.astype(xp.where(negative, -rest, rest), y.dtype), y)

    y = xp.unless((m > 2 * tiny) | ~moving, shared, xp.times(a, h / (above + m)))
    length = xp.sqrt(xp.accurate_sum(xp.abs(y) ** 2, (-1,)))
    by = goal / xp.where(length > 0, length, 1.0)

    def derivative(d: Array) -> Array:
        """That of the multiplier from ``||y|| = 1``, and of y."""
        free = above + m <= 2 * tiny
        bound = xp.where(free, 0.0, 1.0 / (above + m))
        direct = xp.times(d, h * bound * by / unit)
        slope = xp.sum(xp.abs(y) ** 2 * bound, axis=-1, keepdims=True)
        along = xp.real(y) * xp.real(direct)
        along = along + xp.imag(y) * xp.imag(direct) if xp.is_complex(y) else along
        change = xp.sum(along, axis=-1, keepdims=True) / xp.where(slope > 0, slope, 1.0)
        change = xp.where((slope > 0) & ~xp.any(free, axis=-1, keepdims=True), change, 0.0)
        return xp.where(outside, direct - xp.times(y, bound * change), d)

    return xp.with_derivative(xp.where(outside, xp.times(y, by), fixed), v, derivative)


def _step(moving: Array, m: Array, low: Array, above: Array, size: Array, xp: Namespace) -> tuple[Array, Array, Array]:
    """A step to the m for which the norm of ``y = size / (above + m)`` is 1, from where it is known to be above `low`.

    Newton's step on ``1 / ||y||``, which is concave in m, ends below the root, wherever it starts. What has the same
    value and two derivatives as ``||y||^2`` and the form ``p / (q + m)^2 + c`` has its root beyond the one that is
    sought, but closer by one more order. That is the step, where it is not less than Newton's.
    """
    below = above + m
    y, part = size / below, m / below
    z = y * part
    squares, slope, bend = (xp.sum(s, axis=-1, keepdims=True) for s in (y * y, y * z, z * z))
    # the steps, relative to m; `scale` is (q + m) / m
    sloped = slope > 0
    norm, slope = xp.sqrt(squares), xp.where(sloped, slope, 1.0)
    newton = m + m * ((norm - 1.0) * squares / slope)
    low = xp.where(sloped & (newton > low), newton, low)
    scale = slope / xp.where(bend > 0, bend, 1.0)
    rest = 1.0 - squares + slope * scale  # 1 - c
    more = (norm - 1.0) * (norm + 1.0) / xp.where(rest > 0, rest, 1.0)
    further = m + m * (scale * more / (1.0 + xp.sqrt(xp.where(more > -1.0, 1.0 + more, 0.0))))
    further = xp.where((bend > 0) & (rest > 0) & (further > low), further, low)
    # what is left is of the order of the product of the two relative changes, unless entries rise that were hardly seen
    going = xp.abs(norm - 1.0) * xp.abs(further - m) > precision(m.dtype).unit * scale * m
    going = going | (further < 0.9 * m)
    return moving & going, xp.where(moving, further, m), low
