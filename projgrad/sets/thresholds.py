"""The threshold of every group for which its entries, cut off there, have a given sum."""

from __future__ import annotations

import math
from typing import Any

from projgrad.namespace import Array, Namespace

__all__ = ["above_threshold", "moderating", "signs", "within_bounds"]

_MOST = 75  # Newton steps; 11 were the most in groups of up to a million entries
_SHORT = 128  # entries, of which the tolerance allows for the rounding of the sum


def signs(v: Array, xp: Namespace) -> Array:
    """-1 where `v` is negative, and 1 elsewhere."""
    return xp.where(v < 0, -xp.ones_like(v), xp.ones_like(v))


def moderating(v: Array, xp: Namespace, last: tuple[int, ...] = (-1,)) -> Array:
    """A power of 2 for every group along the `last` axes that takes huge entries to where sums do not overflow."""
    top = xp.max(xp.abs(xp.stop_gradient(v)), axis=last, keepdims=True)
    return xp.where(top > 2.0**64, 2.0**-64, xp.ones_like(top))


def above_threshold(v: Array, total: Any, xp: Namespace) -> Array:
    """``max(v - t, 0)`` along the last axis with the t for which it sums to `total`."""

    def rest(y: Array) -> tuple[Array, Array]:
        above = xp.stop_gradient(y) > 0
        return above, share(xp.accurate_sum(xp.where(above, y, 0.0), (-1,)) - total, above, xp)

    def step(moving: Array, t: Array) -> tuple[Array, Array]:
        further = t + rest(fixed - t)[1]
        return further > t, xp.maximum(further, t)

    v = v - xp.stop_gradient(xp.max(v, axis=-1, keepdims=True))  # t is now between -total and 0
    fixed = xp.stop_gradient(v)
    total = xp.zeros_like(fixed[..., :1]) + total  # an array, as compiled loops take no numbers that may change
    t = -total
    _, t = xp.iterate(step, (xp.isfinite(t), t), _MOST)
    # once more from v - t, where the digits that v has beyond t are not lost, and with the derivative
    above, more = rest(v - t)
    y = v - t - more
    return xp.where(above & (y > 0), y, 0.0)


def within_bounds(v: Array, total: Any, lower: Array, upper: Array, xp: Namespace) -> Array:
    """``clip(v - t, lower, upper)`` along the last axis with the t for which it sums to `total`."""
    # two arrays, as compiled loops take no numbers that may change, and single precision not all digits of this one
    scaled = total * (2.0**30 + 1)
    first = scaled - (scaled - total) if isinstance(total, float) else total
    total = tuple(xp.zeros_like(v[..., :1]) + part for part in (first, total - first))
    for _ in range(2):  # the second time from v - t, where the digits that v has beyond t are not lost
        v = v - _threshold(xp.stop_gradient(v), total, lower, upper, xp)
    fixed = xp.stop_gradient(v)
    free = (fixed > lower) & (fixed < upper)
    bound = xp.where(fixed > lower, upper, lower)
    y = v - share(excess(xp.where(free, v, bound), total, xp), free, xp)  # with the derivative
    return xp.where(free, xp.where(y < lower, lower, xp.where(y > upper, upper, y)), bound)


def _threshold(v: Array, total: tuple[Array, Array], lower: Array, upper: Array, xp: Namespace) -> Array:
    """The t of `within_bounds`, as far as the digits of `v` tell it."""
    leaves, arrives = v - upper, v - lower  # the t at which an entry leaves its upper bound, and gets to its lower one
    ends = xp.sort(xp.concat([leaves, arrives], axis=-1), axis=-1)
    most = ends.shape[-1]

    def at(index: Array) -> Array:
        return xp.take_along_axis(ends, xp.where(index < 0, 0, xp.where(index < most, index, most - 1)), axis=-1)

    def step(moving: Array, first: Array, last: Array) -> tuple[Array, Array, Array]:
        middle = (first + last) // 2
        t = at(middle)
        finite = xp.isfinite(t)  # an end at infinity is that of an infinite bound, which makes the sum infinite
        y = xp.where(leaves >= t, upper, xp.where(arrives <= t, lower, v - t))
        enough = xp.where(finite, excess(xp.where(finite, y, 0.0), total, xp) >= 0, t < 0)
        first, last = xp.where(moving & enough, middle + 1, first), xp.where(moving & ~enough, middle, last)
        return first < last, first, last

    # how many of the ends have a sum of at least `total`
    first = xp.argmax(ends[..., :1], axis=-1, keepdims=True)  # 0, in the dtype of an index
    _, count, _ = xp.iterate(step, (first < most, first, first + most), most.bit_length() + 1)
    below = xp.where(count > 0, at(count - 1), -math.inf)
    above = xp.where(count < most, at(count), math.inf)
    free = (leaves <= below) & (arrives >= above)
    t = share(excess(xp.where(free, v, xp.where(arrives <= below, lower, upper)), total, xp), free, xp)
    t = xp.where(t < below, below, xp.where(t > above, above, t))
    return xp.where(xp.any(free, axis=-1, keepdims=True), t, xp.where(xp.isfinite(below), below, above))


def share(much: Array, free: Array, xp: Namespace) -> Array:
    """By how much every `free` entry has to fall for the sum along the last axis to fall by so much."""
    count = xp.sum(xp.astype(free, much.dtype), axis=-1, keepdims=True)
    return much / xp.where(count > 0, count, 1.0)


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
