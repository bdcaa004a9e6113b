"""The nearest correlation matrix, by Newton's method on the dual of its unit diagonal."""

from __future__ import annotations

import math

from projgrad.namespace import Array, Namespace
from projgrad.precision import precision
from projgrad.sets.decomposition import diagonal, eye, loewner, scaled, shorter, symmetric_part

__all__ = ["nearest_correlation"]

_MOST = 100  # eigendecompositions
_NEAR, _FURTHER = 0.3, 5.0  # how well to solve for one diagonal before going on to one so many times smaller
_LARGEST = 1e3  # entries beyond count as so large
_MOST_INNER = 50  # conjugate gradient steps for each


def nearest_correlation(v: Array, xp: Namespace) -> Array:
    """The correlation matrix nearest to each of `v`.

    It is the positive semidefinite part of ``Z + diag(y)`` with the y that makes its diagonal right, where Z is the
    symmetric part with any diagonal; y minimises ``||psd part||^2 / 2 - sum(y)``. All divided by q.
    """
    on = eye(v, xp)
    fixed = xp.where(on, 1.0, symmetric_part(xp.stop_gradient(v), xp))
    z, q = scaled(fixed, xp)
    unit = precision(v.dtype).unit
    size = v.shape[-1]
    least_target = max(1.0 / _LARGEST, 100 * size * unit)
    target = xp.where(q[..., 0] * least_target < 1, 1.0 / q[..., 0], least_target)

    def at(y: Array) -> tuple[Array, ...]:
        values, vectors = xp.linalg.eigh(z + _on_diagonal(y, on, xp))
        f = xp.where(values > 0, values, 0.0)
        slopes = loewner(f, values, xp.astype(values > 0, values.dtype), xp)
        return values, vectors, f, slopes

    def step(
        moving: Array, y: Array, best: Array, least: Array, way: Array, part: Array, aim: Array
    ) -> tuple[Array, ...]:
        trial = y + part * way
        values, vectors, f, slopes = at(trial)
        found, half = xp.sum(vectors * vectors * f[..., None, :], axis=-1), xp.sum(f * f, axis=-1, keepdims=True) / 2
        total = xp.sum(trial, axis=-1, keepdims=True)
        off = xp.max(xp.abs(found - aim), axis=-1, keepdims=True)
        better = moving & ((half - aim * total < best) | (off <= 0.5 * least))
        noise = 4 * unit * math.sqrt(size) * xp.max(xp.abs(values), axis=-1, keepdims=True)
        # near the limit of the precision, no progress is the end
        done = (aim <= target) & ((off <= noise) | ~better & (least <= 30 * noise)) | (part < 1e-6)
        aim = xp.where(better & (off <= _NEAR * aim), xp.maximum(target, aim / _FURTHER), aim)
        off = xp.max(xp.abs(found - aim), axis=-1, keepdims=True)
        ridge = xp.minimum(1e-2 * xp.ones_like(off), off / (aim * size))
        newton = _conjugate_gradients(aim - found, vectors, slopes, ridge, xp)
        return (
            moving & ~done,
            xp.where(better, trial, y),
            xp.where(better, half - aim * total, best),
            xp.where(better, off, least),
            xp.where(better, newton, way),
            xp.where(better, xp.ones_like(part), part / 2),
            aim,
        )

    none = xp.zeros_like(z[..., 0])
    one = xp.ones_like(none[..., :1])
    far = xp.where(one > 0, math.inf, one)
    state = (one > 0, none + (1.0 - 1.0 / q[..., 0]), far, far * 1.0, none, one, one * 1.0)
    y = xp.iterate(step, state, _MOST)[1]
    values, vectors, f, slopes = at(y)
    across = xp.matrix_transpose(vectors)
    shifted = fixed + _on_diagonal(y, on, xp) * q
    found = symmetric_part(shorter(shifted, vectors, values, f, across, q, xp, symmetric=True), xp)
    scale = diagonal(found, xp)
    scale = xp.where(scale > 0, 1.0 / xp.sqrt(xp.where(scale > 0, scale, 1.0)), 0.0)
    found = xp.where(on, 1.0, found * scale[..., None, :] * scale[..., :, None])

    def derivative(d: Array) -> Array:
        moved = _psd_derivative(symmetric_part(d, xp), vectors, slopes, xp)
        pairs = vectors[..., :, None, :] * vectors[..., None, :, :]
        hessian = xp.sum(xp.matmul(pairs, slopes[..., None, :, :]) * pairs, axis=-1)
        hessian = hessian + xp.where(on, unit * size, xp.zeros_like(hessian))
        back = xp.solve(hessian, diagonal(moved, xp)[..., None])[..., 0]
        return moved - _psd_derivative(_on_diagonal(back, on, xp), vectors, slopes, xp)

    return xp.with_derivative(found, v, derivative)


def _psd_derivative(d: Array, vectors: Array, slopes: Array, xp: Namespace) -> Array:
    across = xp.matrix_transpose(vectors)
    inner = xp.matmul(across, xp.matmul(d, vectors))
    return symmetric_part(xp.matmul(vectors, xp.matmul(slopes * inner, across)), xp)


def _conjugate_gradients(b: Array, vectors: Array, slopes: Array, ridge: Array, xp: Namespace) -> Array:
    """The x for which ``ridge * x``, plus the diagonal of the derivative of the psd part along diag(x), is b."""

    def times(x: Array) -> Array:
        inner = xp.matmul(xp.matrix_transpose(x[..., :, None] * vectors), vectors)
        return xp.sum(xp.matmul(vectors, slopes * inner) * vectors, axis=-1) + ridge * x

    def dot(x: Array, y: Array) -> Array:
        return xp.sum(x * y, axis=-1, keepdims=True)

    def step(moving: Array, x: Array, r: Array, p: Array, rr: Array) -> tuple[Array, ...]:
        a = times(p)
        below = dot(p, a)
        go = moving & (below > 0)
        alpha = xp.where(go, rr / xp.where(below > 0, below, 1.0), 0.0)
        x, r = x + alpha * p, r - alpha * a
        now = dot(r, r)
        return go & (now > enough), x, r, r + now / xp.where(rr > 0, rr, 1.0) * p, now

    first = dot(b, b)
    enough = 1e-6 * first
    return xp.iterate(step, (first > 0, xp.zeros_like(b), b + 0.0, b * 1.0, first * 1.0), _MOST_INNER)[1]


def _on_diagonal(y: Array, on: Array, xp: Namespace) -> Array:
    return xp.where(on, y[..., None, :], 0.0)
