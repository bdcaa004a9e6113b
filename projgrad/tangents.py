"""Directions in which a point can move without leaving a set, to first order: onto the tangent cone of some sets."""

from __future__ import annotations

from typing import Any

from projgrad.namespace import Array, Namespace
from projgrad.precision import precision, tolerance

__all__ = ["along_shell", "along_stiefel", "linear_part", "within"]


def within(x: Array, d: Array, lower: Any, upper: Any, xp: Namespace) -> Array:
    """`d` without the entries that lead out of ``lower <= x <= upper``; None is no bound."""
    if lower is not None:
        d = xp.where((x <= lower) & (d < 0), 0.0, d)
    if upper is not None:
        d = xp.where((x >= upper) & (d > 0), 0.0, d)
    return d


def along_shell(
    x: Array, d: Array, low: Any, high: Any, axes: tuple[int, ...], size: int, xp: Namespace, dtype: Any = None
) -> Array:
    """`d` without the part along `x`, where ``low <= ||x|| <= high`` is met with equality and that leads out of it.

    Where the bounds are equal, that is the tangent space of a sphere. A group of zeros has no such part, and no
    direction at all in a ball of radius 0. The `dtype` is that in which the point is stored, if not that of `x`.
    """
    dtype = dtype or x.dtype
    m, u = xp.norm(x, axes)
    norm = xp.times(m, u)
    unit = xp.divide(xp.divide(xp.upcast(x), m), xp.where(u > 0, u, 1.0))
    upper = norm >= high - 2 * tolerance(dtype, size, high)
    lower = (norm <= low + 2 * tolerance(dtype, size, low)) & (low > 0)
    for _ in range(2):  # the second time for what rounding left
        part = xp.real(unit) * xp.real(d)
        part = part + xp.imag(unit) * xp.imag(d) if xp.is_complex(d) else part
        along = xp.accurate_sum(part, axes)
        out = (upper & (along > 0)) | (lower & (along < 0))
        d = d - xp.times(unit, xp.where(out | (upper & lower), along, 0.0))
    return xp.where((norm == 0) & (norm >= high), 0.0 * d, d)


def along_stiefel(x: Array, d: Array, xp: Namespace) -> Array:
    """``d - x sym(x'd)``, the tangent space of the matrices with orthonormal columns, or rows where they are wide.

    Source: Absil, Mahony and Sepulchre, Optimization Algorithms on Matrix Manifolds (2008), example 3.6.2.
    """
    if x.shape[-2] < x.shape[-1]:
        return xp.matrix_transpose(along_stiefel(xp.matrix_transpose(x), xp.matrix_transpose(d), xp))
    for _ in range(2):  # as above
        inner = xp.matmul(xp.matrix_transpose(x), d)
        d = d - xp.matmul(x, 0.5 * (inner + xp.matrix_transpose(inner)))
    return d


def linear_part(project: Any, d: Array, axes: tuple[int, ...], xp: Namespace) -> Array:
    """``project(d) - project(0)`` of the projection onto an affine set, with the digits that a short `d` has."""
    origin = project(xp.zeros_like(d))
    size, far = (xp.times(*xp.norm(v, axes)) for v in (d, origin))
    enough = size > (1.0 + far) * precision(d.dtype).tiny  # for a scale that is finite
    scale = xp.where(enough, (1.0 + far) / xp.where(enough, size, 1.0), 1.0)
    return (project(d * scale) - origin) / scale
