"""Sets of sequences that curve one way: convex and concave."""

from __future__ import annotations

import math
from dataclasses import dataclass

from projgrad.axes import Axis
from projgrad.coupled import VectorSet
from projgrad.namespace import Array, Namespace
from projgrad.precision import precision
from projgrad.registry import register
from projgrad.sets.sequences import Runs, after, positions, shifted

__all__ = ["Concave", "Convex"]

_MOST = 100  # rounds, and 4 per entry; 516 were the most in groups of 10,000


@register()
@dataclass(frozen=True, repr=False)
class Convex(VectorSet):
    """The convex sequences ``{x : x[i-1] - 2 x[i] + x[i+1] >= 0}``, for every group of entries along `axis`.

    Convex. Exact: the least squares fit that is straight between knots, by an active set method that adds a knot to
    every piece at once. Cost: O(n log n) per round, of which 119 were the most seen in 1,000 entries, and 516
    in 10,000; if 4 n + 100 do not do, eager code raises. Second differences may be below 0 by
    rounding errors, within the tolerance.

    Args:
        axis: the axis of the sequence: an int; of a tuple, None (all) or "incoming", the entries in row-major order.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `rate` is outside (0, 1].
        RuntimeError: when projecting, where that can be looked at: the nearest point is not reached.

    Source: Groeneboom, Jongbloed and Wellner, The support reduction algorithm, Scandinavian J. Statistics 35 (2008),
    for the knots; Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23, for giving them up.
    """

    axis: Axis = -1
    rate: float = 1.0
    cone = True

    def nearest(self, v: Array, xp: Namespace) -> Array:
        return _convex(v, xp)


@register()
@dataclass(frozen=True, repr=False)
class Concave(VectorSet):
    """The concave sequences ``{x : x[i-1] - 2 x[i] + x[i+1] <= 0}``, for every group of entries along `axis`.

    Convex. Exact: as `Convex`, upside down. Cost: as `Convex`.

    Args:
        axis: the axis of the sequence: an int; of a tuple, None (all) or "incoming", the entries in row-major order.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError, RuntimeError: as `Convex`.

    Source: as `Convex`.
    """

    axis: Axis = -1
    rate: float = 1.0
    cone = True

    def nearest(self, v: Array, xp: Namespace) -> Array:
        return -_convex(-v, xp)


def _convex(v: Array, xp: Namespace) -> Array:
    n = v.shape[-1]
    if n < 3:
        return v
    fixed = xp.stop_gradient(v)
    scale = xp.max(xp.abs(fixed), axis=-1, keepdims=True)
    scale = xp.where(scale > 0, scale, xp.ones_like(scale))
    x, index = xp.divide(fixed, scale), positions(v, xp)
    ends = (index == 0) | (index == n - 1)
    # the straight line that fits takes no part, but the digits of the rest
    mean, middle = xp.accurate_sum(x, (-1,)) / n, xp.astype(index, v.dtype) - (n - 1) / 2
    line = mean + middle * (xp.accurate_sum(middle * (x - mean), (-1,)) / (n * (n * n - 1) / 12))
    knots, y = _fit(x - line, ends, xp)
    return xp.with_derivative((line + y) * scale, v, lambda d: Spline(knots, x, xp).fit(d))


