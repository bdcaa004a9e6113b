"""Matrices with orthonormal rows or columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from projgrad.coupled import PairSet
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.sets.decomposition import ACCURACY, Values, by_values
from projgrad.sets.iterations import polar_factor, prepare
from projgrad.sets.shortcuts import orthonormal
from projgrad.tangents import along_stiefel
from projgrad.values import set_choice, set_count

__all__ = ["Orthogonal"]


@register()
@dataclass(frozen=True, repr=False)
class Orthogonal(PairSet):
    """The Stiefel manifold ``{X : X'X = I}``, or ``{X : XX' = I}`` for wide X, for every matrix along the pair `axis`.

    Not convex. Exact: the polar factor ``U V'`` of ``X = U S V'``, by a singular value decomposition or, for
    large matrices near the set, on the CPU and in JAX, by a power series. Cost: O(m n min(m, n)).

    Accurate to 8 times `projgrad.tolerance`, as decompositions are. The columns of a tall matrix become orthonormal,
    the rows of a wide one, and both of a square one. Several points are nearest to a matrix whose columns (or rows) are
    dependent; the decomposition of the framework decides which is taken. In the directions that are missing there, the
    derivative is 0.

    The approximate method ``"newton_schulz"`` uses nothing but products of matrices, which graphics processors prefer.
    The singular values of its result lie between 1 - e and 1, besides rounding, where those of X are at least e times
    the largest one; lower ones get anywhere between 0 and 1. Here e is 3e-3, 1.1e-4, 3.6e-6 and 1.1e-7 with 8, 12, 16
    and 20 steps.

    Args:
        method: "svd" for the nearest point, or "newton_schulz".
        steps: of the approximate method, at least 1.
        axis: the axes of the rows' index and of the columns' index: a pair, each an int or a tuple of ints.
            With "incoming", a row is the weights that feed one unit.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        TypeError: `steps` is not an int.
        ValueError: `method` is none of these, `steps` is below 1, `axis` is not a pair, or `rate` is outside (0, 1].

    Source: Fan and Hoffman, Some metric inequalities in the space of matrices, Proc. Amer. Math. Soc. 6 (1955); Chen
    and Chow, A stable scaling of Newton-Schulz for improving the sign function computation, 2014.
    """

    method: str = "svd"
    steps: int = 12
    axis: Any = (-2, -1)
    rate: float = 1.0
    accuracy = ACCURACY
    convex = False

    def __post_init__(self) -> None:
        super().__post_init__()
        set_choice(self, "method", ("svd", "newton_schulz"))
        set_count(self, "steps", least=1)
        if self.method == "newton_schulz":
            prepare(self.steps)

    has_tangent = True

    def tangent_in(self, v: Array, d: Array, xp: Namespace) -> Array:
        return along_stiefel(v, d, xp)

    def nearest(self, v: Array, xp: Namespace) -> Array:
        if self.method == "newton_schulz":
            return polar_factor(v, self.steps, xp)

        def ones(s: Array, q: Array) -> Values:
            return xp.ones_like(s) / q, xp.zeros_like(s), None

        return by_values(v, ones, xp, shortcut=orthonormal)
