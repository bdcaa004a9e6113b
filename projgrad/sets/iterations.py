"""Approximate functions of the singular values by products of matrices alone, with error bounds."""

from __future__ import annotations

import math

from projgrad.namespace import Array, Namespace
from projgrad.precision import precision
from projgrad.sets.decomposition import eye, scaled, symmetric_part

__all__ = ["below_bound", "clipped_values", "error", "polar_factor", "prepare"]

_ROOM = 1.01  # by how much the iteration is kept away from 1, beyond which it turns back to 0


def below_bound(v: Array, most: float, steps: int, xp: Namespace) -> Array:
    """`v` scaled by ``most / b`` where b, an upper bound of its largest singular value, is above `most`."""
    bound, q = _gram_bound(v, steps, xp)
    limit = most / q
    return xp.where(bound <= limit, v, v / xp.where(bound > 0, bound, 1.0) * limit)


def polar_factor(v: Array, steps: int, xp: Namespace) -> Array:
    """``U V'`` of ``v = U s V'``, up to e = ``error(steps)`` where s is at least e times its largest value."""
    bound, q = _gram_bound(v, steps, xp)
    bound = xp.where(bound > 0, bound, 1.0) * _ROOM
    return _signs(v / q / bound, steps, xp)


def clipped_values(v: Array, most: float, steps: int, xp: Namespace) -> Array:
    """``U min(s, most) V'`` of ``v = U s V'``, up to ``error(steps)`` times the largest of s.

    By ``2 min(s, c) = s + c - (s - c) sign(s - c)``, where the values s of a symmetric matrix come from the polar
    factor O as O'v. Where s is so small that O is wrong, the sign is right, and O cancels.
    """
    wide = v.shape[-2] < v.shape[-1]
    if wide:
        v = xp.matrix_transpose(v)
    bound, q = _gram_bound(v, steps, xp)
    limit = most / q
    outside = bound > limit
    unit = xp.where(bound > 0, bound, 1.0) * _ROOM
    z, c = v / q / unit, xp.where(outside, limit / unit, 1.0)
    o = _signs(z, steps, xp)
    h = xp.matmul(xp.matrix_transpose(o), z)
    h = symmetric_part(h, xp) - xp.where(eye(h, xp), c, 0.0)
    y = (z + c * o - xp.matmul(z - c * o, _signs(h, steps, xp))) / 2 * unit * q
    y = xp.where(outside, y, v)
    return xp.matrix_transpose(y) if wide else y


def prepare(steps: int) -> None:
    """Find the factors of so many steps; when a constraint is made, so that no compiler looks into the search."""
    if steps not in _FACTORS:
        low, high = -60.0, 0.0
        for _ in range(60):
            middle = (low + high) / 2
            reached = 1 - _search(math.exp(middle), steps)[1] <= math.exp(middle)
            low, high = (low, middle) if reached else (middle, high)
        _ERRORS[steps] = math.exp(high)
        _FACTORS[steps] = _search(_ERRORS[steps], steps)[0]


def error(steps: int) -> float:
    """The e for which so many steps take all of [e, 1] to [1 - e, 1]."""
    prepare(steps)
    return _ERRORS[steps]


def _search(least: float, steps: int) -> tuple[list[float], float]:
    """What to multiply by before each step, so that the least of [least, 1] grows most; and what becomes of it."""
    found = []
    for _ in range(steps):
        found.append(math.sqrt(3 / (1 + least + least * least)))
        least = _step(least, found[-1])
    return found, least


def _step(x: float, factor: float) -> float:
    return factor * x * (3 - (factor * x) ** 2) / 2


_ERRORS: dict[int, float] = {}
_FACTORS: dict[int, list[float]] = {}


def _signs(z: Array, steps: int, xp: Namespace) -> Array:
    """``U sign(s) V'`` of ``z = U s V'`` with s in [-1, 1]."""
    wide = z.shape[-2] < z.shape[-1]
    prepare(steps)
    for factor in _FACTORS[steps]:
        z = factor * z
        across = xp.matrix_transpose(z)
        z = 1.5 * z - 0.5 * (xp.matmul(xp.matmul(z, across), z) if wide else xp.matmul(z, xp.matmul(across, z)))
    return z


def _gram_bound(v: Array, steps: int, xp: Namespace) -> tuple[Array, Array]:
    """A bound of the largest singular value, divided by q, and q.

    It is the l_p norm of the singular values with ``p = 2**(steps + 2)``: their squares are the eigenvalues of a
    symmetric matrix, which is squared again and again.
    """
    z, q = scaled(v, xp)
    q = xp.stop_gradient(q)
    z = v / q
    across = xp.matrix_transpose(z)
    gram = xp.matmul(z, across) if v.shape[-2] < v.shape[-1] else xp.matmul(across, z)
    power, logarithm = 1.0, 0.0
    for step in range(steps + 1):
        squares = xp.sum(gram * gram, axis=(-2, -1), keepdims=True)
        zero = squares < precision(v.dtype).tiny
        norm = xp.sqrt(xp.where(zero, 1.0, squares))
        logarithm = logarithm + power * xp.log(norm)
        gram, power = gram / norm, power / 2
        if step < steps:
            gram = xp.matmul(gram, gram)
    return xp.where(zero, 0.0, xp.exp(logarithm / 2)), q
