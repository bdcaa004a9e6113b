"""Balls of groups of groups: a sum over the rows of a matrix of a norm of each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from projgrad.axes import arrange, group_size, restore
from projgrad.coupled import PairSet
from projgrad.moves import Move, Scale, cut
from projgrad.namespace import Array, Namespace
from projgrad.precision import precision, tolerance
from projgrad.registry import register
from projgrad.sets.thresholds import above_threshold, moderating
from projgrad.values import set_choice, set_number

__all__ = ["GroupL1Ball", "L1InfBall"]

_MOST = 100  # steps to the root; 15 were the most in matrices of up to a million entries
_MOST_IN = 300  # in a metric; 28 were the most with weights of ratios up to 1e24, and 100 with 1e190


@dataclass(frozen=True)
class _ScaleRows(Scale):
    """Every row of a matrix is scaled to a norm of its own, and the matrix is what is close to its set, or not.

    Args:
        rows: the axes that enumerate the rows; those inside a row are `axes`.
    """

    rows: tuple[int, ...] = ()

    def distance(self, x: Array, xp: Namespace) -> Array:
        return xp.squeeze(self._far(xp), axis=self._matrix)

    def keep(self, x: Array, xp: Namespace, slack: float = 1.0) -> Array:
        norm = xp.times(*xp.norm(xp.times(self.m, self.u), self.rows))
        most = xp.largest(norm.dtype)
        norm = xp.where(norm <= most, norm, most)  # as in `are_close`, without another look at all entries
        return self._far(xp) <= slack * tolerance(x.dtype, group_size(x.shape, self._matrix), norm)

    def _far(self, xp: Namespace) -> Array:
        return xp.times(*xp.norm(self.away(xp), self.rows))

    @property
    def _matrix(self) -> tuple[int, ...]:
        return tuple(sorted(self.rows + self.axes))


@register()
@dataclass(frozen=True, repr=False)
class GroupL1Ball(PairSet):
    """The group l1 ball ``{x : sum over rows of ||row||_2 <= radius}``, for every matrix along the pair `axis`.

    Convex. Exact: the norms of the rows onto the l1 ball, by Newton's method. Cost: O(m n) for m rows of n. In a
    metric: by Newton's method on all norms and their common multiplier, in O(m n) per step.

    A row stands for any subgroup: a filter, a unit, a head. Whole rows become 0.

    Args:
        radius: the largest sum of norms, at least 0.
        axis: the axes that enumerate the rows, and the axes inside a row: a pair, each an int or a tuple of ints.
            With "incoming", a row is the weights that feed one unit.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `radius` is negative or not finite, `axis` is not a pair, or `rate` is outside (0, 1].

    Source: van den Berg, Schmidt, Friedlander and Murphy, Group sparsity via linear-time projection, UBC TR-2008-09.
    """

    radius: float = 1.0
    axis: Any = (-2, -1)
    rate: float = 1.0
    solid = True

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "radius", least=0, what="a norm")

    def solve(self, x: Array, xp: Namespace, metric: Array | None = None) -> Move:
        if metric is not None or xp.may_differentiate(x):
            return super().solve(x, xp, metric)
        # every row by a factor, without arrays of the size of x
        parts = self.parts(len(x.shape))
        m, u = xp.norm(x, parts[1])
        m, shape = m * xp.ones_like(u), tuple(u.shape)
        length, more = arrange(m, parts, xp), arrange(u, parts, xp)
        finite = xp.all(xp.isfinite(more), axis=-2, keepdims=True)
        length, more = xp.where(finite, length, 1.0), xp.where(finite, more, 0.0)
        shrink = moderating(length, xp, (-2, -1))
        norms, radius = length * shrink * more, self.radius * shrink
        inside = xp.accurate_sum(norms, (-2,)) <= radius
        most = xp.where(inside, xp.times(length, more), _rows_above_threshold(norms, radius, xp) / shrink)
        most = restore(xp.where(finite, most, float("nan")), parts, shape, xp)
        columns, size = parts[1], group_size(x.shape, parts[1])
        return _ScaleRows(m, u, None, most, columns, size, rows=parts[0])

    def nearest(self, v: Array, xp: Namespace) -> Array:
        shrink = moderating(v, xp, (-2, -1))
        v, radius = v * shrink, self.radius * xp.squeeze(shrink, axis=-1)
        m, u = xp.norm(v, (-1,))
        norms = xp.squeeze(m * u, axis=-1)
        kept = xp.expand_dims(above_threshold(norms, radius, xp), axis=-1)  # of each norm
        y = xp.divide(v, m) * (kept / xp.where(u > 0, u, 1.0))
        inside = xp.accurate_sum(norms, (-1,)) <= radius
        return xp.where(xp.expand_dims(inside, axis=-1), v, y) / shrink

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        scale = comparable(v, self.radius, xp)
        a, radius = xp.divide(v, scale), self.radius / scale
        norms = xp.times(*xp.norm(xp.stop_gradient(a), (-1,)))
        inside = xp.accurate_sum(norms, (-2,)) <= radius
        a, w = xp.where(inside, 0.0, a), 1.0 / h  # inside, there is no root to look for
        t, norms, fall = norms_of_rows(a, w, radius, xp.zeros_like(radius), xp)
        kept = _rows_above_threshold(norms, radius, xp, fall)
        # with the derivative of the t that keeps their sum
        on = xp.stop_gradient(kept) > 0
        slope = xp.sum(xp.where(on, fall, 0.0), axis=-2, keepdims=True)
        t = xp.graft(t, xp.sum(xp.where(on, norms, 0.0), axis=-2, keepdims=True) / xp.where(slope > 0, slope, 1.0))
        y = xp.divide(a, xp.where(on, kept + t * w, 1.0))
        m, u = xp.norm(y, (-1,))
        y = xp.where(on, xp.divide(y, m) * (kept / xp.where(u > 0, u, 1.0)), 0.0)
        return xp.where(inside, v, y * scale)

    def off(self, v: Array, xp: Namespace) -> Array:
        shrink = moderating(v, xp, (-2, -1))
        norms = xp.times(*xp.norm(v * shrink, (-1,)))
        count = xp.sum(xp.astype(norms > 0, v.dtype), axis=-2, keepdims=True)
        far = (xp.accurate_sum(norms, (-2,)) - self.radius * shrink) / xp.sqrt(xp.where(count > 0, count, 1.0))
        return xp.divide(xp.where(far > 0, far, 0.0), shrink)


@register()
@dataclass(frozen=True, repr=False)
class L1InfBall(PairSet):
    """The l1,inf ball ``{x : sum over rows of max |row| <= radius}``, for every matrix along the pair `axis`.

    Convex. Exact: a cap per row, by Newton's method on all caps and their common multiplier. Cost: O(m n) for m rows of
    n per step, of which 15 were the most seen. In a metric: the same, by weighted sums, for the method "exact".

    A row stands for any subgroup: a filter, a unit, a head. Whole rows become 0. The method "bilevel" is quicker: the
    maxima of the rows onto the l1 ball, then every row clipped at what became of its maximum. That gives a point of the
    ball that is not the nearest; it is at most ``sqrt(n)`` times as far away as the nearest one.

    Args:
        radius: the largest sum of maxima, at least 0.
        method: "exact" or "bilevel".
        axis: the axes that enumerate the rows, and the axes inside a row: a pair, each an int or a tuple of ints.
            With "incoming", a row is the weights that feed one unit.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `radius` is negative or not finite, `method` is not known, `axis` is not a pair, or `rate` is
            outside (0, 1].

    Source: Quattoni, Carreras, Collins and Darrell, An efficient projection for l1,inf regularization, ICML 2009; the
    root as in Chu, Zhang, Sun and Tao, Semismooth Newton algorithm for efficient projections onto l1,inf-norm ball,
    ICML 2020, made monotone; Barlaud, Perez and Marmorat, A new linear time bi-level l1,inf projection, 2024.
    """

    radius: float = 1.0
    method: str = "exact"
    axis: Any = (-2, -1)
    rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "radius", least=0, what="a norm")
        set_choice(self, "method", ("exact", "bilevel"))

    def nearest(self, v: Array, xp: Namespace) -> Array:
        shrink = moderating(v, xp, (-2, -1))
        v, radius = v * shrink, self.radius * shrink
        a = xp.abs(v)
        tops = xp.max(a, axis=-1, keepdims=True)
        if self.method == "exact":
            caps = nearest_caps(a, xp.stop_gradient(tops), radius, xp)
        else:
            caps = _rows_above_threshold(tops, radius, xp)
        y = _by_rows(partial(_between, xp=xp), xp, v, caps)
        return y / shrink  # inside the ball, the caps are above

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        scale = comparable(v, self.radius, xp)
        a, radius = xp.divide(xp.abs(v), scale), self.radius / scale
        tops = xp.max(xp.stop_gradient(a), axis=-1, keepdims=True)
        inside = xp.accurate_sum(tops, (-2,)) <= radius
        caps = nearest_caps(a, tops, radius, xp, h) * scale
        return xp.where(inside, v, xp.where(v > caps, caps, xp.where(v < -caps, 0.0 - caps, v)))

    @property
    def in_metric(self) -> bool:
        return self.method == "exact"

    @property
    def solid(self) -> bool:  # type: ignore[override]
        return self.method == "exact"


def comparable(v: Array, radius: Any, xp: Namespace) -> Array:
    """What to divide every matrix and the radius by, for numbers that are neither huge nor tiny."""
    most = xp.max(xp.abs(xp.stop_gradient(v)), axis=(-2, -1), keepdims=True)
    most = xp.where(most > radius, most, radius)
    most = xp.where(most > 2.0**64, 2.0**-10 * most, most)  # with which a radius of 1 is not lost
    return xp.where(most > precision(v.dtype).tiny, most, 1.0)


def nearest_caps(a: Array, tops: Array, radius: Array, xp: Namespace, h: Array | None = None) -> Array:
    """The caps u of the rows of `a`, which is at least 0 with the maxima `tops`, that sum to `radius`.

    At the multiplier t, a row has the cap u with ``sum(h * max(a - u, 0)) = t``, or 0 where its sum is below t; h is 1
    where it is None. That is the largest of the lines ``(sum of h a in S - t) / sum of h in S`` over all sets S of its
    entries. So the lines of any sets add up to no more than the sum of all caps, and the t at which they meet the
    radius is too small or right. Every step takes the lines of the entries above the present caps, and goes to that t.
    """
    fixed = xp.stop_gradient(a)
    near = 8 * precision(a.dtype).compute_unit

    def line(a: Array, fixed: Array, caps: Array) -> Array:
        on = xp.astype(fixed > caps, a.dtype)
        count = xp.sum(on, axis=-1, keepdims=True)
        return xp.concat([count, xp.accurate_sum(on * (a - caps), (-1,))], axis=-1)

    def lines(caps: Array, a: Array, on: Array | None = None) -> tuple[Array, Array]:
        if h is None:
            both = _by_rows(line, xp, a, fixed, caps)
            count, over = both[..., :1], both[..., 1:]
            return xp.where(count > 0, count, 1.0), over
        on = fixed > caps if on is None else on
        above = xp.where(on, a - caps, 0.0)
        weight = xp.sum(xp.where(on, h, 0.0), axis=-1, keepdims=True)
        return xp.where(weight > 0, weight, 1.0), xp.accurate_sum(h * above, (-1,))

    def heights(t: Array, caps: Array) -> tuple[Array, Array]:
        count, over = lines(caps, fixed)
        height = caps + (over - t) / count
        if h is None:
            return count, height
        # an entry that is at the cap up to rounding may have most of the weight; the higher line is the better one
        more, much = lines(caps, fixed, fixed >= caps - near * tops)
        other = caps + (much - t) / more
        better = (other > height) | (over == 0)
        return xp.where(better, more, count), xp.where(better, other, height)

    def step(moving: Array, t: Array, caps: Array) -> tuple[Array, Array, Array]:
        count, height = heights(t, caps)
        slope = xp.sum(xp.where(height > 0, 1.0 / count, 0.0), axis=-2, keepdims=True)
        excess = xp.accurate_sum(xp.where(height > 0, height, 0.0), (-2,)) - radius
        further = t + excess / xp.where(slope > 0, slope, 1.0)
        new = xp.where(further > t, further, t)
        height = height - (new - t) / count
        return further > t, new, xp.where(height > 0, height, 0.0)

    start = xp.zeros_like(radius)
    _, t, caps = xp.iterate(step, (xp.isfinite(start), start, tops), _MOST if h is None else _MOST_IN)
    # the caps are as exact as the entries; make their sum as exact as the radius
    if h is None:
        positive = caps > 0
        caps = _rows_above_threshold(xp.where(positive, caps, -2 * radius), radius, xp)
    else:
        count, height = heights(t, caps)
        caps = _rows_above_threshold(height, radius, xp, 1.0 / count)
        positive = caps > 0
    # and give them the derivative of the lines at the multiplier that keeps their sum
    count, over = lines(caps, a)
    weight = xp.where(positive, 1.0 / count, 0.0)
    total = xp.sum(weight, axis=-2, keepdims=True)
    rise = xp.sum(weight * over, axis=-2, keepdims=True) / xp.where(total > 0, total, 1.0)
    return xp.graft(caps, weight * (over - rise))


def _between(v: Array, caps: Array, xp: Namespace) -> Array:
    """`v` within plus and minus `caps`."""
    if xp.may_differentiate(v) or xp.may_differentiate(caps):  # which the others share among numbers that are equal
        return xp.where(v > caps, caps, xp.where(v < -caps, 0.0 - caps, v))
    return xp.minimum(xp.maximum(v, 0.0 - caps), caps)


def _by_rows(function: Callable[..., Array], xp: Namespace, x: Array, *others: Array) -> Array:
    """A function of every row, for some rows after the other where that keeps what it makes in the cache."""
    cuts = xp.pieces(x, (len(x.shape) - 1,))
    if cuts is None:
        return function(x, *others)
    along, step = cuts
    starts = range(0, x.shape[along], step)
    return xp.concat([function(*(y[cut(along, i, i + step)] for y in (x, *others))) for i in starts], axis=along)


def norms_of_rows(v: Array, w: Array, radius: Array, more: Array, xp: Namespace) -> tuple[Array, Array, Array]:
    """The norms of the rows ``r v / (r + t w)``, with one t for which they sum to ``radius + more t``.

    At t, a row has the norm r at which F(r, t) = 1 / ||v / (r + t w)|| is 1, or 0 where none is. F is concave, as power
    means of a negative exponent are, and as linear along rays as these. So its tangent planes from anywhere are above
    it, and the line on which such a plane is 1 is no higher than the norm. The rest is as in `nearest_caps`: every step
    takes the lines at the present norms and t, and goes to the t at which they meet the radius, which is too small or
    right.

    Args:
        v: matrices with entries of about 1, whose norms sum to more than the radius, or with zeros only.
        w: the inverse of the weights.
        radius: one per matrix.
        more: the same, at least 0.
        xp: the functions to call.

    Returns:
        t, the norms of the rows there up to rounding, negative where they are 0 for a smaller t already, and how much
        these fall with t.
    """
    fixed = xp.stop_gradient(v)
    norms = xp.times(*xp.norm(fixed, (-1,)))
    empty = norms < 2.0**-90  # nothing, next to others

    def lines(v: Array, t: Array, r: Array) -> tuple[Array, Array]:
        inverse = 1.0 / xp.where(empty, 1.0, r + xp.times(t, w))
        z = v * inverse
        m, u = xp.norm(z, (-1,))
        part = (xp.stop_gradient(z) / xp.stop_gradient(m) / xp.stop_gradient(xp.where(u > 0, u, 1.0))) ** 2 * inverse
        total = xp.sum(part, axis=-1, keepdims=True)
        total = xp.where(total > 0, total, 1.0)
        fall = xp.sum(part / total * w, axis=-1, keepdims=True)
        return xp.where(empty, -1.0, r + (m * u - 1.0) / total), xp.where(empty, 1.0, fall)

    def step(moving: Array, t: Array, r: Array) -> tuple[Array, Array, Array]:
        height, fall = lines(fixed, t, r)
        slope = xp.sum(xp.where(height > 0, fall, 0.0), axis=-2, keepdims=True) + more
        excess = xp.accurate_sum(xp.where(height > 0, height, 0.0), (-2,)) - radius - more * t
        further = t + excess / xp.where(slope > 0, slope, 1.0)
        new = xp.where(further > t, further, t)
        height = height - (new - t) * fall
        return further > t, new, xp.where(height > 0, height, 0.0)

    start = xp.zeros_like(radius)
    _, t, r = xp.iterate(step, (xp.any(~empty, axis=-2, keepdims=True), start, norms), _MOST_IN)
    return t, *lines(v, t, r)


def _rows_above_threshold(x: Array, radius: Array, xp: Namespace, w: Array | None = None) -> Array:
    """`above_threshold` over the rows of a matrix with one column."""
    if w is not None:  # for what rounding left, ratios as far apart as these make no difference, but take many steps
        w = xp.squeeze(xp.maximum(w, 2.0**-80 * xp.max(w, axis=-2, keepdims=True)), axis=-1)
    rows = above_threshold(xp.squeeze(x, axis=-1), xp.squeeze(radius, axis=-1), xp, w)
    return xp.expand_dims(rows, axis=-1)
