"""What the quicker ways around a decomposition of large matrices are made of.

A way that does not lead to a result gives NaN; then the next one is tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from projgrad.namespace import Array, Namespace
from projgrad.precision import tolerance
from projgrad.sets.decomposition import ACCURACY, eye, half_product

__all__ = [
    "both",
    "fewest",
    "first_of",
    "fraction",
    "from_identity",
    "known",
    "last",
    "length",
    "near_polar",
    "polar",
    "turned",
    "unknown",
    "where_fine",
]


def near_polar(z: Array, e: Array, xp: Namespace) -> Array:
    """``z (z'z)^(-1/2)``, by its power series in ``e = 1 - z'z`` up to the degree 2 or 4; NaN where that is too low."""
    n, e2 = e.shape[-1], half_product(e, e, xp)  # no larger than its Frobenius norm
    size, allowed = length(e2, xp), fraction(z) * math.sqrt(n) / 8
    short = size**1.5 / 3 <= allowed
    more = ~short & (size <= 0.1) & (0.5 * size**2.5 <= allowed * n**0.25)  # where that may be enough
    rest = xp.unless(~more, lambda _: half_product(e2, 0.3125 * e + (35 / 128) * e2, xp), xp.zeros_like(e2))
    near = short | more & (1.6 * size * length(rest, xp) <= allowed)

    def found(z: Array) -> Array:
        return z + xp.matmul(z, 0.5 * e + 0.375 * e2 + rest)

    return where_fine(near, xp.unless(~near, found, z), xp)


def polar(z: Array, g: Array, low: Array, high: Array, xp: Namespace) -> Array:
    """The same with ``g = z'z``, whose eigenvalues are about between two bounds, one at most 8 times the other.

    First roughly, by the parabola through three points of ``g^(-1/2)``. It is positive everywhere, so whatever the
    eigenvalues are, the polar factor does not change.
    """
    middle, half = (high + low) / 2, (high - low) / 2 * math.sqrt(0.75)
    x = (middle - half, middle, middle + half)
    y = tuple(1.0 / xp.sqrt(at) for at in x)
    rise = ((y[1] - y[0]) / half, (y[2] - y[1]) / half)
    bend = (rise[1] - rise[0]) / (2 * half)
    slope = rise[0] - bend * (x[0] + x[1])
    level = y[0] - rise[0] * x[0] + bend * x[0] * x[1]
    z = level * z + xp.matmul(z, bend * half_product(g, g, xp) + slope * g)
    return near_polar(z, from_identity(half_product(z, z, xp), xp), xp)


def from_identity(g: Array, xp: Namespace) -> Array:
    """How far matrices are off the identity: that less them."""
    return xp.astype(eye(g, xp), g.dtype) - g


def first_of(ways: tuple[Callable[[Array], Array], ...], y: Array, xp: Namespace) -> Array:
    """`y`, or where it is not known, what the first of the ways gives that leads to a result."""
    for way in ways:
        y = xp.unless(known(y, xp), way, y)
    return y


def known(y: Array, xp: Namespace) -> Array:
    """Whether matrices are results, with length 1 in the last axes."""
    return xp.isfinite(y[..., :1, :1])


def unknown(v: Array, xp: Namespace) -> Array:
    """Matrices like `v` that are no results."""
    return xp.broadcast_to(math.nan * xp.ones_like(v[..., :1, :1]), v.shape)


def where_fine(fine: Array, y: Array, xp: Namespace) -> Array:
    """`y`, unknown where it is not fine."""
    return xp.unless(fine, lambda y: xp.where(fine, y, math.nan), y)


def both(first: Array, second: Callable[[], Array], xp: Namespace) -> Array:
    """Both of two conditions, the second of which is not looked at where the first is false."""
    return xp.unless(~first, lambda first: first & second(), first)


def fewest(above: Array, xp: Namespace) -> int:
    """How many of the last values hold all that are above, where one can tell."""
    if not xp.can_look(above):
        return int(above.shape[-1])
    return max(int(xp.max(xp.sum(xp.astype(above, xp.int64), axis=-1))), 1)


def last(x: Array, count: int) -> Array:
    """The last columns."""
    return x[..., max(x.shape[-1] - count, 0) :]


def turned(z: Array, across: bool, xp: Namespace) -> Array:
    """`z`, or its transpose."""
    return xp.matrix_transpose(z) if across else z


def fraction(z: Array) -> float:
    """How far a result may be off, as a part of the norm of the matrix."""
    return float(ACCURACY * tolerance(z.dtype, z.shape[-2] * z.shape[-1], 1.0))


def length(z: Array, xp: Namespace) -> Array:
    """The Frobenius norm; with length 1 in the last axes."""
    return xp.sqrt(xp.accurate_sum(z * z, (-2, -1)))
