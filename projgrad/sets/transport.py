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

    Convex. To a tolerance: semismooth Newton on the dual, as in `Transport`. Cost: as there. In a metric: as there.

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
        return self._with_sums(v, None, xp)

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        return self._with_sums(v, 1.0 / h, xp)

    def _with_sums(self, v: Array, w: Array | None, xp: Namespace) -> Array:
        fixed = xp.stop_gradient(v)
        return with_sums(v, xp.ones_like(fixed[..., :1]), xp.ones_like(fixed[..., :1, :]), 1.0, xp, w)


@register()
@dataclass(frozen=True, repr=False)
class Transport(_WithSums):
    """The transport polytope ``{X : X >= 0, X 1 = row_sums, X' 1 = column_sums}``, for every matrix in `axis`.

    Convex. To a tolerance: ``max(X - a - b, 0)``, with the a per row and b per column by semismooth Newton on the dual;
    the error is at most `projgrad.tolerance`. Cost: O(m n log n + n^3) per evaluation for m >= n, about 10 of them
    where the entries are as large as the sums and 30 to 100 where they are much larger; a few hundred were the most.
    In a metric: ``max(X - (a + b) / h, 0)``, with some hundred evaluations where the weights span four orders of
    magnitude; where they span many more, the tolerance may not be reached.

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
        return self._with_sums(v, None, xp)

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        return self._with_sums(v, 1.0 / h, xp)

    def _with_sums(self, v: Array, w: Array | None, xp: Namespace) -> Array:
        rows, columns = (xp.constant(getattr(self, name), v) for name in ("_rows", "_columns"))
        return with_sums(v, rows, columns, self._scale, xp, w)  # type: ignore[attr-defined]


def with_sums(v: Array, rows: Array, columns: Array, scale: float, xp: Namespace, w: Array | None = None) -> Array:
    """``max(v - (a + b) w, 0)`` with the a per row and b per column that give it the sums; w is 1 where it is None.

    Args:
        v: matrices along the last two axes.
        rows, columns: their sums divided by `scale`, at most 1; of shapes that broadcast to (..., m, 1), (..., 1, n).
        scale: a positive number.
        xp: the functions to call.
        w: positive numbers of the shape of `v`, or None.
    """
    if v.shape[-2] < v.shape[-1]:  # the system to solve has as many unknowns as there are columns
        turn = xp.matrix_transpose
        return turn(with_sums(turn(v), turn(columns), turn(rows), scale, xp, None if w is None else turn(w)))
    unit = precision(v.dtype).compute_unit
    u = xp.stop_gradient(v)
    if w is None:  # what all entries of a row or of a column have in common makes no difference
        u = u - xp.max(u, axis=-1, keepdims=True)
        u = u - xp.max(u, axis=-2, keepdims=True)
    size = xp.max(xp.abs(u), axis=(-2, -1), keepdims=True)
    u = u / xp.maximum(size * (4 * unit), xp.zeros_like(size) + scale)
    live = (columns > 0) | (xp.max(columns, axis=-1, keepdims=True) <= 0)  # a column of zeros has no support
    u, solved = _newton(u, w, live, rows, columns, unit, xp)
    xp.require(solved, "the projection onto matrices with given sums did not reach its tolerance")
    on = xp.astype((u > 0) & live, u.dtype)
    parts = _Parts(on, w, xp)
    ridge = 64 * unit * xp.ones_like(size)
    none = 0.0 * ridge

    def project(d: Array, rows: Array, columns: Array) -> Array:
        for _ in range(2):
            a, b = parts.shift(on * d, rows, columns, ridge)
            d = on * d - parts.w * (a + b)
        return d

    y = scale * xp.maximum(project(u, rows, columns), xp.zeros_like(u))
    return xp.with_derivative(y, v, lambda d: project(d, none, none))


def _newton(
    u: Array, w: Array | None, live: Array, rows: Array, columns: Array, unit: float, xp: Namespace
) -> tuple[Array, Array]:
    """`u` less numbers per row and per column, times w, such that its positive part has the sums; and whether it has.

    The rows' numbers are the exact solution for given ones of the columns, which take Newton's steps. A ridge that
    grows when a step goes too far, and shrinks when it does not, keeps these short. A level is the part of their size
    that the entries have for now.
    """

    def step(go: Array, base: Array, d: Array, ridge: Array, slope: Array, level: Array) -> tuple[Array, ...]:
        new = base - (d if w is None else d * w)
        new = new - _thresholds(new, w, live, rows, xp)
        excess = xp.accurate_sum(xp.where((new > 0) & live, new, 0.0), (-2,)) - columns
        along = xp.accurate_sum(excess * d, (-1,))
        accepted = (along >= -0.5 * slope) | (ridge > 1e3)
        error = xp.max(xp.abs(excess), axis=-1, keepdims=True)
        solved = accepted & (error <= xp.where(level < 1, 1e-5 + 0.0 * error, 16 * unit))
        done = go & xp.reshape(solved & (level >= 1), go.shape)
        grow = xp.where(solved, xp.minimum(1 / level, _GROWTH * one), one)
        base = xp.where(xp.reshape(go, one.shape) & accepted, grow * new, base)
        ridge = ridge * xp.where(accepted, xp.where(along >= -0.1 * slope, 0.25 * one, 2.0 * one), 3.0 * one)
        ridge = xp.maximum(ridge, 64 * unit * one)
        on = xp.astype((base > 0) & live, base.dtype)
        positive = base * on
        newton = _Parts(on, w, xp).shift(positive, rows, columns, ridge)[1]
        # a step that goes too far is cut to where the slope would be 0, if it changed evenly
        less = slope / xp.where(slope > along, slope - along, one)
        less = xp.minimum(xp.maximum(less, 0.02 * one), 0.5 * one)
        d = xp.where(accepted, newton, d * less)
        slope = xp.accurate_sum((xp.accurate_sum(positive, (-2,)) - columns) * d, (-1,))
        return go & ~done, base, d, ridge, slope, level * grow

    size = xp.max(xp.abs(u), axis=(-2, -1), keepdims=True)
    one = xp.ones_like(size)
    level = 1 / xp.maximum(size / 8, one)
    go = xp.reshape(xp.isfinite(size), size.shape[:-2] or (1,))
    state = (go, u * level, 0.0 * u[..., :1, :], 0.01 * one, 0.0 * one, level)
    go, u, *_ = xp.iterate(step, state, _MOST)
    return u, ~go


def _thresholds(u: Array, w: Array | None, live: Array, sums: Array, xp: Namespace) -> Array:
    """What to subtract for ``max(u - t w, 0)`` to have the sum in every row, at most 1, over the live columns: t w."""
    low = -xp.largest(u.dtype)
    if w is None:
        most = xp.max(xp.where(live, u, low), axis=-1, keepdims=True)
        ordered = xp.sort(xp.where(live, u, most - 2.0), axis=-1, descending=True)  # below the threshold
        count = xp.cumulative_sum(xp.ones_like(u), axis=-1)
        return xp.max((xp.cumulative_sum(ordered, axis=-1) - sums) / count, axis=-1, keepdims=True)
    order = xp.argsort(xp.where(live, u / w, low), axis=-1, descending=True)
    totals, counts = (
        xp.cumulative_sum(xp.take_along_axis(xp.where(live, x, 0.0), order, axis=-1), axis=-1) for x in (u, w)
    )
    return w * xp.max((totals - sums) / counts, axis=-1, keepdims=True)


class _Parts:
    """The system for the numbers per row and per column that give matrices with the support `on` their sums.

    It is ``[D B; B' E] (a, b) = excess`` with the weights B = on w and the sums D and E of these per row and per
    column; here a is eliminated. A number remains free for each connected part of the support: a ridge, relative to E,
    keeps it small.
    """

    def __init__(self, on: Array, w: Array | None, xp: Namespace) -> None:
        self.w, self.xp = on if w is None else on * w, xp
        rows, columns = (xp.sum(self.w, axis=axis, keepdims=True) for axis in (-1, -2))
        self.rows = xp.where(rows > 0, rows, 1.0)
        everywhere = columns if w is None else xp.max(w, axis=-2, keepdims=True)
        scale = 1.0 / xp.sqrt(xp.where(columns > 0, columns, xp.where(everywhere > 0, everywhere, 1.0)))
        matrix = -xp.matmul(xp.matrix_transpose(self.w), self.w / self.rows)
        matrix = matrix + xp.where(eye(matrix, xp), columns, 0.0)
        free = 1.0 / scale
        free = free / xp.sqrt(xp.sum(free * free, axis=-1, keepdims=True))
        self.scale = scale
        self.matrix = matrix * scale * xp.matrix_transpose(scale) + free * xp.matrix_transpose(free)

    def shift(self, y: Array, rows: Array, columns: Array, ridge: Array) -> tuple[Array, Array]:
        """The numbers per row and per column, whose w-fold is to be subtracted from `y`."""
        xp = self.xp
        excess = xp.accurate_sum(y, (-1,)) - rows
        over = xp.accurate_sum(y, (-2,)) - columns - xp.accurate_sum(self.w * (excess / self.rows), (-2,))
        matrix = self.matrix + xp.where(eye(self.matrix, xp), ridge, 0.0)
        b = self.scale * xp.matrix_transpose(xp.solve(matrix, xp.matrix_transpose(over * self.scale)))
        return (excess - xp.accurate_sum(self.w * b, (-1,))) / self.rows, b
