"""The threshold of every group for which its entries, cut off there, have a given sum.

In a metric with the weights h, it is not the same for all entries, but ``t w`` with w = 1 / h.
"""

from __future__ import annotations

import math
from typing import Any

from projgrad.namespace import Array, Namespace

__all__ = ["above_threshold", "moderating", "off_sum", "signs", "within_bounds"]

_MOST = 75  # Newton steps; 11 were the most in groups of up to a million entries
_SHORT = 128  # entries, of which the tolerance allows for the rounding of the sum


def signs(v: Array, xp: Namespace) -> Array:
    """-1 where `v` is negative, and 1 elsewhere."""
    return xp.where(v < 0, -xp.ones_like(v), xp.ones_like(v))


def moderating(v: Array, xp: Namespace, last: tuple[int, ...] = (-1,)) -> Array:
    """A power of 2 for every group along the `last` axes that takes huge entries to where sums do not overflow."""
    top = xp.max(xp.abs(xp.stop_gradient(v)), axis=last, keepdims=True)
    return xp.where(top > 2.0**64, 2.0**-64, xp.ones_like(top))


def above_threshold(v: Array, total: Any, xp: Namespace, w: Array | None = None) -> Array:
    """``max(v - t w, 0)`` along the last axis with the t for which it sums to `total`; w is 1 where it is None."""

    def rest(y: Array) -> tuple[Array, Array]:
        above = xp.stop_gradient(y) > 0
        return above, share(xp.accurate_sum(xp.where(above, y, 0.0), (-1,)) - total, above, xp, w)

    def step(moving: Array, t: Array) -> tuple[Array, Array]:
        further = t + rest(fixed - scaled(t, w, xp))[1]
        return further > t, xp.maximum(further, t)

    total = xp.zeros_like(v[..., :1]) + total  # an array, as compiled loops take no numbers that may change
    fixed = xp.stop_gradient(v)
    if w is None:
        v = v - xp.max(fixed, axis=-1, keepdims=True)  # t is now between -total and 0
        t = -total
    else:  # no entry is above the total, whatever its digits say
        start = (fixed - total) / w
        most = xp.max(start, axis=-1, keepdims=True)
        low = fixed - xp.times(most, w)
        v = xp.graft(xp.where((start >= most) | (low > total), total, low), v)
        t = 0.0 * total
    fixed = xp.stop_gradient(v)
    _, t = xp.iterate(step, (xp.isfinite(t), t), _MOST)
    # once more from v - t w, where the digits that v has beyond it are not lost, and with the derivative
    v = v - scaled(t, w, xp)
    above, more = rest(v)
    y = v - scaled(more, w, xp)
    return xp.where(above & (y > 0), y, 0.0)


def within_bounds(v: Array, total: Any, lower: Array, upper: Array, xp: Namespace, w: Array | None = None) -> Array:
    """``clip(v - t w, lower, upper)`` along the last axis with the t for which it sums to `total`."""
    # two arrays, as compiled loops take no numbers that may change, and single precision not all digits of this one
    large = total * (2.0**30 + 1)
    first = large - (large - total) if isinstance(total, float) else total
    total = tuple(xp.zeros_like(v[..., :1]) + part for part in (first, total - first))
    most = 1e-3 * xp.largest(v.dtype)
    for _ in range(2):  # the second time from v - t w, where the digits that v has beyond it are not lost
        v = v - scaled(_threshold(xp.stop_gradient(v), total, lower, upper, xp, w), w, xp)
        v = v if w is None else xp.where(v > most, most, xp.where(v < -most, -most, v))  # `t w` may be infinite
    fixed = xp.stop_gradient(v)
    free = (fixed > lower) & (fixed < upper)
    bound = xp.where(fixed > lower, upper, lower)
    y = v - scaled(share(excess(xp.where(free, v, bound), total, xp), free, xp, w), w, xp)  # with the derivative
    return xp.where(free, xp.where(y < lower, lower, xp.where(y > upper, upper, y)), bound)


