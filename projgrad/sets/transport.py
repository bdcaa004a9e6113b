"""Sets of matrices with given sums of the rows and of the columns: Birkhoff and transport polytopes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from projgrad.coupled import PairSet
from projgrad.frozen import FrozenArray
from projgrad.namespace import Array, Namespace
from projgrad.precision import precision
from projgrad.registry import register
from projgrad.sets.decomposition import eye
from projgrad.values import set_array

__all__ = ["DoublyStochastic", "Transport"]

_MOST = 1500  # evaluations; 481 were the most in matrices of up to 100 x 100
_GROWTH = 8.0  # from one level to the next


class _WithSums(PairSet):
    """What the sets here have in common."""

    def holds(self, v: Array, xp: Namespace) -> Array:
        return xp.all(v >= 0, axis=(-2, -1))


@register()
@dataclass(frozen=True, repr=False)
class DoublyStochastic(_WithSums):
    """The Birkhoff polytope ``{X : X >= 0, X 1 = 1, X' 1 = 1}``, for every square matrix in `axis`.

    Convex. To a tolerance: semismooth Newton on the dual, as in `Transport`. Cost: as there.

    Args:
        axis: the axes of the rows' index and of the columns' index; each an int or a tuple of ints taken as one.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: the matrices are not square, or `rate` is outside (0, 1].
        RuntimeError: the tolerance was not reached, where that can be seen (see `Transport`).

    Source: as for `Transport`.
    """

    axis: Any = (-2, -1)
    rate: float = 1.0

    def check_sizes(self, *sizes: int) -> None:
        if sizes[0] != sizes[1]:
            raise ValueError(f"DoublyStochastic is a set of square matrices; these are {sizes[0]} x {sizes[1]}")

    def nearest(self, v: Array, xp: Namespace) -> Array:
        fixed = xp.stop_gradient(v)
        return with_sums(v, xp.ones_like(fixed[..., :1]), xp.ones_like(fixed[..., :1, :]), 1.0, xp)


@register()
@dataclass(frozen=True, repr=False)
class Transport(_WithSums):
    """The transport polytope ``{X : X >= 0, X 1 = row_sums, X' 1 = column_sums}``, for every matrix in `axis`.

    Convex. To a tolerance: ``max(X - a - b, 0)``, with the a per row and b per column by semismooth Newton on the dual;
    the error is at most `projgrad.tolerance`. Cost: O(m n log n + n^3) per evaluation for m >= n, about 10 of them
    where the entries are as large as the sums and 30 to 100 where they are much larger; a few hundred were the most.

    The entries are taken as if they were small and grow to their size, since a problem with large entries (a linear
    program in the limit) is then solved from one that is nearly the same. Where they exceed the sums by so much that
    the entries' own rounding, as `projgrad.tolerance` counts it, is larger than the whole set, they are made smaller.
    Compiled code, TensorFlow graphs and PyTorch on a GPU raise nothing; `violation` of the result tells.

    Args:
        row_sums: m numbers of at least 0.
        column_sums: n numbers of at least 0 with the same total. Totals that differ by less than 1e-6 of them are taken
            as rounded, and the sums of the columns are scaled to that of the rows.
        axis: the axes of the rows' index and of the columns' index; each an int or a tuple of ints taken as one.
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: a sum is negative or not finite, the totals differ, the matrices are not m x n, or `rate` is outside
            (0, 1].
        RuntimeError: the tolerance was not reached.

    Source: Li, Sun and Toh, On the efficient computation of a projector onto the Birkhoff polytope, Math. Programming
    179 (2020), for the Newton system; the rows eliminated as in Blondel, Seguy and Rolet, Smooth and sparse optimal
    transport, AISTATS 2018 (their semi-dual).
    """

    row_sums: Any
    column_sums: Any
    axis: Any = (-2, -1)
    rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        totals = []
        for name in ("row_sums", "column_sums"):
            set_array(self, name, ndim=1)
            sums = np.asarray(getattr(self, name))
            if np.any(sums < 0):
                raise ValueError(f"Transport: {name} must be at least 0, as entries are")
            totals.append(float(np.sum(sums)))
        if abs(totals[0] - totals[1]) > 1e-6 * max(totals):
            raise ValueError(f"Transport: row_sums and column_sums have the totals {totals[0]:g} and {totals[1]:g}")
        rows, columns = np.asarray(self.row_sums), np.asarray(self.column_sums)
        scale = max(rows.max(initial=0.0), columns.max(initial=0.0)) or 1.0
        object.__setattr__(self, "_scale", float(scale))
        object.__setattr__(self, "_rows", FrozenArray(rows[:, None] / scale))
        object.__setattr__(self, "_columns", FrozenArray(columns[None] / scale * (totals[0] / (totals[1] or 1.0))))

    def check_sizes(self, *sizes: int) -> None:
        expected = (self.row_sums.shape[0], self.column_sums.shape[0])
        if sizes != expected:
            raise ValueError(
                f"Transport: the sums are those of {expected[0]} x {expected[1]} matrices; these are "
                f"{sizes[0]} x {sizes[1]}"
            )

    def nearest(self, v: Array, xp: Namespace) -> Array:
        rows, columns = (xp.constant(getattr(self, name), v) for name in ("_rows", "_columns"))
        return with_sums(v, rows, columns, self._scale, xp)  # type: ignore[attr-defined]


def with_sums(v: Array, rows: Array, columns: Array, scale: float, xp: Namespace) -> Array:
    """``max(v - a - b, 0)`` with the a per row and b per column that give it the sums.

    Args:
        v: matrices along the last two axes.
        rows, columns: their sums divided by `scale`, at most 1; of shapes that broadcast to (..., m, 1), (..., 1, n).
        scale: a positive number.
        xp: the functions to call.
    """
    if v.shape[-2] < v.shape[-1]:  # the system to solve has as many unknowns as there are columns
        flipped = with_sums(xp.matrix_transpose(v), xp.matrix_transpose(columns), xp.matrix_transpose(rows), scale, xp)
        return xp.matrix_transpose(flipped)
    unit = precision(v.dtype).compute_unit
    fixed = xp.stop_gradient(v)
    u = fixed - xp.max(fixed, axis=-1, keepdims=True)
    u = u - xp.max(u, axis=-2, keepdims=True)
    size = xp.max(xp.abs(u), axis=(-2, -1), keepdims=True)
    u = u / xp.maximum(size * (4 * unit), xp.zeros_like(size) + scale)
    live = (columns > 0) | (xp.max(columns, axis=-1, keepdims=True) <= 0)  # a column of zeros has no support
    u, solved = _newton(u, live, rows, columns, unit, xp)
    xp.require(solved, "the projection onto matrices with given sums did not reach its tolerance")
    on = xp.astype((u > 0) & live, u.dtype)
    ridge = 64 * unit * xp.ones_like(size)
    none = 0.0 * ridge

    def project(d: Array, rows: Array, columns: Array) -> Array:
        for _ in range(2):
            a, b = _shift(on * d, on, rows, columns, ridge, xp)
            d = on * (d - a - b)
        return d

    y = scale * xp.maximum(project(u, rows, columns), xp.zeros_like(u))
    return xp.with_derivative(y, v, lambda d: project(d, none, none))


def _newton(u: Array, live: Array, rows: Array, columns: Array, unit: float, xp: Namespace) -> tuple[Array, Array]:
    """`u` less numbers per row and per column such that its positive part has the sums; and whether it has.

    The rows' numbers are the exact solution for given ones of the columns, which take Newton's steps. A ridge that
    grows when a step goes too far, and shrinks when it does not, keeps these short. A level is the part of their size
    that the entries have for now.
    """

    def step(go: Array, base: Array, d: Array, ridge: Array, slope: Array, level: Array) -> tuple[Array, ...]:
        new = base - d
        new = new - _thresholds(new, live, rows, xp)
        excess = xp.accurate_sum(xp.where((new > 0) & live, new, 0.0), (-2,)) - columns
        along = xp.accurate_sum(excess * d, (-1,))
        accepted = (along >= -0.5 * slope) | (ridge > 1e3)
        error = xp.max(xp.abs(excess), axis=-1, keepdims=True)
        solved = accepted & (error <= xp.where(level < 1, 1e-5 + 0.0 * error, 16 * unit))
        done = go & xp.reshape(solved & (level >= 1), go.shape)
        grow = xp.where(solved, xp.minimum(1 / level, _GROWTH * one), one)
        base = xp.where(xp.reshape(go, one.shape) & accepted, grow * new, base)
        ridge = ridge * xp.where(accepted, xp.where(along >= -0.25 * slope, 0.25 * one, one), 8.0 * one)
        ridge = xp.maximum(ridge, 64 * unit * one)
        on = xp.astype((base > 0) & live, base.dtype)
        positive = base * on
        d = _shift(positive, on, rows, columns, ridge, xp)[1]
        slope = xp.accurate_sum((xp.accurate_sum(positive, (-2,)) - columns) * d, (-1,))
        return go & ~done, base, d, ridge, slope, level * grow

    size = xp.max(xp.abs(u), axis=(-2, -1), keepdims=True)
    one = xp.ones_like(size)
    level = 1 / xp.maximum(size / 8, one)
    go = xp.reshape(xp.isfinite(size), size.shape[:-2] or (1,))
    state = (go, u * level, 0.0 * u[..., :1, :], 0.01 * one, 0.0 * one, level)
    go, u, *_ = xp.iterate(step, state, _MOST)
    return u, ~go


def _thresholds(u: Array, live: Array, sums: Array, xp: Namespace) -> Array:
    """Per row, the t for which ``max(u - t, 0)`` has the sum, at most 1, over the live columns."""
    most = xp.max(xp.where(live, u, -xp.largest(u.dtype)), axis=-1, keepdims=True)
    ordered = xp.sort(xp.where(live, u, most - 2.0), axis=-1, descending=True)  # below the threshold
    count = xp.cumulative_sum(xp.ones_like(u), axis=-1)
    return xp.max((xp.cumulative_sum(ordered, axis=-1) - sums) / count, axis=-1, keepdims=True)


def _shift(y: Array, on: Array, rows: Array, columns: Array, ridge: Array, xp: Namespace) -> tuple[Array, Array]:
    """The numbers per row and per column to subtract from `y` on the support `on` to give it the sums.

    They solve ``[D B; B' E] (a, b) = excess`` with the counts D and E of the support B; here a is eliminated. A number
    remains free for each connected part of the support: `ridge` keeps it small.
    """
    excess = xp.accurate_sum(y, (-1,)) - rows
    count = xp.maximum(xp.sum(on, axis=-1, keepdims=True), xp.ones_like(y[..., :1]))
    over = xp.accurate_sum(y, (-2,)) - columns - xp.accurate_sum(on * (excess / count), (-2,))
    n = y.shape[-1]
    matrix = 1.0 / n - xp.matmul(xp.matrix_transpose(on), on / count)
    diagonal = xp.sum(on, axis=-2, keepdims=True) + ridge
    matrix = matrix + xp.where(eye(y[..., :n, :], xp), diagonal, 0.0)
    b = xp.matrix_transpose(xp.solve(matrix, xp.matrix_transpose(over)))
    return (excess - xp.accurate_sum(on * b, (-1,))) / count, b
