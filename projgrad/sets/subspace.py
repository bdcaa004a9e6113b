"""The few eigenvalues of large symmetric matrices that are above a bound, found in a small subspace.

If the columns of V are orthonormal, ``V'GV`` is diagonal, and nothing of what is left of G without them is above the
bound, then they are all. A Cholesky factorisation, which exists for positive definite matrices only, tells that.

How well the subspace was chosen is of no importance for that; whether it is worth looking at is estimated. As it starts
from random vectors, the part of these that lies in a set of directions tells how many directions that are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from projgrad.frozen import FrozenArray
from projgrad.namespace import Array, Namespace
from projgrad.precision import precision
from projgrad.sets.decomposition import eye, symmetric_part
from projgrad.sets.large import both, fewest, first_of, known, last, length, unknown

__all__ = ["WIDE", "Bound", "ends", "without_few"]

WIDE = 512  # rows from which on a search is quicker than a decomposition of a Gram matrix; twice as many for a long one
_BLOCK = 16  # vectors that a step adds to the subspace
_FIRST, _SOME, _ALL = 3, 11, 24  # steps: to see whether anything is above, and to find what is
_MOST = 64  # eigenvalues above a bound that count as few
_CLEAR = 48  # and those, with others that may be above it, that all steps mostly find


@dataclass(frozen=True)
class Bound:
    """On eigenvalues: `cap`; by how much they may exceed it unseen; how large the residual of those above may be.

    From `wide` rows on, those above are looked for in a subspace.
    """

    cap: Array
    slack: Array
    allowed: Array
    wide: int


def without_few(
    v: Array,
    g: Array,
    bound: Bound,
    less: Callable[[Array, Array], Array],
    others: tuple[Callable[[Array], Array], ...],
    xp: Namespace,
    fit: Callable[[], Array] | None = None,
) -> Array:
    """`v` where no eigenvalue of g is above the bound, ``less(vectors, values)`` of those that are, or another way.

    Args:
        v: what to return.
        g: symmetric matrices.
        bound: on the eigenvalues of g.
        less: of vectors and values, with zeros and the bound for those that are not above it.
        others: ways to take where these are many, or not to be found.
        xp: the functions to call.
        fit: tells whether to look for them at all.
    """
    limit = bound.cap + bound.slack
    if g.shape[-1] < bound.wide:
        return xp.unless(xp.is_below(g, limit), lambda v: first_of(others, unknown(v, xp), xp), v)
    start = _krylov(g, None, _FIRST, xp)
    first = _ritz(start, xp)

    def outside(v: Array) -> Array:
        many = first.count(first.values > bound.cap, xp) > _MOST
        many = many if fit is None else many | ~fit()
        y = xp.unless(many, lambda _: search(_krylov(g, start, _SOME - _FIRST, xp)), unknown(v, xp))
        return first_of(others, y, xp)

    def search(basis: tuple[Array, Array]) -> Array:
        ritz = _ritz(basis, xp)
        maybe = ritz.values + ritz.lengths > bound.cap
        unclear = xp.any(maybe & ~(ritz.values > bound.cap), axis=-1, keepdims=True)
        y = xp.unless(unclear, lambda _: _taken(ritz, g, bound, less, unknown(v, xp), xp), unknown(v, xp))
        if g.shape[-1] < 2 * WIDE:
            return y

        def longer(y: Array) -> Array:
            return _taken(_ritz(_krylov(g, basis, _ALL - _SOME, xp), xp), g, bound, less, y, xp)

        return xp.unless(known(y, xp) | (ritz.count(maybe, xp) > _CLEAR), longer, y)

    return xp.unless(both(first.values[..., -1:] <= limit, lambda: xp.is_below(g, limit), xp), outside, v)


def ends(g: Array, xp: Namespace) -> tuple[Array, Array]:
    """Roughly the least and the largest eigenvalue, from within."""
    values = _ritz(_krylov(g, None, 2, xp), xp).values
    return values[..., :1], values[..., -1:]


@dataclass(frozen=True)
class _Ritz:
    """The largest eigenvalues in a subspace, increasing, with vectors, what these are off by, and their share of it."""

    values: Array
    vectors: Array
    lengths: Array
    parts: Array

    def count(self, which: Array, xp: Namespace) -> Array:
        """An estimate of how many eigenvalues some of them stand for."""
        part = xp.sum(xp.where(which, self.parts, 0.0), axis=-1, keepdims=True)
        return part * (self.vectors.shape[-2] / _BLOCK)


def _ritz(basis: tuple[Array, Array], xp: Namespace) -> _Ritz:
    q, gq = basis
    values, turn = xp.linalg.eigh(symmetric_part(xp.matmul(xp.matrix_transpose(q), gq), xp))
    values, turn = last(values, _MOST)[..., None, :], last(turn, _MOST)
    vectors = xp.matmul(q, turn)
    residual = xp.matmul(gq, turn) - vectors * values
    lengths = xp.sqrt(xp.sum(residual * residual, axis=-2, keepdims=True))
    start = turn[..., :_BLOCK, :]
    return _Ritz(values, vectors, lengths, xp.sum(start * start, axis=-2, keepdims=True))


def _taken(
    ritz: _Ritz, g: Array, bound: Bound, less: Callable[[Array, Array], Array], y: Array, xp: Namespace
) -> Array:
    """``less(vectors, values)`` of those above, or `y` where these are not all, or not accurate."""
    above = ritz.values > bound.cap
    good = length(xp.where(above, ritz.lengths, 0.0), xp) <= bound.allowed
    few = fewest(above, xp)
    above, values, vectors = (last(x, few) for x in (above, ritz.values, ritz.vectors))
    values, vectors = xp.where(above, values, bound.cap), xp.where(above, vectors, 0.0)
    products = xp.matmul(xp.matrix_transpose(vectors), vectors)
    off = products - xp.where(eye(products, xp) & above, 1.0, xp.zeros_like(products))
    good = good & (xp.max(xp.abs(off), axis=(-2, -1), keepdims=True) <= 64 * precision(g.dtype).unit)
    vectors = vectors - 0.5 * xp.matmul(vectors, off)  # orthonormal to the last digit

    def is_all() -> Array:
        rest = xp.matmul(vectors * (values - bound.cap), xp.matrix_transpose(vectors))
        return xp.is_below(g - rest, bound.cap + bound.slack)

    return xp.unless(~both(good, is_all, xp), lambda _: less(vectors, values), y)


def _krylov(g: Array, basis: tuple[Array, Array] | None, steps: int, xp: Namespace) -> tuple[Array, Array]:
    """An orthonormal basis of a subspace, with more directions in which g is large, and its product with g."""
    start = xp.constant(_start(g.shape[-1]), g)
    if basis is None:
        q = xp.linalg.qr(start + 0.0 * g[..., :_BLOCK])[0]
        basis, steps = (q, xp.matmul(g, q)), steps - 1
    for _ in range(steps):
        w = _without(last(basis[1], _BLOCK), basis[0], xp)
        # where nothing is left, other directions
        other = xp.roll(start, basis[0].shape[-1], axis=-2)
        w = w + precision(g.dtype).unit * xp.max(xp.abs(w), axis=(-2, -1), keepdims=True) * other
        q = xp.linalg.qr(_without(xp.linalg.qr(w)[0], basis[0], xp))[0]
        basis = xp.concat([basis[0], q], axis=-1), xp.concat([basis[1], xp.matmul(g, q)], axis=-1)
    return basis


def _without(w: Array, q: Array, xp: Namespace) -> Array:
    return w - xp.matmul(q, xp.matmul(xp.matrix_transpose(q), w))


@lru_cache(maxsize=64)
def _start(n: int) -> FrozenArray:
    return FrozenArray(np.random.default_rng(0).standard_normal((n, _BLOCK)))
