"""Sequences that rise and then fall, or fall and then rise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from projgrad.axes import Axis
from projgrad.coupled import VectorSet
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.sets.monotone import in_order, rising, with_means
from projgrad.sets.sequences import balancing, positions, shifted, weighted
from projgrad.sets.thresholds import moderating
from projgrad.values import set_count, set_flag

__all__ = ["Unimodal"]

_MOST = 100  # steps to the level of the peak, which are few


@register()
@dataclass(frozen=True, repr=False)
class Unimodal(VectorSet):
    """The unimodal sequences ``{x : x[0] <= ... <= x[p] >= ... >= x[n-1]}``, for every group of entries along `axis`.

    Not convex unless the peak p is given. Exact: isotonic regression of both sides, then one level for the peak and all
    that is above it. Cost: as `Monotone`. In a metric: the same with weighted means.

    Where the peak is any, the distance of each prefix and suffix from being monotone tells which it is, in O(n^2) time
    and memory per group. Of several peaks with nearest points at the same distance, the first is
    taken, as far as rounding lets it.

    The nearest point is the mean of `x` on each stretch where it is level. The order holds exactly.

    Args:
        peak: the index of the largest entry, counted from 0; None for any.
        valley: True for sequences that fall to the index `peak`, and rise from there.
        axis: the axis of the sequence: an int; of a tuple, None (all) or "incoming", the entries in row-major order.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        TypeError: `peak` is not an int, or `valley` not a bool.
        ValueError: `peak` is negative or not below the length of the sequence, or `rate` is outside (0, 1].

    Source: Stout, Unimodal regression via prefix isotonic regression, Computational Statistics and Data Analysis 53
    (2008).
    """

    peak: int | None = None
    valley: bool = False
    axis: Axis = -1
    rate: float = 1.0
    cone = True

    def __post_init__(self) -> None:
        super().__post_init__()
        set_flag(self, "valley")
        if self.peak is not None:
            set_count(self, "peak")

    def check_sizes(self, *sizes: int) -> None:
        if self.peak is not None and self.peak >= sizes[0]:
            raise ValueError(f"Unimodal: there is no peak={self.peak} in a sequence of {sizes[0]}")

    def holds(self, v: Array, xp: Namespace) -> Array:
        v = -v if self.valley else v
        if self.peak is not None:
            return in_order(v[..., : self.peak + 1], xp) & in_order(-v[..., self.peak :], xp)
        falls = xp.cumulative_sum(xp.astype(v[..., 1:] < v[..., :-1], xp.int32), axis=-1)
        return ~xp.any((falls > 0) & (v[..., 1:] > v[..., :-1]), axis=-1)

    def nearest(self, v: Array, xp: Namespace) -> Array:
        return self._nearest(v, None, xp)

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        return self._nearest(v, h, xp)

    def off(self, v: Array, xp: Namespace) -> Array:
        # no more than the norm where the order does not hold, for which no such group is kept
        return xp.where(self.holds(v, xp)[..., None], 0.0, xp.times(*xp.norm(v, (-1,))))

    def _nearest(self, v: Array, h: Array | None, xp: Namespace) -> Array:
        shrink = moderating(v, xp) if h is None else balancing(v, xp)
        v = (-v if self.valley else v) * shrink
        fixed, index = xp.stop_gradient(v), positions(v, xp)
        peak = _best_peak(fixed, h, xp) if self.peak is None else self.peak
        # the side beyond the peak is set so high that it has no part in the other
        top = xp.max(fixed, axis=-1, keepdims=True)
        left, right = xp.where(index < peak, fixed, top), xp.where(index > peak, fixed, top)
        if self.peak is None:  # the peak is the end of one side
            left = xp.where(index <= peak, fixed, top)
        both = None if h is None else xp.stack([h, xp.flip(h, axis=-1)])
        sides = rising(xp.stack([left, xp.flip(right, axis=-1)]), xp, both)
        left, right = sides[0, ...], xp.flip(sides[1, ...], axis=-1)
        y = xp.where(index <= peak, left, right)
        if self.peak is not None:
            y = _under_peak(y, fixed[..., peak : peak + 1], index == peak, h, xp)
        y = with_means(y, v, xp, h) / shrink
        return -y if self.valley else y

    @property
    def convex(self) -> bool:  # type: ignore[override]
        return self.peak is not None


def _under_peak(y: Array, peak: Array, at_peak: Array, h: Array | None, xp: Namespace) -> Array:
    """`y` with a level c at the peak, to which all that is above it falls by as much in sum as the peak rises."""

    heavy: Any = 1.0  # the weight of the peak
    if h is not None:
        h = h * 2.0**60
        heavy = xp.max(xp.where(at_peak, h, 0.0), axis=-1, keepdims=True)

    def step(moving: Array, c: Array) -> tuple[Array, Array]:
        above = (y > c) & ~at_peak
        fall = xp.accurate_sum(xp.where(above, weighted(y - c, h), 0.0), (-1,))
        count = heavy + xp.sum(weighted(xp.astype(above, c.dtype), h), axis=-1, keepdims=True)
        further = c + (fall - heavy * (c - peak)) / count
        return further > c, xp.maximum(further, c)

    c = xp.iterate(step, (peak == peak, 1.0 * peak), _MOST)[1]
    return xp.where(at_peak, c, xp.minimum(y, c))


def _best_peak(v: Array, h: Array | None, xp: Namespace) -> Array:
    """The index up to which `v` is best approached by a rising sequence, and from there on by a falling one."""
    scale = xp.max(xp.abs(v), axis=-1, keepdims=True)
    v = xp.divide(v, xp.where(scale > 0, scale, 1.0))
    if h is not None:
        h = xp.stack([h, xp.flip(h, axis=-1)])
    both = _prefix_errors(xp.stack([v, xp.flip(v, axis=-1)]), h, xp)
    return xp.argmin(both[0, ...] + shifted(xp.flip(both[1, ...], axis=-1), -1, xp), axis=-1, keepdims=True)


def _prefix_errors(v: Array, h: Array | None, xp: Namespace) -> Array:
    """For every entry the squared distance of the sequence up to it from the nearest that rises.

    There the last level stretch ends with this entry, and has the largest mean of all that do. Before it comes the
    nearest rising sequence to the rest.
    """
    index = positions(v, xp)
    first, last = index[..., None, :], index[..., :, None]
    rest = v[..., None, :] - v[..., :, None]  # to the entry itself, so that no digits are lost
    if h is None:
        sums = xp.cumulative_sum(v - xp.sum(v, axis=-1, keepdims=True) / v.shape[-1], axis=-1)
        before = shifted(sums, 1, xp)
        length = xp.astype(xp.where(first <= last, last - first + 1, 1), v.dtype)
        means = (sums[..., :, None] - before[..., None, :]) / length
    else:  # every stretch by itself, as differences of sums would lose all digits of light entries next to heavy ones
        h = h[..., None, :]
        weight = xp.flip(xp.where(first <= last, h, 0.0), axis=-1)
        sums = xp.cumulative_sum(weight * xp.flip(rest, axis=-1), axis=-1)
        length = xp.cumulative_sum(weight, axis=-1)
        means = v[..., :, None] + xp.flip(sums / xp.where(length > 0, length, 1.0), axis=-1)
    start = xp.argmax(xp.where(first <= last, means, -math.inf), axis=-1)
    inside = (first >= start[..., None]) & (first <= last)
    if h is None:
        count = xp.astype(index - start + 1, v.dtype)[..., None]
    else:
        count = xp.sum(xp.where(inside, h, 0.0), axis=-1, keepdims=True)
    part = xp.where(inside, weighted(rest, h), 0.0)
    rest = xp.where(inside, rest - xp.sum(part, axis=-1, keepdims=True) / count, 0.0)
    error, back = xp.sum(weighted(rest * rest, h), axis=-1), start - 1
    for _ in range(v.shape[-1].bit_length()):
        there, more = xp.where(back < 0, 0, back), back >= 0
        error = error + xp.where(more, xp.take_along_axis(error, there, axis=-1), 0.0)
        back = xp.where(more, xp.take_along_axis(back, there, axis=-1), -1)
    return error