def off_sum(v: Array, total: Any, xp: Namespace) -> Array:
    """How far a group that is close to a sum of `total` is from it, where only entries that are not 0 can move."""
    count = xp.sum(xp.astype(v != 0, v.dtype), axis=-1, keepdims=True)
    return xp.abs(xp.accurate_sum(v, (-1,)) - total) / xp.sqrt(xp.where(count > 0, count, 1.0))


def _threshold(
    v: Array, total: tuple[Array, Array], lower: Array, upper: Array, xp: Namespace, w: Array | None
) -> Array:
    """The t of `within_bounds`, as far as the digits of `v` tell it."""
    leaves, arrives = v - upper, v - lower  # the t at which an entry leaves its upper bound, and gets to its lower one
    if w is not None:
        leaves, arrives = leaves / w, arrives / w
    ends = xp.sort(xp.concat([leaves, arrives], axis=-1), axis=-1)
    most = ends.shape[-1]

    def at(index: Array) -> Array:
        return xp.take_along_axis(ends, xp.where(index < 0, 0, xp.where(index < most, index, most - 1)), axis=-1)

    def step(moving: Array, first: Array, last: Array) -> tuple[Array, Array, Array]:
        middle = (first + last) // 2
        t = at(middle)
        finite = xp.isfinite(t)  # an end at infinity is that of an infinite bound, which makes the sum infinite
        y = xp.where(leaves >= t, upper, xp.where(arrives <= t, lower, v - scaled(t, w, xp)))
        enough = xp.where(finite, excess(xp.where(finite, y, 0.0), total, xp) >= 0, t < 0)
        first, last = xp.where(moving & enough, middle + 1, first), xp.where(moving & ~enough, middle, last)
        return first < last, first, last

    # how many of the ends have a sum of at least `total`
    first = xp.argmax(ends[..., :1], axis=-1, keepdims=True)  # 0, in the dtype of an index
    _, count, _ = xp.iterate(step, (first < most, first, first + most), most.bit_length() + 1)
    below = xp.where(count > 0, at(count - 1), -math.inf)
    above = xp.where(count < most, at(count), math.inf)
    free = (leaves <= below) & (arrives >= above)
    t = share(excess(xp.where(free, v, xp.where(arrives <= below, lower, upper)), total, xp), free, xp, w)
    t = xp.where(t < below, below, xp.where(t > above, above, t))
    return xp.where(xp.any(free, axis=-1, keepdims=True), t, xp.where(xp.isfinite(below), below, above))


def share(much: Array, free: Array, xp: Namespace, w: Array | None = None) -> Array:
    """The t for which the sum along the last axis falls by so much, where every `free` entry falls by ``t w``."""
    of_one = xp.astype(free, much.dtype) if w is None else xp.where(free, w, 0.0)
    count = xp.sum(of_one, axis=-1, keepdims=True)
    return much / xp.where(count > 0, count, 1.0)


def scaled(t: Array, w: Array | None, xp: Namespace) -> Array:
    """``t w``, with 1 for a w that is None."""
    return t if w is None else xp.times(t, w)


def excess(y: Array, total: tuple[Array, Array], xp: Namespace) -> Array:
    """``sum(y) - total`` along the last axis, with the total in two parts.

    One free entry makes up for the sum of all, in which its digits may be lost. So a long sum is taken in two parts,
    the first of multiples of one small number, which a sum of them is too, without any rounding.
    """
    size, (first, rest) = y.shape[-1], total
    if size <= _SHORT:
        return (xp.accurate_sum(y, (-1,)) - first) - rest
    fixed = xp.stop_gradient(y)
    large = (2.0 * size) * xp.max(xp.abs(fixed), axis=-1, keepdims=True)
    coarse = (fixed + large) - large
    return (xp.sum(coarse, axis=-1, keepdims=True) - first) + (xp.accurate_sum(y - coarse, (-1,)) - rest)
