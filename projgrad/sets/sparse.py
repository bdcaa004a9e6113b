"""Sets of groups with few entries, or few subgroups, that are not zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from projgrad.axes import Axis
from projgrad.coupled import PairSet, VectorSet
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.sets.thresholds import COUNTED, above_threshold, above_threshold_of, moderating
from projgrad.values import set_count, set_number

__all__ = ["Cardinality", "L0Groups", "SparseSimplex"]


@register()
@dataclass(frozen=True, repr=False)
class Cardinality(VectorSet):
    """The sparse groups ``{x : at most k entries are not 0}``, for every group of entries along `axis`.

    Not convex. Exact: the k largest absolute values stay, all else becomes 0. Cost: O(n) on the CPU where nothing
    is compiled, elsewhere as the framework finds the k largest, up to O(n log n). In a metric: those of the largest
    ``h x^2``.

    Of equal absolute values, the first ones are kept. The derivative is 1 at the kept entries and 0 at the others.
    Where k is not below the size of a group, every group is in the set.

    Args:
        k: how many entries may differ from 0, at least 0.
        axis: the axes of a group: an int, a tuple, None for all, or "incoming".
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        TypeError: `k` is not an int.
        ValueError: `k` is negative, or `rate` is outside (0, 1].

    Source: Blumensath and Davies, Iterative thresholding for sparse approximations, J. Fourier Anal. Appl. 14 (2008).
    """

    k: int
    axis: Axis = -1
    rate: float = 1.0
    convex = False
    solid = True

    def __post_init__(self) -> None:
        super().__post_init__()
        set_count(self, "k")

    def holds(self, v: Array, xp: Namespace) -> Array:
        return at_most(self.k, xp.support(xp.abs(v)), xp)

    def nearest(self, v: Array, xp: Namespace) -> Array:
        return xp.where(largest(xp.abs(xp.stop_gradient(v)), self.k, xp), v, 0.0)

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        return xp.where(largest(xp.abs(xp.stop_gradient(v)) * xp.sqrt(h), self.k, xp), v, 0.0)

    def off(self, v: Array, xp: Namespace) -> Array:
        return 0.0 * v[..., :1]


@register()
@dataclass(frozen=True, repr=False)
class SparseSimplex(VectorSet):
    """The sparse simplex ``{x : x >= 0, sum(x) = total, at most k entries are not 0}``, for every group along `axis`.

    Not convex. Exact: the k largest entries onto the simplex, all else 0. Cost: as `Cardinality`, and as `Simplex`.

    Of equal entries, the first ones are kept. With k of at least the size of a group, it is `Simplex`.

    Args:
        k: how many entries may differ from 0, at least 1.
        total: the sum, at least 0.
        axis: the axes over which the sum is taken: an int, a tuple, None for all, or "incoming".
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        TypeError: `k` is not an int.
        ValueError: `k` is below 1, `total` is negative or not finite, or `rate` is outside (0, 1].

    Source: Kyrillidis, Becker, Cevher and Koch, Sparse projections onto the simplex, ICML 2013.
    """

    k: int
    total: float = 1.0
    axis: Axis = -1
    rate: float = 1.0
    convex = False

    def __post_init__(self) -> None:
        super().__post_init__()
        set_count(self, "k", least=1)
        set_number(self, "total", least=0, what="a sum of numbers of at least 0")

    def holds(self, v: Array, xp: Namespace) -> Array:
        return (xp.min(v, axis=-1) >= 0) & at_most(self.k, xp.support(xp.abs(v)), xp)

    def nearest(self, v: Array, xp: Namespace) -> Array:
        if xp.may_differentiate(v) or self.k >= v.shape[-1]:
            kept = largest(xp.stop_gradient(v), self.k, xp)
            return above_threshold(xp.where(kept, v, float("-inf")), self.total, xp)
        few = xp.highest(v, self.k)
        kept = largest(v, self.k, xp, xp.min(few, axis=-1, keepdims=True))
        return xp.where(kept, above_threshold_of(few, v, self.total, xp), 0.0)


@register()
@dataclass(frozen=True, repr=False)
class L0Groups(PairSet):
    """The row-sparse matrices ``{x : at most k rows are not 0}``, for every matrix along the pair `axis`.

    Not convex. Exact: the k rows of largest l2 norm stay, all else becomes 0. Cost: O(m n + m log m) for m rows of n.
    In a metric: those of the largest ``sum(h x^2)``.

    A row stands for any subgroup: a filter, a unit, a head. Of rows whose computed norms are equal, the first ones are
    kept. Where k is not below the number of rows, every matrix is in the set.

    Args:
        k: how many rows may differ from 0, at least 0.
        axis: the axes that enumerate the rows, and the axes inside a row: a pair, each an int or a tuple of ints.
            With "incoming", a row is the weights that feed one unit.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        TypeError: `k` is not an int.
        ValueError: `k` is negative, `axis` is not a pair, or `rate` is outside (0, 1].

    Source: Baldassarre, Bhan, Cevher, Kyrillidis and Satpathi, Group-sparse model selection, IEEE Trans. Inf. Theory 62
    (2016), for groups that do not overlap.
    """

    k: int
    axis: Any = (-2, -1)
    rate: float = 1.0
    convex = False
    solid = True

    def __post_init__(self) -> None:
        super().__post_init__()
        set_count(self, "k")

    def holds(self, v: Array, xp: Namespace) -> Array:
        return at_most(self.k, xp.any(v != 0, axis=-1), xp)

    def nearest(self, v: Array, xp: Namespace) -> Array:
        fixed = xp.stop_gradient(v)
        m, u = xp.norm(fixed * moderating(fixed, xp, (-2, -1)), (-1,))
        kept = largest(xp.squeeze(m * u, axis=-1), self.k, xp)
        return xp.where(xp.expand_dims(kept, axis=-1), v, 0.0)

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        fixed = xp.stop_gradient(v)
        m, u = xp.norm(fixed * moderating(fixed, xp, (-2, -1)) * xp.sqrt(h), (-1,))
        kept = largest(xp.squeeze(m * u, axis=-1), self.k, xp)
        return xp.where(xp.expand_dims(kept, axis=-1), v, 0.0)

    def off(self, v: Array, xp: Namespace) -> Array:
        return 0.0 * v[..., :1, :1]


def largest(v: Array, k: int, xp: Namespace, least: Array | None = None) -> Array:
    """Which entries along the last axis are the k largest, `least` that of these; of equal ones, the first."""
    size = v.shape[-1]
    if k >= size or k == 0:
        return (v == v) if k else (v != v)
    if least is None:
        least = xp.order_statistic(v, size - k)
    reached = v >= least

    def first() -> Array:
        above, tied = v > least, v == least
        places = k - xp.sum(xp.astype(above, xp.int32), axis=-1, keepdims=True)
        return above | (tied & (xp.cumulative_sum(xp.astype(tied, xp.int32), axis=-1) <= places))

    return xp.either(number(reached, xp) == k, lambda: reached, first)


def at_most(k: int, these: Array, xp: Namespace) -> Array:
    """Whether at most k of `these` along the last axis are true, or 1 and not 0."""
    return number(these, xp) <= k


def number(these: Array, xp: Namespace) -> Array:
    """How many of `these` along the last axis are true, or 1 and not 0."""
    exact = these.shape[-1] <= COUNTED  # PyTorch adds numbers like these in half the time that it takes for ints
    return xp.sum(xp.astype(these, xp.float32 if exact else xp.int32), axis=-1)
