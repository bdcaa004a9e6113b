"""Symmetric matrices, and sets of them given by their eigenvalues."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from projgrad.coupled import PairSet
from projgrad.namespace import Array, Namespace
from projgrad.registry import register
from projgrad.sets.correlation import nearest_correlation
from projgrad.sets.decomposition import ACCURACY, Values, by_values, diagonal, symmetric_part
from projgrad.sets.shortcuts import raised
from projgrad.sets.thresholds import above_threshold
from projgrad.values import set_number

__all__ = ["Correlation", "PositiveSemidefinite", "SkewSymmetric", "Spectraplex", "Symmetric"]


class SquareSet(PairSet):
    """A set of square matrices."""

    def check_sizes(self, *sizes: int) -> None:
        if sizes[0] != sizes[1]:
            kind, (rows, columns) = type(self).__name__, sizes
            raise ValueError(f"{kind} is a set of square matrices; along axis={self.axis} they are {rows} by {columns}")


@register()
@dataclass(frozen=True, repr=False)
class Symmetric(SquareSet):
    """The symmetric matrices ``{X : X = X'}``, for every matrix along the pair `axis`.

    Convex. Exact: ``(X + X') / 2``. Cost: O(n^2). In a metric: the mean with its weights.

    Args:
        axis: the axes of the rows' index and of the columns' index: a pair, each an int or a tuple of ints.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: the matrices are not square, `axis` is not a pair, or `rate` is outside (0, 1].

    Source: Higham, Matrix nearness problems and applications, 1989, theorem 2.1.
    """

    axis: Any = (-2, -1)
    rate: float = 1.0
    affine = True
    cone = True

    def nearest(self, v: Array, xp: Namespace) -> Array:
        return symmetric_part(v, xp)

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        across, own = xp.matrix_transpose(v), h / (h + xp.matrix_transpose(h))
        return own * v + xp.matrix_transpose(own) * across


@register()
@dataclass(frozen=True, repr=False)
class SkewSymmetric(SquareSet):
    """The skew-symmetric matrices ``{X : X = -X'}``, for every matrix along the pair `axis`.

    Convex. Exact: ``(X - X') / 2``. Cost: O(n^2). In a metric: the mean with its weights.

    Args:
        axis: the axes of the rows' index and of the columns' index: a pair, each an int or a tuple of ints.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: the matrices are not square, `axis` is not a pair, or `rate` is outside (0, 1].

    Source: Higham, Matrix nearness problems and applications, 1989, section 2.
    """

    axis: Any = (-2, -1)
    rate: float = 1.0
    affine = True
    cone = True

    def nearest(self, v: Array, xp: Namespace) -> Array:
        return 0.5 * v - 0.5 * xp.matrix_transpose(v)

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        across, own = xp.matrix_transpose(v), h / (h + xp.matrix_transpose(h))
        return own * v - xp.matrix_transpose(own) * across


@register()
@dataclass(frozen=True, repr=False)
class PositiveSemidefinite(SquareSet):
    """The cone ``{X : X = X', eigenvalues of X >= min_eigenvalue}``, for every matrix along the pair `axis`.

    Convex. Exact: eigenvalues of the symmetric part below the bound are raised to it, by an eigendecomposition or,
    where no eigenvalue or few of a large matrix are, quicker (on the CPU and in JAX). Cost: O(n^3).

    Accurate to 8 times `projgrad.tolerance`, as decompositions are. With a bound other than 0 it is the cone shifted by
    so many times the identity.

    Args:
        min_eigenvalue: the least eigenvalue.
        axis: the axes of the rows' index and of the columns' index: a pair, each an int or a tuple of ints.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `min_eigenvalue` is not finite, the matrices are not square, `axis` is not a pair, or `rate` is
            outside (0, 1].

    Source: Higham, Computing a nearest symmetric positive semidefinite matrix, Linear Algebra Appl. 103 (1988).
    """

    min_eigenvalue: float = 0.0
    axis: Any = (-2, -1)
    rate: float = 1.0
    accuracy = ACCURACY

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "min_eigenvalue", what="an eigenvalue")

    def nearest(self, v: Array, xp: Namespace) -> Array:
        def lifted(values: Array, q: Array) -> Values:
            least = self.min_eigenvalue / q
            above = values >= least
            return xp.where(above, values, least), xp.astype(above, values.dtype), None

        shortcut = partial(raised, least=self.min_eigenvalue)
        return by_values(v, lifted, xp, abs(self.min_eigenvalue), shortcut, symmetric=True)

    @property
    def cone(self) -> bool:  # type: ignore[override]
        return isinstance(self.min_eigenvalue, float) and self.min_eigenvalue == 0


@register()
@dataclass(frozen=True, repr=False)
class Spectraplex(SquareSet):
    """The spectraplex ``{X : X = X', eigenvalues of X >= 0, trace of X = total}``, for every matrix along `axis`.

    Convex. Exact: ``max(l - t, 0)`` for the eigenvalues l of the symmetric part, with the t that makes the sum right,
    by an eigendecomposition. Cost: O(n^3).

    Accurate to 8 times `projgrad.tolerance`, as decompositions are.

    Args:
        total: the trace, at least 0.
        axis: the axes of the rows' index and of the columns' index: a pair, each an int or a tuple of ints.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: `total` is negative or not finite, the matrices are not square, `axis` is not a pair, or `rate` is
            outside (0, 1].

    Source: Tsuda, Raetsch and Warmuth, Matrix exponentiated gradient updates, JMLR 6 (2005), for the set; the
    eigenvalues as in `Simplex`.
    """

    total: float = 1.0
    axis: Any = (-2, -1)
    rate: float = 1.0
    accuracy = ACCURACY

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "total", least=0, what="a sum of numbers of at least 0")

    def nearest(self, v: Array, xp: Namespace) -> Array:
        def shared(values: Array, q: Array) -> Values:
            f = above_threshold(values, self.total / q, xp)
            above = xp.astype(f > 0, values.dtype)
            return f, above, above

        return by_values(v, shared, xp, self.total, symmetric=True)


@register()
@dataclass(frozen=True, repr=False)
class Correlation(SquareSet):
    """The correlation matrices ``{X : X = X', eigenvalues of X >= 0, diagonal of X = 1}``, along the pair `axis`.

    Convex. To a tolerance: Newton's method on the dual, until the diagonal is off by a few units in the last place. It
    is then scaled to be 1 exactly, which leaves the eigenvalues at least 0. Cost: O(n^3) for an eigendecomposition in
    each step, and about as much for the conjugate gradients that follow it.

    Accurate to 8 times `projgrad.tolerance` for entries up to 10, with 6 to 14 steps. The farther the matrix is from
    the set, the worse is the problem's condition: entries of 1000 take 20 to 50 steps, and in single precision the
    distance is right, but the point may be 130 times the tolerance off. Entries beyond 1000 count as of that size. The
    diagonal does not matter. The derivative costs O(n^4) time and O(n^3) memory.

    Args:
        axis: the axes of the rows' index and of the columns' index: a pair, each an int or a tuple of ints.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: the matrices are not square, `axis` is not a pair, or `rate` is outside (0, 1].

    Source: Qi and Sun, A quadratically convergent Newton method for computing the nearest correlation matrix, SIAM J.
    Matrix Anal. Appl. 28 (2006).
    """

    axis: Any = (-2, -1)
    rate: float = 1.0
    accuracy = ACCURACY

    def holds(self, v: Array, xp: Namespace) -> Array:
        return xp.all(diagonal(v, xp) == 1, axis=-1)

    def nearest(self, v: Array, xp: Namespace) -> Array:
        return nearest_correlation(v, xp)
