"""Ways around a decomposition for large matrices of which little has to change, each with a check of what it gives.

Most start from the Gram matrix ``G = X'X``, whose eigenvalues are the squares of the singular values. Those above the
bound are taken off where they are none or few (`subspace`); what is left is the nearest point then: ``<X - Y, Y>`` is
as large as for any matrix of the ball. Where that does not go, an eigendecomposition of the Gram matrix is still
quicker than one of X, and as accurate as long as the largest value is not much larger than the bound.

Rounding: sums of a few hundred terms one after the other, of which every library's product of matrices is made, leave
the Gram matrix of an X with the largest singular value c off by at most half as many units times ``c ||X||``, and a
Cholesky factorisation likewise. Half of the promised accuracy is left to that.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from projgrad.namespace import Array, Namespace
from projgrad.sets.decomposition import half_product, scaled
from projgrad.sets.large import (
    both,
    fewest,
    first_of,
    fraction,
    from_identity,
    last,
    length,
    near_polar,
    polar,
    turned,
    unknown,
    where_fine,
)
from projgrad.sets.subspace import WIDE, Bound, ends, without_few

__all__ = ["clipped", "orthonormal", "raised", "shrunk"]

_TRUSTED = 24.0  # how far the square of the largest singular value may exceed what the bound's accuracy needs


def clipped(v: Array, exact: Callable[[Array], Array], xp: Namespace, most: float) -> Array:
    """``U min(s, most) V'`` of ``v = U s V'``, as accurate as what `exact` computes."""
    z, q = scaled(v, xp, most)
    across = v.shape[-2] < v.shape[-1]
    tall, size, c = turned(z, across, xp), length(z, xp), most / q
    g, cap, near = half_product(tall, tall, xp), c * c, fraction(z)

    def less(vectors: Array, values: Array) -> Array:
        root = xp.sqrt(values)
        part = q * (root - c) / xp.where(root > 0, root, 1.0)  # 0 where the value is at the bound
        return v - turned(xp.matmul(xp.matmul(tall, vectors) * part, xp.matrix_transpose(vectors)), across, xp)

    def few() -> Array:  # beyond that, the rounding of the largest values hides what is just above the bound
        return length(g, xp) <= 4 * c * size

    def by_polar(y: Array) -> Array:
        """If all is above, by not too much."""
        low, top = ends(g, xp)
        fit = both((low > cap) & (top <= 6 * cap), lambda: xp.is_below(-g, -cap), xp)
        return xp.unless(~fit, lambda _: q * c * turned(polar(tall, g, cap, 1.1 * top, xp), across, xp), y)

    def by_gram(_: Array) -> Array:
        values, vectors = xp.linalg.eigh(g)
        values = values[..., None, :]
        above = values > cap
        count = xp.sum(xp.astype(above, v.dtype), axis=-1, keepdims=True)
        fine = values[..., -1:] * xp.sqrt(count) <= _TRUSTED * c * size
        some = fewest(above, xp)
        return where_fine(fine, less(last(vectors, some), last(xp.where(above, values, cap), some)), xp)

    bound = Bound(cap, near * cap, 0.75 * near * c * size, WIDE)
    others = (by_polar, by_gram, exact) if g.shape[-1] >= WIDE else (by_gram, exact)
    return without_few(v, g, bound, less, others, xp, few)


def shrunk(
    v: Array, exact: Callable[[Array], Array], xp: Namespace, total: float, curve: Callable[[Array, Array], Array]
) -> Array:
    """``U max(s - t, 0) V'`` of ``v = U s V'``, as accurate as what `exact` computes, with the t that `curve` finds.

    Args:
        v: matrices.
        exact: the same by a decomposition.
        xp: the functions to call.
        total: what the singular values are to sum up to.
        curve: from the singular values, decreasing and divided by q, and from q, to those of the result over q.
    """
    z, q = scaled(v, xp, total)
    across, side = v.shape[-2] < v.shape[-1], min(v.shape[-2:])
    tall, size = turned(z, across, xp), length(z, xp)
    g = half_product(tall, tall, xp)

    def fine(t: Array, most: Array) -> Array:  # the values near t are accurate enough
        return most * math.sqrt(side) <= _TRUSTED * t * size

    def by_gram(_: Array) -> Array:
        values, vectors = xp.linalg.eigh(g)
        s = xp.sqrt(xp.where(values > 0, values, 0.0))
        f = xp.flip(curve(xp.flip(s, axis=-1), q[..., 0]), axis=-1)[..., None, :]
        s = s[..., None, :]
        some = fewest(f > 0, xp)
        kept, part = last(vectors, some), q * last(f / xp.where(s > 0, s, 1.0), some)
        y = turned(xp.matmul(xp.matmul(tall, kept) * part, xp.matrix_transpose(kept)), across, xp)
        return where_fine(fine(s[..., -1:] - f[..., -1:], s[..., -1:] ** 2), y, xp)

    # the sum of the values is at least that, by Hoelder's inequality; and t what it exceeds the total by, on average
    norm = length(g, xp)
    least = size**3 / xp.where(norm > 0, norm, 1.0)
    promising = fine((least - total / q) / side, norm / 8)
    return first_of((exact,), xp.unless(~promising, by_gram, unknown(v, xp)), xp)


def raised(v: Array, exact: Callable[[Array], Array], xp: Namespace, least: float) -> Array:
    """Symmetric matrices with their eigenvalues below `least` raised to that."""
    z, q = scaled(v, xp, abs(least))
    cap, allowed = -least / q, fraction(z) * length(z, xp) / 2

    def less(vectors: Array, values: Array) -> Array:
        return v + xp.matmul(vectors * (q * (values - cap)), xp.matrix_transpose(vectors))

    # twice as wide, as what is left to do otherwise is quicker than for singular values
    bound = Bound(cap, allowed / math.sqrt(v.shape[-1]), allowed, 2 * WIDE)
    return without_few(v, -z, bound, less, (exact,), xp)


def orthonormal(v: Array, exact: Callable[[Array], Array], xp: Namespace) -> Array:
    """The polar factor ``U V'`` of ``v = U s V'``, as accurate as what `exact` computes."""
    across, side = v.shape[-2] < v.shape[-1], min(v.shape[-2:])
    m, u = xp.norm(v, (-2, -1))
    mean = xp.times(m, xp.astype(xp.where(u > 0, u, 1.0), v.dtype)) / math.sqrt(side)
    square = mean**2
    z = turned(xp.divide(v, mean), across, xp)  # a mean square of the values of 1
    g = half_product(z, z, xp)
    e = from_identity(g, xp)
    away = xp.abs(1.0 - square) * math.sqrt(side) + square * length(e, xp)

    def by_gram(_: Array) -> Array:
        values, vectors = xp.linalg.eigh(g)
        fine = values[..., None, :1] * _TRUSTED >= values[..., None, -1:]
        root = xp.sqrt(xp.where(fine[..., 0, :], values, 1.0))[..., None, :]
        y = xp.matmul(z, xp.matmul(vectors / root, xp.matrix_transpose(vectors)))
        return where_fine(fine, turned(y, across, xp), xp)

    def by_polar(y: Array) -> Array:
        low, high = ends(g, xp)
        return xp.unless(high > 6 * low, lambda _: turned(polar(z, g, low / 1.1, 1.1 * high, xp), across, xp), y)

    def outside(_: Array) -> Array:
        others = (by_polar, by_gram, exact) if side >= WIDE else (by_gram, exact)
        return first_of(others, turned(near_polar(z, e, xp), across, xp), xp)

    return xp.unless(away <= fraction(v) * math.sqrt(side) / 4, outside, v)