class Spline:
    """The sequences that are straight between knots, of which the first and the last entry are two.

    A hat is the one that is 1 at a knot and 0 at the others. An entry is a `part` of the way, of some `length`, from
    the knot `before` it to the one `after` it; at a knot, it is at the end of the way.

    Args:
        knots: which entries are knots.
        like: an array of the dtype to compute in.
        xp: the functions to call.
    """

    def __init__(self, knots: Array, like: Array, xp: Namespace) -> None:
        self.knots, self.xp, index = knots, xp, positions(like, xp)
        first = index == 0
        self.to, self.on = Runs(after(knots, xp), xp), Runs(knots, xp)  # pieces with the knot after, or before
        one = xp.ones_like(like)
        done, left = self.on.scan(one) - 1.0, self.to.scan(one, back=True) - 1.0
        self.before, self.after = index - xp.astype(done, index.dtype), index + xp.astype(left, index.dtype)
        self.length = xp.where(knots, 1.0, done + left)
        self.part = xp.where(knots, 1.0, done / self.length)
        inner = knots & ~first & (index < knots.shape[-1] - 1)
        self.inner, self.ends = inner, knots & ~inner
        self.near = (
            xp.where(knots & ~first, shifted(self.before, 1, xp), index),
            xp.where(inner | (first & knots), shifted(self.after, -1, xp), index),
        )

    def at(self, x: Array, where: Array) -> Array:
        return self.xp.take_along_axis(x, where, axis=-1)

    def fit(self, x: Array) -> Array:
        """The nearest of these sequences, by least squares."""
        y = self.heights(x)
        return (1.0 - self.part) * self.at(y, self.before) + self.part * self.at(y, self.after)

    def heights(self, x: Array) -> Array:
        """The values at the knots of the fit.

        The products of the hats make a tridiagonal system, with a dominant diagonal. Cyclic reduction takes each
        equation's neighbours out of it, and theirs, twice as far away each time.
        """
        xp, part, rest = self.xp, self.part, 1.0 - self.part
        up = self.to.scan(xp.stack([part * part, part * rest]))
        down = self.on.scan(xp.stack([rest * rest, part * rest]), back=True)
        right = xp.where(self.knots, self.to.scan(part * x) + self.on.scan(rest * x, back=True), 0.0)
        diagonal = xp.where(self.knots, up[0, ...] + down[0, ...], 1.0)
        lower, upper = xp.where(self.knots, up[1, ...], 0.0), xp.where(self.knots, down[1, ...], 0.0)
        before, after = self.near
        by = 1
        while by < x.shape[-1]:
            a, c = -lower / self.at(diagonal, before), -upper / self.at(diagonal, after)
            diagonal = diagonal + a * self.at(upper, before) + c * self.at(lower, after)
            right = right + a * self.at(right, before) + c * self.at(right, after)
            lower, upper = a * self.at(lower, before), c * self.at(upper, after)
            before, after = self.at(before, before), self.at(after, after)
            by *= 2
        return right / diagonal

    def kinks(self, y: Array) -> Array:
        """By how much the slope grows at the inner knots; 0 elsewhere."""
        xp, index = self.xp, positions(y, self.xp)
        before, after = (xp.where(self.inner, near, index) for near in self.near)
        steps = (xp.astype(xp.where(self.inner, d, 1), y.dtype) for d in (index - before, after - index))
        left, right = next(steps), next(steps)
        return (self.at(y, after) - y) / right - (y - self.at(y, before)) / left

    def bends(self, x: Array) -> Array:
        """Between the knots, by how much it helps to bend the fit there, where `x` is the fit minus what it fits.

        It is the second sum of `x` from knot to knot, relative to that of 1 in about a third of the piece.
        """
        xp = self.xp
        inside = xp.where(self.knots, 0.0, x)
        rest = 1.0 - self.part
        up = self.to.scan(self.part * inside)
        down = self.on.scan(rest * inside, back=True) - rest * inside
        scale = xp.where(self.knots, 1.0, self.part * rest * xp.sqrt(self.length))
        return xp.where(self.knots, 0.0, (rest * up + self.part * down) / scale)


def _fit(x: Array, ends: Array, xp: Namespace) -> tuple[Array, Array]:
    """The knots of the nearest convex sequence, and the sequence.

    A fit that is convex gets a new knot in every piece where bending it up helps, at the best place. A fit that is
    not is not gone to all the way, but until one of its knots is straight, which is given up. Where all new knots are
    given up at once, only the best one is tried. In the end the fit is fitted again, for the digits that are lost
    from `x`, and without knots that are rounding errors.
    """
    unit = precision(x.dtype).unit

    def step(moving: Array, knots: Array, y: Array, tried: Array, alone: Array, polish: Array) -> tuple[Array, ...]:
        spline, search = Spline(knots, x, xp), polish == 0
        new = spline.fit(xp.where(search, x, y))
        kinks, start = spline.kinks(new), xp.maximum(spline.kinks(y), xp.zeros_like(y))
        bad = spline.inner & (kinks <= 0)
        halt = xp.any(bad, axis=-1, keepdims=True)
        way = xp.where(bad, start / xp.where(start > kinks, start - kinks, 1.0), math.inf)
        least = xp.min(way, axis=-1, keepdims=True)
        fewer = knots & ~(bad & (way <= least))
        # a knot helps only where it does more than rounding may feign
        bends = spline.bends(xp.stack([new - x, xp.abs(new) + xp.abs(x)]))
        helps = bends[0, ...] - 4 * unit * bends[1, ...]
        same = xp.all(knots == tried, axis=-1, keepdims=True)
        best = helps >= xp.max(helps, axis=-1, keepdims=True)
        more = (helps > 0) & (helps >= spline.to.most(helps)) & (best | ~same) & ~(same & alone)
        found = ~halt & ~xp.any(more, axis=-1, keepdims=True)
        halt = halt & search
        next_knots = xp.where(search, xp.where(halt, fewer, knots | (more & ~found)), ends | (spline.inner & ~bad))
        next_y = xp.where(halt, y + xp.where(halt, least, 0.0) * (new - y), new)
        polish = xp.where(moving & (found | ~search), polish + 1, polish)
        return (
            moving & (polish < 3),
            xp.where(moving, next_knots, knots),
            xp.where(moving, next_y, y),
            xp.where(halt, tried, knots),
            xp.where(halt, alone, same),
            polish,
        )

    every = xp.any(ends, axis=-1, keepdims=True)
    start = (every, ends | (x != x), xp.zeros_like(x), ends & ~ends, every & ~every, xp.astype(~every, xp.int32))
    moving, knots, y, *_ = xp.iterate(step, start, _MOST + 4 * x.shape[-1])
    xp.require(~moving, "the projection onto convex or concave sequences did not converge: please report it")
    return knots, y
