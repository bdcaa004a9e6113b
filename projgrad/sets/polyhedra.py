"""Sets given by linear equations and inequalities of the entries of a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from projgrad.axes import Axis
from projgrad.coupled import VectorSet
from projgrad.frozen import FrozenArray
from projgrad.namespace import Array, Namespace
from projgrad.precision import precision
from projgrad.registry import register
from projgrad.sets.active_set import below
from projgrad.sets.decomposition import eye
from projgrad.sets.systems import (
    echelon,
    inside_of_equations,
    is_empty,
    onto_equations,
    onto_equations_in,
    products,
    row_space,
)
from projgrad.values import native_value, set_array

__all__ = ["Affine", "Polyhedron"]


@register()
@dataclass(frozen=True, repr=False)
class Affine(VectorSet):
    """The affine set ``{x : A x = b}``, for every group of entries along `axis`.

    Convex. Exact: ``x - Q' (Q x - c)`` with an orthonormal basis Q of the rows of A. Cost: O(k n) for rank k. In a
    metric: by elimination with complete pivoting in every group, which costs O(k^2 n).

    The equations are put in this form once, in double precision, so that redundant and nearly parallel ones do no harm.

    Args:
        A: m rows of n numbers, one per entry of a group (in row-major order, where `axis` has several axes).
        b: m numbers, or one for all.
        axis: the axes of a group: an int, a tuple, None for all, or "incoming".
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: the equations contradict each other, `A` or `b` is not of these shapes or not finite, `A` has no
            row, a group does not have n entries, or `rate` is outside (0, 1].

    Source: Bauschke and Combettes, Convex Analysis and Monotone Operator Theory (2017), chapter 29.
    """

    A: Any
    b: Any = 0.0
    axis: Axis = -1
    rate: float = 1.0
    affine = True

    def __post_init__(self) -> None:
        super().__post_init__()
        rows, offsets = _system(self, "A", "b")
        found = row_space(rows, offsets)
        if found is None:
            raise ValueError("Affine: the equations A x = b contradict each other")
        object.__setattr__(self, "_q", FrozenArray(found[0]))
        c = _for_one(rows, self.b, found[1])
        object.__setattr__(self, "_c", FrozenArray(c))
        # for extreme weights, the zeros of A must stay zeros, which those of Q are up to rounding only
        steps = echelon(rows, len(c))
        object.__setattr__(self, "_steps", FrozenArray(steps))
        object.__setattr__(self, "_rises", FrozenArray(steps @ found[0].T @ c))

    def check_sizes(self, *sizes: int) -> None:
        _check_length(self, sizes[0])

    def nearest(self, v: Array, xp: Namespace) -> Array:
        q, c = self._equations("_q", "_c", v, xp)
        return xp.reshape(onto_equations(xp.reshape(v, (-1, v.shape[-1])), q, c, xp), v.shape)

    def nearest_in(self, v: Array, h: Array, xp: Namespace) -> Array:
        flat = (-1, v.shape[-1])
        q, c = self._equations("_steps", "_rises", v, xp)
        return xp.reshape(onto_equations_in(xp.reshape(v, flat), xp.reshape(h, flat), q, c, xp), v.shape)

    def _equations(self, rows: str, offsets: str, v: Array, xp: Namespace) -> tuple[Array, Array]:
        q, c = (xp.constant(getattr(self, name), v) for name in (rows, offsets))
        return q, c * _factor(self.b, v, xp)


@register()
@dataclass(frozen=True, repr=False)
class Polyhedron(VectorSet):
    """The polyhedron ``{x : A x <= b, C x = d}``, for every group of entries along `axis`.

    Convex. To a tolerance: the dual active set method; every inequality, divided by the norm of its row, holds up to
    twice `projgrad.tolerance` of the point. Cost: O(m n + m^2) per step for m inequalities, about as many steps as hold
    with equality at the nearest point, and some more where that changes on the way.

    The inequalities are those within the solutions of the equations, worked out once in double precision. The active
    set's solution comes from a tableau of m x m numbers per group, so a few dozen inequalities are a good number. It is
    solved again from its own result until nothing is violated, which gives back the digits that a far point loses.
    An inequality that is within about 0.001 (in double precision 5e-8) radians of the span of others that hold with
    equality cannot be told from these. The result is certified: it is feasible, and the way to it is made of rows that
    hold with equality, pointing outwards. Where it is not, RuntimeError is raised; compiled code, TensorFlow graphs and
    PyTorch on a GPU raise nothing, and `violation` of the result tells.

    Args:
        A: m rows of n numbers, one per entry of a group (in row-major order, where `axis` has several axes).
        b: m numbers, or one for all.
        C: rows of equations, or None.
        d: a number per row of `C`, or one for all; 0 if None.
        axis: the axes of a group: an int, a tuple, None for all, or "incoming".
        rate: 1 for the nearest point; below 1 for ``(1 - rate) * x + rate * P(x)``.

    Raises:
        ValueError: no point has these properties (by more than 1e-9 of the largest number in `b`), a matrix or vector
            is not of these shapes or not finite, a group does not have n entries, or `rate` is outside (0, 1].
        RuntimeError: the tolerance was not reached.

    Source: Goldfarb and Idnani, A numerically stable dual method for solving strictly convex quadratic programs, Math.
    Programming 27 (1983); in the form of non-negative least squares, Lawson and Hanson (1974), chapter 23.
    """

    A: Any
    b: Any = 0.0
    C: Any = None
    d: Any = None
    axis: Axis = -1
    rate: float = 1.0
    accuracy: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        rows, offsets = _system(self, "A", "b")
        q, c = np.zeros((0, rows.shape[1])), np.zeros(0)
        if self.C is not None:
            if self.d is None:
                object.__setattr__(self, "d", 0.0)
            equations = _system(self, "C", "d")
            if equations[0].shape[1] != rows.shape[1]:
                raise ValueError(f"Polyhedron: A has {rows.shape[1]} columns and C has {equations[0].shape[1]}")
            found = row_space(*equations)
            if found is None:
                raise ValueError("Polyhedron: the equations C x = d contradict each other")
            q, c = found
        elif self.d is not None:
            raise ValueError("Polyhedron: d is given without C")
        left, bounds, impossible = inside_of_equations(rows, offsets, q, c)
        if impossible or is_empty(left, bounds):
            raise ValueError("Polyhedron: no point has A x <= b" + (" and C x = d" if len(q) else ""))
        # the bounds are _of_b + _of_d, times the numbers b and d where they are such, which may change with the step
        if len(q):
            c = _for_one(np.asarray(self.C), self.d, c)
        one = np.ones(len(rows)) if isinstance(self.b, float) else offsets
        of_b, of_d = inside_of_equations(rows, one, q, 0 * c)[1], inside_of_equations(rows, 0 * one, q, c)[1]
        made = {"_q": q, "_c": c, "_rows": left, "_of_b": of_b, "_of_d": of_d, "_gram": left @ left.T}
        for name, value in (made | {"_index": np.arange(len(left))}).items():
            object.__setattr__(self, name, FrozenArray(value))
        object.__setattr__(self, "_rank", int(np.linalg.matrix_rank(left, tol=1e-11)) if len(left) else 0)

    def check_sizes(self, *sizes: int) -> None:
        _check_length(self, sizes[0])

    def nearest(self, v: Array, xp: Namespace) -> Array:
        names = ("_q", "_c", "_rows", "_of_b", "_of_d", "_gram", "_index")
        q, c, rows, of_b, of_d, gram, index = (xp.constant(getattr(self, name), v) for name in names)
        c, of_d = c * _factor(self.d, v, xp), of_d * _factor(self.d, v, xp)
        offsets = of_b * _factor(self.b, v, xp) + of_d
        equations = self._q.shape[0] > 0  # type: ignore[attr-defined]

        def onto(x: Array, c: Array) -> Array:
            return onto_equations(x, q, c, xp) if equations else x

        flat = xp.reshape(v, (-1, v.shape[-1]))
        if self._rows.shape[0] == 0:  # type: ignore[attr-defined]
            return xp.reshape(onto(flat, c), v.shape)
        fixed = xp.stop_gradient(flat)
        # far entries are brought nearer, where products with them are finite
        scale = xp.max(xp.abs(fixed), axis=-1, keepdims=True) * 2.0**-66
        scale = xp.maximum(scale, xp.ones_like(scale))
        rank: int = self._rank  # type: ignore[attr-defined]
        x, total, solved = below(
            fixed / scale, rows, offsets / scale, gram, index, rank, lambda x: onto(x, c / scale), xp
        )
        xp.require(solved, f"the projection onto {self} did not reach its tolerance")

        on = xp.astype(total > 0, v.dtype)

        def derivative(d: Array) -> Array:
            d = onto(xp.reshape(d, fixed.shape), 0.0 * c)
            both = on[:, :, None] * on[:, None, :]
            ridge = 64 * precision(d.dtype).compute_unit
            system = both * gram + xp.where(eye(both, xp), 1.0 - both + ridge, 0.0)
            for _ in range(2):
                along = products(d, rows, xp) * on
                d = d - xp.matmul(xp.solve(system, along[..., None])[..., 0], rows)
            return xp.reshape(d, v.shape)

        return xp.with_derivative(xp.reshape(x * scale, v.shape), v, derivative)


def _system(constraint: Any, rows: str, offsets: str) -> tuple[np.ndarray, np.ndarray]:
    """The fields of these names as a matrix and a vector."""
    kind = type(constraint).__name__
    set_array(constraint, rows, ndim=2)
    set_array(constraint, offsets)
    matrix, right = np.asarray(getattr(constraint, rows)), np.asarray(getattr(constraint, offsets))
    if 0 in matrix.shape:
        raise ValueError(f"{kind}: {rows} has the shape {matrix.shape}, without a row or a column")
    if right.shape not in ((), (len(matrix),)):
        raise ValueError(f"{kind}: {offsets} must be a number or {len(matrix)} of them, one per row of {rows}")
    return matrix, np.broadcast_to(right, (len(matrix),))


def _for_one(rows: np.ndarray, offsets: float | FrozenArray, c: np.ndarray) -> np.ndarray:
    """The c of ``rows x = offsets``, as `row_space` gives it; in the place of a number that of 1."""
    if isinstance(offsets, FrozenArray):
        return c
    found = row_space(rows, np.ones(len(rows)))
    return np.zeros_like(c) if found is None else found[1]


def _factor(offsets: Any, v: Array, xp: Namespace) -> Any:
    """What to multiply by where a number is meant for all rows, and 1 where each has its own."""
    return 1.0 if offsets is None or isinstance(offsets, FrozenArray) else native_value(offsets, v, xp)


def _check_length(constraint: Any, size: int) -> None:
    if constraint.A.shape[1] != size:
        raise ValueError(f"{type(constraint).__name__}: A has {constraint.A.shape[1]} columns, a group {size} entries")
