"""Sequences that rise, or that fall."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from projgrad.axes import Axis
from projgrad.coupled import VectorSet
from projgrad.namespace import Array, Namespace
from projgrad.precision import precision
from projgrad.registry import register
from projgrad.sets.sequences import Runs, after, balancing, positions, shifted, weighted
from projgrad.sets.thresholds import moderating
from projgrad.values import check_bounds, native_group, set_flag

__all__ = ["Monotone", "in_order", "rising", "with_means"]

_PIECE = 16  # sequences up to here are done by the means of all their stretches
_MOST = 100  # steps to the level where two halves meet; 25 were the most in groups of 10,000


@register()
@dataclass(frozen=True, repr=False)
class Monotone(VectorSet):
    """The monotone sequences ``{x : lower <= x[0] <= x[1] <= ... <= upper}``, for every group of entries along `axis`.

    Convex. Exact: isotonic regression by halves, then clipping to the bounds. Cost: O(n log n), times the steps to the
    level where two halves meet, of which 25 were the most seen in 10,000 entries; O(16 n) for up to 16 entries. In a
    metric: the same with weighted means.

    The nearest point is the mean of `x` on each stretch where it is level. The order holds exactly, a bound up to the
    tolerance, unless it is 0.

    Args:
        increasing: False for sequences that do not rise.
        lower: a number, or -inf for no bound.
        upper: a number, or inf for no bound.
        axis: the axis of the sequence: an int; of a tuple, None (all) or "incoming", the entries in row-major order.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        TypeError: `increasing` is not a bool.
        ValueError: a bound is not a number, `lower` exceeds `upper`, no finite number lies between them, or `rate` is
            outside (0, 1].

    Source: Barlow, Bartholomew, Bremner and Brunk, Statistical Inference under Order Restrictions (1972), chapter 1.
    """

    increasing: bool = True
    lower: float = -math.inf
    upper: float = math.inf
    axis: Axis = -1
    rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        set_flag(self, "increasing")
        check_bounds(self)
        for name in ("lower", "upper"):
            if np.shape(getattr(self, name)):
                raise ValueError(f"Monotone: {name} must be a number")

    def holds(self, v: Array, xp: Namespace) -> Array:
        lower, upper = (native_group(bound, v, xp) for bound in (self.lower, self.upper))
        signs = ((v >= 0) | (lower != 0)) & ((v <= 0) | (upper != 0))
        return xp.all(signs, axis=-1) & in_order(v if self.increasing else -v, xp)

    def nearest(self, v: Array, xp: Namespace) -> Array:
        return self._nearest(v, None, xp)

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        return self._nearest(v, h, xp)

    def _nearest(self, v: Array, h: Array | None, xp: Namespace) -> Array:
        lower, upper = (native_group(bound, v, xp) for bound in (self.lower, self.upper))
        if not self.increasing:
            v, h = xp.flip(v, axis=-1), None if h is None else xp.flip(h, axis=-1)
        y = with_means(rising(xp.stop_gradient(v), xp, h), v, xp, h)
        y = xp.where(y < lower, lower, xp.where(y > upper, upper, y))
        return y if self.increasing else xp.flip(y, axis=-1)

    def off(self, v: Array, xp: Namespace) -> Array:
        lower, upper = (native_group(bound, v, xp) for bound in (self.lower, self.upper))
        away = xp.where(v < lower, lower - v, xp.where(v > upper, v - upper, 0.0))
        # no more than the norm where the order does not hold, for which no such group is kept
        away = xp.where(self.holds(v, xp)[..., None], away, v)
        return xp.times(*xp.norm(away, (-1,)))

    @property
    def cone(self) -> bool:  # type: ignore[override]
        return all(isinstance(v, float) and v in (0, math.inf, -math.inf) for v in (self.lower, self.upper))


def in_order(v: Array, xp: Namespace) -> Array:
    """Whether no entry is below the one before."""
    return xp.all(v[..., 1:] >= v[..., :-1], axis=-1)


def with_means(y: Array, v: Array, xp: Namespace, h: Array | None = None) -> Array:
    """`y`, with the derivative of the means of `v` over the stretches where `y` is level; weighted by h, if any."""

    def derivative(d: Array) -> Array:
        return Runs(after(y != shifted(y, -1, xp), xp), xp).means(d, h)

    return xp.with_derivative(y, v, derivative)


def rising(v: Array, xp: Namespace, h: Array | None = None) -> Array:
    """The nearest sequence that does not fall, along the last axis, in the metric h, if any; without a derivative.

    Pieces that rise are joined in pairs to pieces that rise, all of one length at once, in about ``log2(n)`` levels.
    """
    n, batch = v.shape[-1], tuple(v.shape)[:-1]
    shrink = moderating(v, xp) if h is None else balancing(v, xp)
    v = v * shrink
    size = 1 << (n - 1).bit_length()
    top = xp.max(v, axis=-1, keepdims=True)
    y = xp.concat([v] + [top] * (size - n), axis=-1)  # what is at the top leaves the rest as it is
    if h is not None:
        h = xp.concat([h * 2.0**60] + [xp.ones_like(top)] * (size - n), axis=-1)
    piece = min(size, _PIECE)
    pieces = (*batch, size // piece, piece)
    y = _rising_piece(xp.reshape(y, pieces), None if h is None else xp.reshape(h, pieces), xp)
    while piece < size:
        pairs = (*batch, size // (2 * piece), 2, piece)
        y = _joined(xp.reshape(y, pairs), None if h is None else xp.reshape(h, pairs), xp)
        piece *= 2
    y = xp.reshape(y, (*batch, size))
    return y[..., :n] / shrink


def _rising_piece(v: Array, h: Array | None, xp: Namespace) -> Array:
    """The same for a few entries, by ``y[i] = max(min(mean(v[a], ..., v[b]) for b >= i) for a <= i)``."""
    size, index = v.shape[-1], positions(v, xp)
    start, end = index[..., :, None], index[..., None, :]
    inside = end >= start
    if h is None:
        around = v - xp.sum(v, axis=-1, keepdims=True) / size
        sums = xp.cumulative_sum(around, axis=-1)
        more = xp.astype(end - start, v.dtype)
        rest = sums[..., None, :] - sums[..., :, None] - more * around[..., :, None]
        rest = rest / xp.where(inside, more + 1.0, 1.0)
    else:  # every stretch by itself, as differences of sums would lose all digits of light entries after heavy ones
        weight = xp.where(inside, h[..., None, :], 0.0)
        rest = xp.cumulative_sum(weight * (v[..., None, :] - v[..., :, None]), axis=-1)
        rest = rest / xp.where(inside, xp.cumulative_sum(weight, axis=-1), 1.0)
    least = xp.where(inside, v[..., :, None] + rest, math.inf)
    by = 1
    while by < size:  # of what ends here or later
        least = xp.minimum(least, xp.where(end < size - by, xp.roll(least, -by, axis=-1), math.inf))
        by *= 2
    return xp.max(xp.where(inside, least, -math.inf), axis=-2)


def _joined(pairs: Array, h: Array | None, xp: Namespace) -> Array:
    """For every pair of rising sequences, of shape (2, n), the rising sequence nearest to one after the other.

    What is above a level c on the left, and below it on the right, becomes c, where the one has to fall by as much in
    sum as the other has to rise: a root, by Newton's method between bounds.
    """
    unit = precision(pairs.dtype).unit
    weights = (None, None) if h is None else (h[..., 0, :], h[..., 1, :])
    low, high = xp.min(pairs[..., 1, :], axis=-1, keepdims=True), xp.max(pairs[..., 0, :], axis=-1, keepdims=True)
    crossing = high > low

    def step(moving: Array, c: Array, low: Array, high: Array, width: Array) -> tuple[Array, ...]:
        above, below = pairs[..., 0, :] - c, c - pairs[..., 1, :]
        falls, rises = (weighted(xp.astype(x > 0, c.dtype), w) for x, w in zip((above, below), weights, strict=True))
        count = xp.sum(falls + rises, axis=-1, keepdims=True)
        fall = xp.accurate_sum(xp.where(above > 0, weighted(above, weights[0]), 0.0), (-1,))
        rise = xp.accurate_sum(xp.where(below > 0, weighted(below, weights[1]), 0.0), (-1,))
        low, high = xp.where(fall > rise, c, low), xp.where(fall < rise, c, high)
        by = (fall - rise) / xp.where(count > 0, count, 1.0)
        small, same = 2 * unit * xp.abs(c), xp.abs(fall - rise) <= 2 * unit * (fall + rise)
        if h is None:
            found = (xp.abs(by) <= small) | same
        else:  # a short step may only be one up to a heavy entry, so look beyond it
            found = (high - low <= 2 * small) | same
            by = xp.where(xp.abs(by) <= small, xp.where(fall > rise, 2 * small, -2 * small), by)
        # halve the bounds where Newton's step leaves them, or where they have not become half as wide
        astray = (c + by < low) | (c + by > high) | (high - low > 0.5 * width)
        new = xp.where(~found & astray, low + 0.5 * (high - low), xp.minimum(xp.maximum(c + by, low), high))
        return moving & ~found & (new != c), xp.where(moving, new, c), low, high, high - low

    c = xp.where(crossing, low + 0.5 * (high - low), high)
    c = xp.iterate(step, (crossing, c, low, high, 4.0 * (high - low)), _MOST)[1]
    return xp.concat([xp.minimum(pairs[..., 0, :], c), xp.maximum(pairs[..., 1, :], c)], axis=-1)
