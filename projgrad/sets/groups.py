"""Balls of groups of groups: a sum over the rows of a matrix of a norm of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from projgrad.coupled import PairSet
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.sets.thresholds import above_threshold, moderating
from projgrad.values import set_choice, set_number

__all__ = ["GroupL1Ball", "L1InfBall"]

_MOST = 100  # steps to the root; 15 were the most in matrices of up to a million entries


@register()
@dataclass(frozen=True, repr=False)
class GroupL1Ball(PairSet):
    """The group l1 ball ``{x : sum over rows of ||row||_2 <= radius}``, for every matrix along the pair `axis`.

    Convex. Exact: the norms of the rows onto the l1 ball, by Newton's method. Cost: O(m n) for m rows of n.

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

    def nearest(self, v: Array, xp: Namespace) -> Array:
        shrink = moderating(v, xp, (-2, -1))
        v, radius = v * shrink, self.radius * xp.squeeze(shrink, axis=-1)
        m, u = xp.norm(v, (-1,))
        norms = xp.squeeze(m * u, axis=-1)
        kept = xp.expand_dims(above_threshold(norms, radius, xp), axis=-1)  # of each norm
        y = xp.divide(v, m) * (kept / xp.where(u > 0, u, 1.0))
        inside = xp.accurate_sum(norms, (-1,)) <= radius
        return xp.where(xp.expand_dims(inside, axis=-1), v, y) / shrink


@register()
@dataclass(frozen=True, repr=False)
class L1InfBall(PairSet):
    """The l1,inf ball ``{x : sum over rows of max |row| <= radius}``, for every matrix along the pair `axis`.

    Convex. Exact: a cap per row, by Newton's method on all caps and their common multiplier. Cost: O(m n) for m rows of
    n per step, of which 15 were the most seen.

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
        y = xp.where(v > caps, caps, xp.where(v < -caps, 0.0 - caps, v))  # inside the ball, the caps are above
        return y / shrink

    @property
    def solid(self) -> bool:  # type: ignore[override]
        return self.method == "exact"


def nearest_caps(a: Array, tops: Array, radius: Array, xp: Namespace) -> Array:
    """The caps u of the rows of `a`, which is at least 0 with the maxima `tops`, that sum to `radius`.

    At the multiplier t, a row has the cap u with ``sum(max(a - u, 0)) = t``, or 0 where its sum is below t. That is the
    largest of the lines ``(sum of the entries in S - t) / |S|`` over all sets S of its entries. So the lines of any
    sets add up to no more than the sum of all caps, and the t at which they meet the radius is too small or right.
    Every step takes the lines of the entries above the present caps, and goes to that t.
    """
    fixed = xp.stop_gradient(a)

    def lines(caps: Array, a: Array) -> tuple[Array, Array]:
        on = fixed > caps
        count = xp.sum(xp.astype(on, a.dtype), axis=-1, keepdims=True)
        return xp.where(count > 0, count, 1.0), xp.accurate_sum(xp.where(on, a - caps, 0.0), (-1,))

    def step(moving: Array, t: Array, caps: Array) -> tuple[Array, Array, Array]:
        count, over = lines(caps, fixed)
        height = caps + (over - t) / count
        slope = xp.sum(xp.where(height > 0, 1.0 / count, 0.0), axis=-2, keepdims=True)
        excess = xp.accurate_sum(xp.where(height > 0, height, 0.0), (-2,)) - radius
        further = t + excess / xp.where(slope > 0, slope, 1.0)
        new = xp.where(further > t, further, t)
        height = height - (new - t) / count
        return further > t, new, xp.where(height > 0, height, 0.0)

    start = xp.zeros_like(radius)
    _, _, caps = xp.iterate(step, (xp.isfinite(start), start, tops), _MOST)
    # the caps are as exact as the entries; make their sum as exact as the radius
    positive = caps > 0
    caps = _rows_above_threshold(xp.where(positive, caps, -2 * radius), radius, xp)
    # and give them the derivative of the lines at the multiplier that keeps their sum
    count, over = lines(caps, a)
    weight = xp.where(positive, 1.0 / count, 0.0)
    total = xp.sum(weight, axis=-2, keepdims=True)
    rise = xp.sum(weight * over, axis=-2, keepdims=True) / xp.where(total > 0, total, 1.0)
    return xp.graft(caps, weight * (over - rise))


def _rows_above_threshold(x: Array, radius: Array, xp: Namespace) -> Array:
    """`above_threshold` over the rows of a matrix with one column."""
    rows = above_threshold(xp.squeeze(x, axis=-1), xp.squeeze(radius, axis=-1), xp)
    return xp.expand_dims(rows, axis=-1)
