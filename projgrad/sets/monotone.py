"""Sequences that rise, or that fall."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from projgrad.axes import Axis
from projgrad.coupled import VectorSet
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.sets.sequences import Runs, after, balancing, positions, running_sums, shifted, weighted
from projgrad.sets.thresholds import moderating
from projgrad.values import check_bounds, is_infinite, native_group, set_flag

__all__ = ["Monotone", "in_order", "rising", "with_means"]

_PIECE = 8  # sequences up to here are done by the means of all their stretches
_FEW = 16  # entries, for which a call per sequence costs more where there are many


@register()
@dataclass(frozen=True, repr=False)
class Monotone(VectorSet):
    """The monotone sequences ``{x : lower <= x[0] <= x[1] <= ... <= upper}``, for every group of entries along `axis`.

    Convex. Exact: isotonic regression, then clipping to the bounds. Cost: O(n) on the CPU where nothing is compiled and
    SciPy is installed, which pools neighbours one by one; O(n log n) elsewhere, by halves. In a metric: the same with
    weighted means.

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
        lower, upper = self._bounds(v, xp)
        holds = in_order(v if self.increasing else -v, xp)
        if lower is not None:
            holds = holds & xp.all((v >= 0) | (lower != 0), axis=-1)
        return holds if upper is None else holds & xp.all((v <= 0) | (upper != 0), axis=-1)

    def _bounds(self, v: Array, xp: Namespace) -> tuple[Array | None, Array | None]:
        """The bounds for groups as those of `v`, None where there is none."""

        def bound(number: Any) -> Array | None:
            return None if is_infinite(number) else native_group(number, v, xp)

        return bound(self.lower), bound(self.upper)

    def nearest(self, v: Array, xp: Namespace) -> Array:
        return self._nearest(v, None, xp)

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        return self._nearest(v, h, xp)

    def _nearest(self, v: Array, h: Array | None, xp: Namespace) -> Array:
        lower, upper = self._bounds(v, xp)
        if not self.increasing:
            v, h = xp.flip(v, axis=-1), None if h is None else xp.flip(h, axis=-1)
        y = with_means(rising(xp.stop_gradient(v), xp, h), v, xp, h)
        y = y if upper is None else xp.where(y > upper, upper, y)
        y = y if lower is None else xp.where(y < lower, lower, y)
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
    """The nearest sequence that does not fall, along the last axis, in the metric h, if any; without a derivative."""
    y = xp.on_host(_pooled, v, *([] if h is None else [h])) if v.shape[-1] > _FEW else None
    if y is not None:
        return y
    shrink = moderating(v, xp) if h is None else balancing(v, xp)
    return _merged(v * shrink, h, xp) / shrink


def _pooled(v: np.ndarray, h: np.ndarray | None = None) -> np.ndarray | None:
    """The same by pooling neighbours one by one, where there is SciPy's compiled loop for it."""
    pool = _pooling_loop()
    if pool is None:
        return None
    y = np.empty_like(v)
    for i in np.ndindex(v.shape[:-1]):
        weights = None if h is None else h[i]
        # the loop is in double precision, in which no product of single precision overflows
        y[i] = pool(v[i], weights=weights).x if v.dtype == np.float32 else _pooled_again(v[i], weights, pool)
    return y


def _pooled_again(v: np.ndarray, h: np.ndarray | None, pool: Callable[..., Any]) -> np.ndarray:
    """The same for one sequence, with the means of its level stretches once more, for the digits that a loop loses."""
    power = int(np.frexp(np.max(np.abs(v)))[1])
    power = power if power > 900 or h is not None else 0
    v = np.ldexp(v, -power)
    found = pool(v, weights=h)
    start, count, rest = found.blocks[:-1], np.diff(found.blocks), v - found.x
    more = np.add.reduceat(rest if h is None else h * rest, start)
    means = found.x[start] + more / (count if h is None else np.add.reduceat(h, start))
    return np.ldexp(np.repeat(np.maximum.accumulate(means), count), power)


@cache
def _pooling_loop() -> Callable[..., Any] | None:
    try:
        from scipy.optimize import isotonic_regression
    except ImportError:  # none, or one that is too old
        return None
    return isotonic_regression


def _merged(v: Array, h: Array | None, xp: Namespace) -> Array:
    """The same by halves: pieces that rise are joined in pairs, all of one length at once, in ``log2(n)`` levels."""
    n, batch = v.shape[-1], tuple(v.shape)[:-1]
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
    return xp.reshape(y, (*batch, size))[..., :n]


