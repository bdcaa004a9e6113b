"""Which groups of an array lie on the boundary of their set, told by projections alone."""

from __future__ import annotations

import math

import numpy as np

from projgrad.constraint import Constraint
from projgrad.frozen import FrozenArray
from projgrad.namespace import Array, Namespace
from projgrad.precision import precision

__all__ = ["on_boundary"]

_BESIDE = 1e-3  # how far beyond a point one looks, relative to the way from the middle of the set
_SLACK = 2.0  # times the tolerance is inside


def on_boundary(constraint: Constraint, x: Array, xp: Namespace) -> Array:
    """Which groups of `x` are on the boundary of the set or outside, as an array of bools with one entry per group.

    A point of a convex set is on the boundary if the set ends there for one who comes from the middle of it, or at most
    a thousandth of the way further on. This is the relative boundary: of a simplex, where an entry is 0; of an affine
    set, nowhere. In a set that is not convex, one looks in any direction and back, so that all points of a sphere are
    on the boundary. A group with a NaN or an infinity is not.

    Args:
        constraint: the set, with axes as numbers and no schedule.
        x: an array with at least one entry.
        xp: the functions to call on it.
    """
    x = xp.stop_gradient(x)
    start = xp.upcast(x)
    finite = xp.isfinite(start)
    start = xp.where(finite, start, xp.zeros_like(start))
    axes = constraint.group_axes(len(x.shape))
    around = _around(start, axes, xp)
    away = max(_BESIDE, 4 * precision(x.dtype).unit) * (start - _middle(constraint, start, around, xp))
    if constraint.convex:
        left = ~_keep(constraint, start + away, xp)
    else:
        away = away + _BESIDE * around
        left = ~(_keep(constraint, start + away, xp) & _keep(constraint, start - away, xp))
    return left & (xp.all(finite, axis=axes, keepdims=True) if axes else finite)


def _keep(constraint: Constraint, x: Array, xp: Namespace) -> Array:
    return constraint.solve(x, xp).keep(x, xp, _SLACK)


def _around(x: Array, axes: tuple[int, ...], xp: Namespace) -> Array:
    """A direction of the size of each group of `x`, the same each time."""
    shape = [n if d in axes else 1 for d, n in enumerate(x.shape)]
    noise = np.random.default_rng(0).standard_normal(math.prod(shape)).reshape(shape)
    size = xp.max(xp.abs(x), axis=axes, keepdims=True) if axes else xp.abs(x)
    away = xp.where(size > 0, size, xp.ones_like(size)) * xp.constant(FrozenArray(noise), size)
    return xp.astype(away, x.dtype) if xp.is_complex(x) else away


def _middle(constraint: Constraint, x: Array, around: Array, xp: Namespace) -> Array:
    """A point of every group that is on no face of its convex set that `x` is on, unless the whole set is one.

    The mean of some points of a set is on a face only where all of them are: so it is that of the point nearest to 0,
    and of those nearest to two on either side of `x`.
    """
    points = [constraint.solve(z, xp).apply(z, xp) for z in (xp.zeros_like(x), x + around, x - around)]
    return (points[0] + points[1] + points[2]) / 3
