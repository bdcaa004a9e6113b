"""Sequences that rise and then fall, or fall and then rise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from projgrad.axes import Axis
from projgrad.coupled import VectorSet
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.sets.monotone import in_order, rising, with_means
from projgrad.sets.sequences import positions, shifted
from projgrad.sets.thresholds import moderating
from projgrad.values import set_count, set_flag

__all__ = ["Unimodal"]

_MOST = 100  # steps to the level of the peak, which are few


@register()
@dataclass(frozen=True, repr=False)
class Unimodal(VectorSet):
    """The unimodal sequences ``{x : x[0] <= ... <= x[p] >= ... >= x[n-1]}``, for every group of entries along `axis`.

    Not convex unless the peak p is given. Exact: isotonic regression of both sides, then one level for the peak and all
    that is above it. Cost: as `Monotone`.

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
        shrink = moderating(v, xp)
        v = (-v if self.valley else v) * shrink
        fixed, index = xp.stop_gradient(v), positions(v, xp)
        peak = _best_peak(fixed, xp) if self.peak is None else self.peak
        # the side beyond the peak is set so high that it has no part in the other
        top = xp.max(fixed, axis=-1, keepdims=True)
        left, right = xp.where(index < peak, fixed, top), xp.where(index > peak, fixed, top)
        if self.peak is None:  # the peak is the end of one side
            left = xp.where(index <= peak, fixed, top)
        sides = rising(xp.stack([left, xp.flip(right, axis=-1)]), xp)
        left, right = sides[0, ...], xp.flip(sides[1, ...], axis=-1)
        y = xp.where(index <= peak, left, right)
        if self.peak is not None:
            y = _under_peak(y, fixed[..., peak : peak + 1], index == peak, xp)
        y = with_means(y, v, xp) / shrink
        return -y if self.valley else y

    @property
    def convex(self) -> bool:  # type: ignore[override]
        return self.peak is not None


def _under_peak(y: Array, peak: Array, at_peak: Array, xp: Namespace) -> Array:
    """`y` with a level c at the peak, to which all that is above it falls by as much in sum as the peak rises."""

    def step(moving: Array, c: Array) -> tuple[Array, Array]:
        above = (y > c) & ~at_peak
        fall = xp.accurate_sum(xp.where(above, y - c, 0.0), (-1,))
        further = c + (fall - (c - peak)) / (1.0 + xp.sum(xp.astype(above, c.dtype), axis=-1, keepdims=True))
        return further > c, xp.maximum(further, c)

    c = xp.iterate(step, (peak == peak, 1.0 * peak), _MOST)[1]
    return xp.where(at_peak, c, xp.minimum(y, c))


def _best_peak(v: Array, xp: Namespace) -> Array:
    """The index up to which `v` is best approached by a rising sequence, and from there on by a falling one."""
    scale = xp.max(xp.abs(v), axis=-1, keepdims=True)
    v = xp.divide(v, xp.where(scale > 0, scale, 1.0))
    both = _prefix_errors(xp.stack([v, xp.flip(v, axis=-1)]), xp)
    return xp.argmin(both[0, ...] + shifted(xp.flip(both[1, ...], axis=-1), -1, xp), axis=-1, keepdims=True)


def _prefix_errors(v: Array, xp: Namespace) -> Array:
    """For every entry the squared distance of the sequence up to it from the nearest that rises.

    There the last level stretch ends with this entry, and has the largest mean of all that do. Before it comes the
    nearest rising sequence to the rest.
    """
    index = positions(v, xp)
    first, last = index[..., None, :], index[..., :, None]
    sums = xp.cumulative_sum(v - xp.sum(v, axis=-1, keepdims=True) / v.shape[-1], axis=-1)
    before = shifted(sums, 1, xp)
    length = xp.astype(xp.where(first <= last, last - first + 1, 1), v.dtype)
    means = xp.where(first <= last, (sums[..., :, None] - before[..., None, :]) / length, -math.inf)
    start = xp.argmax(means, axis=-1)
    inside = (first >= start[..., None]) & (first <= last)
    count = xp.astype(index - start + 1, v.dtype)[..., None]
    rest = v[..., None, :] - v[..., :, None]  # to the entry itself, so that no digits are lost
    rest = xp.where(inside, rest - xp.sum(xp.where(inside, rest, 0.0), axis=-1, keepdims=True) / count, 0.0)
    error, back = xp.sum(rest * rest, axis=-1), start - 1
    for _ in range(v.shape[-1].bit_length()):
        there, more = xp.where(back < 0, 0, back), back >= 0
        error = error + xp.where(more, xp.take_along_axis(error, there, axis=-1), 0.0)
        back = xp.where(more, xp.take_along_axis(back, there, axis=-1), -1)
    return error
