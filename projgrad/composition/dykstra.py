"""Any convex sets, by Dykstra's algorithm, which stops when a bound of the error says so.

Source: Boyle and Dykstra, A method for finding projections onto the intersection of convex sets, Lecture Notes in
Statistics 37 (1986). The bound: with the parts p_i of ``v - x`` in the normal cones of the sets at z_i,
``||x - P(v)||^2 <= sum(<p_i, z_i - x>) + ||v - x|| eps``, for x within eps of the intersection.
"""

from __future__ import annotations

from collections.abc import Sequence

from projgrad.axes import group_size
from projgrad.composition.dual_root import norm_of, point
from projgrad.constraint import Constraint
from projgrad.namespace import Array, Namespace
from projgrad.precision import tolerance

__all__ = ["alternating", "dykstra"]

MOST = 20_000  # sweeps over all sets
_MOST_AGAIN = 1_000
_SWEEPS = 10  # that the derivative is taken of

Axes = tuple[int, ...]


def dykstra(v: Array, parts: Sequence[Constraint], xp: Namespace, axes: Axes) -> tuple[Array, Array]:
    """The point of all `parts` nearest to `v`, and a bound of its distance from that point.

    Until the bound is ``sqrt(tolerance)`` of the norm of `v`; then again from there, where the digits that `v` has
    beyond the point are not lost, until the distance from every set is within the tolerance of the point.
    """
    fixed = xp.stop_gradient(v)
    x, shares, error = _sweeps(fixed, fixed, parts, xp, axes, MOST)
    x, more, again = _sweeps(x, x, parts, xp, axes, _MOST_AGAIN)
    shares = tuple(a + b for a, b in zip(shares, more, strict=True))
    return xp.graft(x, _differentiable(v, x, shares, parts, xp)), error + again


def alternating(v: Array, parts: Sequence[Constraint], xp: Namespace, axes: Axes) -> tuple[Array, Array]:
    """A point of all `parts`, by projecting onto one after the other, and its distance from them.

    It need not be the one nearest to `v`, not even where all are convex.
    """

    def sweep(moving: Array, x: Array, error: Array) -> tuple[Array, Array, Array]:
        y, found = x, []
        for part in parts:
            y = point(part, y, xp)
            found.append(y)
        far = _farthest([norm_of(z - y, xp, axes) for z in found], xp)
        return moving & (far > _allowed(y, xp, axes)), xp.where(moving, y, x), xp.where(moving, far, error)

    fixed = xp.stop_gradient(v)
    zero = norm_of(0.0 * fixed, xp, axes)
    _, x, error = xp.iterate(sweep, (zero == 0, fixed, zero), MOST)
    y = v
    for part in parts:
        y = point(part, y, xp)
    return xp.graft(x, y), error


def _sweeps(
    v: Array, start: Array, parts: Sequence[Constraint], xp: Namespace, axes: Axes, most: int
) -> tuple[Array, tuple[Array, ...], Array]:
    """The point from `start`, the parts of ``v - x`` that belong to the sets, and the bound."""
    size = group_size(v.shape, axes)
    relative = tolerance(v.dtype, size, 1.0)

    def sweep(moving: Array, x: Array, error: Array, *shares: Array) -> tuple[Array, ...]:
        y, found, kept = x, [], []
        for part, share in zip(parts, shares, strict=True):
            z = point(part, y + share, xp)
            kept.append(y + share - z)
            found.append(z)
            y = z
        far = _farthest([norm_of(z - y, xp, axes) for z in found], xp)
        scale = norm_of(v, xp, axes)
        scale = xp.maximum(scale, norm_of(y, xp, axes))
        scale = xp.where(scale > 0, scale, 1.0)
        gap = 0.0 * scale
        for share, z in zip(kept, found, strict=True):
            gap = gap + xp.accurate_sum((share / scale) * ((z - y) / scale), axes)
        gap = xp.where(gap > 0, gap, 0.0) + norm_of(v - y, xp, axes) / scale * (far / scale)
        done = (gap <= relative) & (far <= 0.5 * tolerance(v.dtype, size, scale))
        new = tuple(xp.where(moving, b, a) for a, b in zip(shares, kept, strict=True))
        return moving & ~done, xp.where(moving, y, x), xp.where(moving, xp.sqrt(gap) * scale, error), *new

    zero = norm_of(0.0 * v, xp, axes)
    _, x, error, *shares = xp.iterate(sweep, (zero == 0, start, zero, *(0.0 * v for _ in parts)), most)
    return x, tuple(shares), error


def _differentiable(v: Array, x: Array, shares: Sequence[Array], parts: Sequence[Constraint], xp: Namespace) -> Array:
    """The last point with the derivative of a few more sweeps, to which that of all of them comes close."""
    if not xp.may_differentiate(v):
        return x
    y = x + (v - xp.stop_gradient(v))
    for _ in range(_SWEEPS):
        kept = []
        for part, share in zip(parts, shares, strict=True):
            z = point(part, y + share, xp)
            kept.append(y + share - z)
            y = z
        shares = kept
    return y


def _allowed(x: Array, xp: Namespace, axes: Axes) -> Array:
    return 0.5 * tolerance(x.dtype, group_size(x.shape, axes), norm_of(x, xp, axes))


def _farthest(distances: Sequence[Array], xp: Namespace) -> Array:
    far = distances[0]
    for distance in distances[1:]:
        far = xp.maximum(far, distance)
    return far
