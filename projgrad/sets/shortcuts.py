"""Ways around a decomposition for large matrices of which little has to change, each with a check of what it gives.

Most start from the Gram matrix ``G = X'X``, whose eigenvalues are the squares of the singular values. That none is over
a bound is known from a Cholesky factorisation, which exists for positive definite matrices only. Those that are above
are found in a small subspace: if the columns of V are orthonormal, ``V'GV`` is diagonal, and nothing of what is left,
``Y = X - XV(1 - c/s)V'``, is above the bound c, then Y is the nearest point: ``<X - Y, Y>`` is as large as for any
matrix of the ball. Where that does not go, an eigendecomposition of the Gram matrix is still quicker than one of X, and
as accurate as long as the largest value is not much larger than the bound.

Rounding: sums of a few hundred terms one after the other, of which every library's product of matrices is made, leave
the Gram matrix of an X with the largest singular value c off by at most half as many units times ``c ||X||``, and a
Cholesky factorisation likewise. Half of the promised accuracy is left to that.

A way that does not lead to a result gives NaN; then the next one is tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from projgrad.frozen import FrozenArray
from projgrad.namespace import Array, Namespace
from projgrad.precision import precision, tolerance
from projgrad.sets.decomposition import ACCURACY, diagonal, eye, scaled, symmetric_part

__all__ = ["clipped", "orthonormal", "raised", "shrunk"]

_BLOCK = 16  # vectors that a step adds to the subspace
_FIRST, _SOME, _ALL = 3, 11, 24  # steps: to see whether anything is above, and to find what is
_WIDE = 512  # rows from which on that is quicker than a decomposition of G, and twice as many for one of X
_MOST = 64  # eigenvalues above a bound that count as few
_TRUSTED = 24.0  # how far the square of the largest singular value may exceed what the bound's accuracy needs


@dataclass(frozen=True)
class Bound:
    """On eigenvalues: `cap`; by how much they may exceed it unseen; how large the residual of those above may be.

    From `wide` rows on, those above are looked for in a subspace.
    """

    cap: Array
    slack: Array
    allowed: Array
    wide: int


def clipped(v: Array, exact: Callable[[Array], Array], xp: Namespace, most: float) -> Array:
    """``U min(s, most) V'`` of ``v = U s V'``, as accurate as what `exact` computes."""
    z, q = scaled(v, xp, most)
    tall, across = _tall(z, xp), v.shape[-2] < v.shape[-1]
    c, g, size = most / q, _gram(tall, xp), _length(z, xp)
    cap, share = c * c, _share(z)

    def less(vectors: Array, values: Array) -> Array:
        root = xp.sqrt(values)
        part = (root - c) / xp.where(root > 0, root, 1.0)  # 0 where the value is at the bound
        return v - q * _turned(xp.matmul(xp.matmul(tall, vectors) * part, xp.matrix_transpose(vectors)), across, xp)

    def few() -> Array:  # beyond that, the rounding of the largest values hides what is just above the bound
        return _length(g, xp) <= 4 * c * size

    def by_polar(y: Array) -> Array:
        """If all is above, by not too much."""
        values, _, _ = _ritz(_krylov(g, None, 2, xp), xp)
        top = values[..., -1:]
        fit = _and((values[..., :1] > cap) & (top <= 6 * cap), lambda: xp.is_below(-g, -cap), xp)

        def nearer(y: Array) -> Array:
            z = xp.matmul(tall, _inverse_root(g, cap, 1.1 * top, xp))
            return q * c * _turned(_Polar(z, xp).series(), across, xp)

        return xp.unless(~fit, nearer, y)

    def by_gram(_: Array) -> Array:
        values, vectors = xp.linalg.eigh(g)
        values = values[..., None, :]
        above = values > cap
        count = xp.sum(xp.astype(above, v.dtype), axis=-1, keepdims=True)
        fine = values[..., -1:] * xp.sqrt(count) <= _TRUSTED * c * size
        some = _fewest(above, xp)
        return _where(fine, less(_last(vectors, some), _last(xp.where(above, values, cap), some)), xp)

    bound = Bound(cap, share * cap, 0.75 * share * c * size, _WIDE)
    return _without_few(
        v, g, few, bound, less, (by_polar, by_gram, exact) if g.shape[-1] >= _WIDE else (by_gram, exact), xp
    )


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
    tall, across = _tall(z, xp), v.shape[-2] < v.shape[-1]
    g, size, side = _gram(tall, xp), _length(z, xp), min(v.shape[-2:])

    def fine(t: Array, most: Array) -> Array:  # the values near t are accurate enough
        return most * math.sqrt(side) <= _TRUSTED * t * size

    def by_gram(_: Array) -> Array:
        values, vectors = xp.linalg.eigh(g)
        s = xp.sqrt(xp.where(values > 0, values, 0.0))
        f = xp.flip(curve(xp.flip(s, axis=-1), q[..., 0]), axis=-1)[..., None, :]
        s = s[..., None, :]
        some = _fewest(f > 0, xp)
        kept, part = _last(vectors, some), _last(f / xp.where(s > 0, s, 1.0), some)
        y = q * _turned(xp.matmul(xp.matmul(tall, kept) * part, xp.matrix_transpose(kept)), across, xp)
        return _where(fine(s[..., -1:] - f[..., -1:], s[..., -1:] ** 2), y, xp)

    # the sum of the values is at least that, by Hoelder's inequality; and t what it exceeds the total by, on average
    length = _length(g, xp)
    least = size**3 / xp.where(length > 0, length, 1.0)
    promising = fine((least - total / q) / side, length / 8)
    y = xp.unless(~promising, by_gram, _all(math.nan * size, v, xp))
    return _first_of((exact,), y, xp)


def raised(v: Array, exact: Callable[[Array], Array], xp: Namespace, least: float) -> Array:
    """Symmetric matrices with their eigenvalues below `least` raised to that."""
    z, q = scaled(v, xp, abs(least))
    size, cap = _length(z, xp), -least / q
    allowed = _share(z) * size / 2
    bound = Bound(cap, allowed / math.sqrt(v.shape[-1]), allowed, 2 * _WIDE)

    def less(vectors: Array, values: Array) -> Array:
        return v + q * xp.matmul(vectors * (values - cap), xp.matrix_transpose(vectors))

    def few() -> Array:  # if only few of the eigenvalues are below, the others make up a trace
        return xp.sum(diagonal(z, xp) + cap[..., 0], axis=-1)[..., None, None] > size / 2

    return _without_few(v, -z, few, bound, less, (exact,), xp)


def orthonormal(v: Array, exact: Callable[[Array], Array], xp: Namespace) -> Array:
    """The polar factor ``U V'`` of ``v = U s V'``, as accurate as what `exact` computes."""
    across, side = v.shape[-2] < v.shape[-1], min(v.shape[-2:])
    polar = _Polar(_tall(v, xp), xp)
    off = xp.abs(1.0 - polar.square) * math.sqrt(side) + polar.square * _length(polar.e, xp)
    inside = off <= polar.share * math.sqrt(side) / 4

    def by_gram(_: Array) -> Array:
        values, vectors = xp.linalg.eigh(polar.g)
        fine = values[..., None, :1] * _TRUSTED >= values[..., None, -1:]
        root = xp.sqrt(xp.where(fine[..., 0, :], values, 1.0))[..., None, :]
        y = xp.matmul(polar.z, xp.matmul(vectors / root, xp.matrix_transpose(vectors)))
        return _where(fine, _turned(y, across, xp), xp)

    def outside(_: Array) -> Array:
        return _first_of((by_gram, exact), _turned(polar.series(), across, xp), xp)

    return xp.unless(inside, outside, v)


class _Polar:
    """Matrices z with orthogonal columns nearly, and ``e = 1 - z'z``, scaled so that z'z has a mean diagonal of 1."""

    def __init__(self, v: Array, xp: Namespace) -> None:
        m, u = xp.norm(v, (-2, -1))
        mean = xp.astype(xp.where(u > 0, u, 1.0), v.dtype) / math.sqrt(v.shape[-1])
        self.square = xp.times(m, mean) ** 2
        self.z = v / m / mean
        self.g = _gram(self.z, xp)
        self.one = xp.where(eye(self.g, xp), 1.0, xp.zeros_like(self.g))
        self.e = self.one - self.g
        self.share = _share(v)
        self.xp = xp

    def series(self) -> Array:
        """``z (z'z)^(-1/2)``, by its power series in e up to the degree 2 or 4; NaN where that is not enough."""
        xp, e = self.xp, self.e
        e2 = _gram(e, xp)  # no larger than its Frobenius norm
        size, allowed = _length(e2, xp), self.share * math.sqrt(e.shape[-1]) / 8
        short = size**1.5 / 3 <= allowed
        more = ~short & (size <= 0.1)
        e3 = xp.unless(~more, lambda _: xp.matmul(e2, 0.3125 * e + (35 / 128) * e2), e2)
        near = short | more & (1.6 * size * _length(e3, xp) <= allowed)

        def found(z: Array) -> Array:
            return xp.matmul(z, self.one + 0.5 * e + 0.375 * e2 + xp.where(more, e3, 0.0))

        return _where(near, xp.unless(~near, found, self.z), xp)


def _first_of(ways: tuple[Callable[[Array], Array], ...], y: Array, xp: Namespace) -> Array:
    """`y`, or where it is not known, what the first of the ways gives that leads to a result."""
    for way in ways:
        y = xp.unless(_known(y, xp), way, y)
    return y


def _known(y: Array, xp: Namespace) -> Array:
    return xp.isfinite(y[..., :1, :1])


def _where(fine: Array, y: Array, xp: Namespace) -> Array:
    return xp.unless(fine, lambda y: xp.where(fine, y, math.nan), y)


def _all(value: Array, v: Array, xp: Namespace) -> Array:
    return xp.broadcast_to(value, v.shape)


def _without_few(
    v: Array,
    g: Array,
    fit: Callable[[], Array],
    bound: Bound,
    less: Callable[[Array, Array], Array],
    others: tuple[Callable[[Array], Array], ...],
    xp: Namespace,
) -> Array:
    """`v` where no eigenvalue of g is above the bound, ``less(vectors, values)`` of those that are, or another way.

    Args:
        v: what to return.
        g: symmetric matrices.
        fit: tells whether to look for eigenvalues above the bound.
        bound: on the eigenvalues of g.
        less: of vectors and values, with zeros and the bound for those that are not above it.
        others: ways to take where these are many, or not to be found.
        xp: the functions to call.
    """

    def search(basis: tuple[Array, Array], last: bool) -> Array:
        """NaN where what is above is not found, and infinity where it is too much."""
        values, vectors, images = _ritz(basis, xp)
        above, residual = values > bound.cap, images - vectors * values
        lengths = xp.sqrt(xp.sum(residual * residual, axis=-2, keepdims=True))
        unclear = ~above & (lengths > bound.cap + bound.slack - values)
        many = xp.all(above, axis=-1, keepdims=True)
        good = ~many & (_length(xp.where(above, lengths, 0.0), xp) <= bound.allowed)
        if not last:
            good = good & ~xp.any(unclear, axis=-1, keepdims=True)
        few = _fewest(above, xp)
        above, values, vectors = (_last(x, few) for x in (above, values, vectors))
        values, vectors = xp.where(above, values, bound.cap), xp.where(above, vectors, 0.0)
        products = xp.matmul(xp.matrix_transpose(vectors), vectors)
        off = products - xp.where(eye(products, xp) & above, 1.0, xp.zeros_like(products))
        good = good & (xp.max(xp.abs(off), axis=(-2, -1), keepdims=True) <= 64 * precision(g.dtype).unit)
        vectors = vectors - 0.5 * xp.matmul(vectors, off)  # orthonormal to the last digit

        def is_all() -> Array:
            rest = xp.matmul(vectors * (values - bound.cap), xp.matrix_transpose(vectors))
            return xp.is_below(g - rest, bound.cap + bound.slack)

        good = _and(good, is_all, xp)
        failed = xp.where(many, math.inf, math.nan * values[..., :1])
        return xp.unless(~good, lambda y: less(vectors, values), _all(failed, v, xp))

    def outside(v: Array) -> Array:
        many = xp.all(values > bound.cap, axis=-1, keepdims=True) | ~fit()

        def found(_: Array) -> Array:
            more = _krylov(g, basis, _SOME - _FIRST, xp)
            y = search(more, last=False)
            longer = lambda _: search(_krylov(g, more, _ALL - _SOME, xp), last=True)  # noqa: E731
            return xp.unless(~xp.isnan(y[..., :1, :1]), longer, y)

        return _first_of(others, xp.unless(many, found, _all(math.nan * bound.slack, v, xp)), xp)

    limit = bound.cap + bound.slack
    if g.shape[-1] < bound.wide:
        y = _all(math.nan * bound.slack, v, xp)
        return xp.unless(xp.is_below(g, limit), lambda _: _first_of(others, y, xp), v)
    basis = _krylov(g, None, _FIRST, xp)
    values = _ritz(basis, xp)[0]
    return xp.unless(_and(values[..., -1:] <= limit, lambda: xp.is_below(g, limit), xp), outside, v)


def _and(first: Array, second: Callable[[], Array], xp: Namespace) -> Array:
    """Both of two conditions, the second of which is not looked at where the first is false."""
    return ~xp.unless(~first, lambda none: none | ~second(), ~first)


def _ritz(basis: tuple[Array, Array], xp: Namespace) -> tuple[Array, Array, Array]:
    """The largest eigenvalues in a subspace, increasing, with their vectors and the images of these."""
    q, gq = basis
    values, turn = xp.linalg.eigh(symmetric_part(xp.matmul(xp.matrix_transpose(q), gq), xp))
    turn = _last(turn, _MOST)
    return _last(values, _MOST)[..., None, :], xp.matmul(q, turn), xp.matmul(gq, turn)


def _krylov(g: Array, basis: tuple[Array, Array] | None, steps: int, xp: Namespace) -> tuple[Array, Array]:
    """An orthonormal basis of a subspace, with more directions in which g is large, and its product with g."""
    start = xp.constant(_start(g.shape[-1]), g)
    if basis is None:
        q = xp.linalg.qr(start + 0.0 * g[..., :_BLOCK])[0]
        basis, steps = (q, xp.matmul(g, q)), steps - 1
    for _ in range(steps):
        w = _less(_last(basis[1], _BLOCK), basis[0], xp)
        # where nothing is left, other directions
        other = xp.roll(start, basis[0].shape[-1], axis=-2)
        w = w + precision(g.dtype).unit * xp.max(xp.abs(w), axis=(-2, -1), keepdims=True) * other
        q = xp.linalg.qr(_less(xp.linalg.qr(w)[0], basis[0], xp))[0]
        basis = xp.concat([basis[0], q], axis=-1), xp.concat([basis[1], xp.matmul(g, q)], axis=-1)
    return basis


def _less(w: Array, q: Array, xp: Namespace) -> Array:
    return w - xp.matmul(q, xp.matmul(xp.matrix_transpose(q), w))


@lru_cache(maxsize=64)
def _start(n: int) -> FrozenArray:
    return FrozenArray(np.random.default_rng(0).standard_normal((n, _BLOCK)))


def _fewest(above: Array, xp: Namespace) -> int:
    """How many of the last values hold all that are above, where one can tell."""
    if not xp.can_look(above):
        return int(above.shape[-1])
    return max(int(xp.max(xp.sum(xp.astype(above, xp.int64), axis=-1))), 1)


def _last(x: Array, count: int) -> Array:
    return x[..., max(x.shape[-1] - count, 0) :]


def _gram(z: Array, xp: Namespace) -> Array:
    """``z'z``, of which only one half is computed."""
    n = z.shape[-1]
    if n < 512:
        return xp.matmul(xp.matrix_transpose(z), z)
    cuts = [n * i // 8 for i in range(9)]
    rows = [xp.matmul(xp.matrix_transpose(z[..., a:b]), z[..., :b]) for a, b in pairwise(cuts)]
    for i, (a, b) in enumerate(pairwise(cuts)):
        rows[i] = xp.concat([rows[i], *(xp.matrix_transpose(row[..., a:b]) for row in rows[i + 1 :])], axis=-1)
    return xp.concat(rows, axis=-2)


def _inverse_root(g: Array, low: Array, high: Array, xp: Namespace) -> Array:
    """Roughly ``g^(-1/2)``, for eigenvalues between two bounds: the parabola through three points."""
    middle, half = (high + low) / 2, (high - low) / 2 * math.sqrt(0.75)
    x = (middle - half, middle, middle + half)
    y = tuple(1.0 / xp.sqrt(at) for at in x)
    rise = ((y[1] - y[0]) / half, (y[2] - y[1]) / half)
    bend = (rise[1] - rise[0]) / (2 * half)
    slope = rise[0] - bend * (x[0] + x[1])
    level = y[0] - rise[0] * x[0] + bend * x[0] * x[1]
    return bend * _gram(g, xp) + slope * g + xp.where(eye(g, xp), level, xp.zeros_like(g))


def _tall(z: Array, xp: Namespace) -> Array:
    return _turned(z, z.shape[-2] < z.shape[-1], xp)


def _turned(z: Array, across: bool, xp: Namespace) -> Array:
    return xp.matrix_transpose(z) if across else z


def _share(z: Array) -> float:
    """How far a result may be off, as a part of the norm of the matrix."""
    return float(ACCURACY * tolerance(z.dtype, z.shape[-2] * z.shape[-1], 1.0))


def _length(z: Array, xp: Namespace) -> Array:
    """The Frobenius norm; with length 1 in the last axes."""
    return xp.sqrt(xp.accurate_sum(z * z, (-2, -1)))
