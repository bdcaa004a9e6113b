"""Sets given by the singular values of a matrix: their largest, their sum, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from projgrad.coupled import PairSet
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.sets.decomposition import ACCURACY, Values, by_values
from projgrad.sets.iterations import below_bound, clipped_values, prepare
from projgrad.sets.sequences import positions
from projgrad.sets.shortcuts import clipped, shrunk
from projgrad.sets.thresholds import above_threshold
from projgrad.values import set_choice, set_count, set_number

__all__ = ["NuclearNorm", "Rank", "SpectralNorm"]


@register()
@dataclass(frozen=True, repr=False)
class SpectralNorm(PairSet):
    """The ball ``{X : largest singular value of X <= max_value}``, for every matrix along the pair `axis`.

    Convex. Exact: singular values above the bound are clipped, by a singular value decomposition or, for large matrices
    on the CPU and in JAX, by quicker ways: a Cholesky factorisation shows that none is above, and the few that are
    above are taken off, or else those of the Gram matrix. Cost: O(m n min(m, n)).

    Accurate to 8 times `projgrad.tolerance`, as decompositions are.

    Two approximate methods use nothing but products of matrices, which graphics processors prefer:

    - ``"newton_schulz"`` clips too, by polynomials. Every singular value is off by at most e times the largest one,
      besides rounding, where e is 3e-3, 1.1e-4, 3.6e-6 and 1.1e-7 with 8, 12, 16 and 20 steps. Projecting again may
      therefore change the result, by as much.
    - ``"gram"`` scales the whole matrix down, by a bound of its largest singular value that is too large by a factor of
      at most ``k**(1 / 2**(steps + 2))``, where k is the smaller side: 1.0005 with 12 steps and k = 4096. The result is
      in the set, but not the nearest point: all singular values shrink by the same factor. A matrix is left alone when
      that bound, rather than its largest singular value, is small enough.

    Args:
        max_value: the bound c >= 0.
        method: "svd" for the nearest point, or "newton_schulz" or "gram".
        steps: of the approximate methods, at least 1.
        axis: the axes of the rows' index and of the columns' index: a pair, each an int or a tuple of ints.
            With "incoming", a row is the weights that feed one unit.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        TypeError: `steps` is not an int.
        ValueError: c is negative or not finite, `method` is none of these, `steps` is below 1, `axis` is not a pair, or
            `rate` is outside (0, 1].

    Source: Sedghi, Gupta and Long, The singular values of convolutional layers, ICLR 2019, for clipping; Newhouse et
    al., Training transformers with enforced Lipschitz constants, 2025, for clipping by products; Delattre et al.,
    Efficient bound of Lipschitz constant for convolutional layers by Gram iteration, ICML 2023.
    """

    max_value: float = 1.0
    method: str = "svd"
    steps: int = 12
    axis: Any = (-2, -1)
    rate: float = 1.0
    accuracy = ACCURACY

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "max_value", least=0, what="a norm")
        set_choice(self, "method", ("svd", "newton_schulz", "gram"))
        set_count(self, "steps", least=1)
        if self.method == "newton_schulz":
            prepare(self.steps)

    def nearest(self, v: Array, xp: Namespace) -> Array:
        if self.method == "gram":
            return below_bound(v, self.max_value, self.steps, xp)
        if self.method == "newton_schulz":
            return clipped_values(v, self.max_value, self.steps, xp)

        def clip(s: Array, q: Array) -> Values:
            below = s <= self.max_value / q
            return xp.where(below, s, self.max_value / q), xp.astype(below, s.dtype), None

        return by_values(v, clip, xp, self.max_value, partial(clipped, most=self.max_value))


@register()
@dataclass(frozen=True, repr=False)
class NuclearNorm(PairSet):
    """The ball ``{X : sum of the singular values of X <= radius}``, for every matrix along the pair `axis`.

    Convex. Exact: ``max(s - t, 0)`` for the singular values s of a matrix outside, with the t that makes the sum right,
    by a singular value decomposition, or quicker where t is large. Cost: O(m n min(m, n)).

    Accurate to 8 times `projgrad.tolerance`, as decompositions are.

    Args:
        radius: the largest sum, at least 0.
        axis: the axes of the rows' index and of the columns' index: a pair, each an int or a tuple of ints.
            With "incoming", a row is the weights that feed one unit.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `radius` is negative or not finite, `axis` is not a pair, or `rate` is outside (0, 1].

    Source: Cai, Candes and Shen, A singular value thresholding algorithm for matrix completion, SIAM J. Optim. 20
    (2010).
    """

    radius: float = 1.0
    axis: Any = (-2, -1)
    rate: float = 1.0
    accuracy = ACCURACY

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "radius", least=0, what="a norm")

    def nearest(self, v: Array, xp: Namespace) -> Array:
        def shrink(s: Array, q: Array) -> Values:
            total = self.radius / q
            inside = xp.accurate_sum(s, (-1,)) <= total
            f = above_threshold(s, total, xp)
            above = xp.astype(inside | (f > 0), s.dtype)
            return xp.where(inside, s, f), above, xp.where(inside, 0.0, above)

        shortcut = partial(shrunk, total=self.radius, curve=lambda s, q: shrink(s, q)[0])
        return by_values(v, shrink, xp, self.radius, shortcut)


@register()
@dataclass(frozen=True, repr=False)
class Rank(PairSet):
    """The matrices of low rank ``{X : rank of X <= k}``, for every matrix along the pair `axis`.

    Not convex. Exact: the k largest singular values stay, the others become 0, by a singular value decomposition. Cost:
    O(m n min(m, n)).

    Accurate to 8 times `projgrad.tolerance`, as decompositions are.

    Where the k-th singular value equals the next one, several points are nearest, and the decomposition of the
    framework decides which is taken. Where k is not below the smaller side, every matrix is in the set.

    Args:
        k: the largest rank, at least 0.
        axis: the axes of the rows' index and of the columns' index: a pair, each an int or a tuple of ints.
            With "incoming", a row is the weights that feed one unit.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        TypeError: `k` is not an int.
        ValueError: `k` is negative, `axis` is not a pair, or `rate` is outside (0, 1].

    Source: Eckart and Young, The approximation of one matrix by another of lower rank, Psychometrika 1 (1936).
    """

    k: int
    axis: Any = (-2, -1)
    rate: float = 1.0
    accuracy = ACCURACY
    convex = False

    def __post_init__(self) -> None:
        super().__post_init__()
        set_count(self, "k")

    def nearest(self, v: Array, xp: Namespace) -> Array:
        def truncate(s: Array, q: Array) -> Values:
            kept = xp.where(positions(s, xp) < self.k, xp.ones_like(s), 0.0)
            return kept * s, kept, None

        return by_values(v, truncate, xp)