def _rising_piece(v: Array, h: Array | None, xp: Namespace) -> Array:
    """The same for a few entries, by ``y[i] = max(min(mean(v[a], ..., v[b]) for b >= i) for a <= i)``."""
    size = v.shape[-1]
    y = [v[..., i] for i in range(size)]
    x, weights = list(y), None if h is None else [h[..., i] for i in range(size)]
    for a in range(size):
        # every stretch by itself, as differences of sums would lose all digits of light entries after heavy ones
        means, rest, weight = [x[a]], 0.0, 1.0 if weights is None else weights[a]
        for b in range(a + 1, size):
            rest = rest + weighted(x[b] - x[a], None if weights is None else weights[b])
            weight = weight + (1.0 if weights is None else weights[b])
            means.append(x[a] + rest / weight)
        least = means[-1]
        for i in range(size - 1, a - 1, -1):
            least = xp.minimum(least, means[i - a])
            y[i] = least if a == 0 else xp.maximum(y[i], least)
    return xp.stack(y, axis=-1)


def _joined(pairs: Array, h: Array | None, xp: Namespace) -> Array:
    """For every pair of rising sequences, of shape (2, n), the rising sequence nearest to one after the other.

    What is above a level c on the left, and below it on the right, becomes c, where the one has to fall by as much in
    sum as the other has to rise. Both sides are seen from where they meet: `work` is what it takes to bring all that
    comes before an entry to its level u. How many become c is found by halving one of the two ranges after the other:
    where the levels looked at have passed each other, the side with more work needs not go so far, and where they have
    not, the side with less work has to go further.
    """
    size = pairs.shape[-1]
    u = xp.stack([-xp.flip(pairs[..., 0, :], axis=-1), pairs[..., 1, :]], axis=-2)
    if h is None:
        sizes = xp.astype(positions(u[(*(slice(0, 1),) * (len(u.shape) - 1), ...)], xp) + 1, u.dtype)
    else:
        sizes = running_sums(xp.stack([xp.flip(h[..., 0, :], axis=-1), h[..., 1, :]], axis=-2), xp)
    rises = sizes[..., :-1] * (u[..., 1:] - u[..., :-1])
    work = running_sums(xp.concat([xp.zeros_like(u[..., :1]), rises], axis=-1), xp)

    def at(index: Array) -> tuple[Array, Array, Array]:
        index = xp.where(index < 0, 0, xp.where(index < size, index, size - 1))
        count = xp.astype(index + 1, u.dtype) if h is None else xp.take_along_axis(sizes, index, axis=-1)
        return xp.take_along_axis(u, index, axis=-1), xp.take_along_axis(work, index, axis=-1), count

    def step(moving: Array, first: Array, last: Array) -> tuple[Array, Array, Array]:
        middle = (first + last) // 2
        level, much, count = at(xp.where(moving, middle, middle - 1))
        across = -xp.flip(level, axis=-2)  # the level that the other side looks at
        # a side that is settled goes on to there, with all that it takes along
        settled = xp.where(middle > 0, much + count * (across - level), 0.0)
        other = xp.flip(xp.where(moving, much, settled), axis=-2)
        alone, passed = ~xp.flip(moving, axis=-2), level >= across
        nearer = moving & (much >= other) & (passed | alone)
        further = moving & ~nearer & (much <= other) & (~passed | alone)
        first, last = xp.where(further, middle + 1, first), xp.where(nearer, middle, last)
        return first < last, first, last

    first = xp.argmax(u[..., :1], axis=-1, keepdims=True)  # 0, in the dtype of an index
    crossing = u[..., :1] + xp.flip(u[..., :1], axis=-2) < 0
    last = xp.where(crossing, first + size, first)
    _, _, last = xp.iterate(step, (crossing, first, last), 2 * size.bit_length())
    level, much, count = at(last - 1)
    left, right = -level[..., 0, :], level[..., 1, :]
    more = much[..., 0, :] - much[..., 1, :] + count[..., 0, :] * (left - right)
    c = right + more / (count[..., 0, :] + count[..., 1, :])
    low, high = pairs[..., 1, :1], pairs[..., 0, -1:]
    c = xp.where(high > low, xp.minimum(xp.maximum(c, low), high), high)
    return xp.concat([xp.minimum(pairs[..., 0, :], c), xp.maximum(pairs[..., 1, :], c)], axis=-1)
