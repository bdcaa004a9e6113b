"""Functions of the singular values or eigenvalues of matrices, with derivatives that are finite everywhere.

A set of matrices that only asks something of the singular values (or of the eigenvalues) has its nearest point at
``U f(s) V'``, where f(s) is the nearest point for the values alone. Automatic differentiation of a decomposition
divides by differences of its values; here the decomposition is held constant and the derivative given as the linear
map that it is, with the slope of f where two values meet.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from projgrad.namespace import Array, Namespace
from projgrad.precision import precision

__all__ = [
    "ACCURACY",
    "Shortcut",
    "Values",
    "by_values",
    "diagonal",
    "eye",
    "half_product",
    "loewner",
    "scaled",
    "shorter",
    "symmetric_part",
]

#: f(s), its slope where that does not depend on the other values, and None or the values whose mean it leaves out: ones
#: for those that share what is taken off
Values = tuple[Array, Array, Array | None]

#: from matrices, what gives the result of a decomposition of them, and the functions to call, to the same result
Shortcut = Callable[[Array, Callable[[Array], Array], Namespace], Array]

#: how many times `projgrad.tolerance` a decomposition may be off; 5 were the most seen
ACCURACY = 8.0
_LARGE = 256  # the smaller side from which on there are quicker ways
_TIED = 64  # values that differ by fewer units in the last place of the largest count as equal


def by_values(
    v: Array,
    curve: Callable[[Array, Array], Values],
    xp: Namespace,
    least: float = 0.0,
    shortcut: Shortcut | None = None,
    *,
    symmetric: bool = False,
) -> Array:
    """``U f(s) V'`` for every matrix ``v = U s V'``, or ``Q f(l) Q'`` for its symmetric part ``Q l Q'``.

    Args:
        v: matrices along the last two axes.
        curve: from the singular values, decreasing along the last axis and divided by q, and from q, to f(s) / q; or
            from the eigenvalues, increasing.
        xp: the functions to call.
        least: of q, which is otherwise the largest entry of the matrix.
        shortcut: what gives the same more quickly for large matrices, from `v` and the function that takes long.
        symmetric: by eigenvalues; the result is then symmetric bit for bit.
    """
    part = symmetric_part if symmetric else _itself
    fixed = part(xp.stop_gradient(v) if xp.may_differentiate(v) else v, xp)

    def decomposed() -> tuple[Array, ...]:
        z, q = scaled(fixed, xp, least)
        if symmetric:
            s, u = xp.linalg.eigh(z)
            vt = xp.matrix_transpose(u)
        else:
            u, s, vt = xp.linalg.svd(z, full_matrices=False)
        return u, s, vt, q, *curve(s, q[..., 0])

    def value(parts: tuple[Array, ...]) -> Array:
        u, s, vt, q, f, _, _ = parts
        return shorter(fixed, u, s, f, vt, q, xp, symmetric)

    def derivative(d: Array) -> Array:
        u, s, vt, _, f, slope, shared = decomposed() if parts is None else parts
        d = part(d, xp)
        right = xp.matmul(d, xp.matrix_transpose(vt))
        inner = xp.matmul(xp.matrix_transpose(u), right)
        turned = xp.matrix_transpose(inner)
        floor = _floor(s, xp)
        middle = loewner(f, s, slope, xp) * (inner + turned) / 2
        if not symmetric:
            ratio = _quotient(_pairs(f, f), _pairs(s, s), _pairs(slope, slope) / 2, floor, xp)
            middle = middle + ratio * (inner - turned) / 2
        middle = _less_mean(middle, inner, shared, xp)
        rows, columns = v.shape[-2], v.shape[-1]
        ratio = _quotient(f, s, slope, floor[..., 0], xp)
        if rows > columns:
            outside = right - xp.matmul(u, inner)
            return xp.matmul(xp.matmul(u, middle) + outside * ratio[..., None, :], vt)
        if rows < columns:
            outside = xp.matmul(xp.matrix_transpose(u), d) - xp.matmul(inner, vt)
            return xp.matmul(u, xp.matmul(middle, vt) + ratio[..., :, None] * outside)
        return part(xp.matmul(u, xp.matmul(middle, vt)), xp)

    parts = None
    if shortcut is not None and _is_large(v, xp):
        y = shortcut(fixed, lambda _: value(decomposed()), xp)
    else:
        parts = decomposed()
        y = value(parts)
    return xp.with_derivative(part(y, xp), v, derivative)


def _itself(v: Array, xp: Namespace) -> Array:
    return v


def _is_large(v: Array, xp: Namespace) -> bool:
    """Whether these matrices are worth a look, where looking is possible."""
    return xp.skips(v) and min(v.shape[-2:]) >= _LARGE


def scaled(v: Array, xp: Namespace, least: float = 0.0) -> tuple[Array, Array]:
    """`v` divided by the largest absolute entry of every matrix, or by `least` where that is more; and the divisor."""
    m = xp.max(xp.abs(v), axis=(-2, -1), keepdims=True)
    m = xp.where(m > least, m, least)
    m = xp.where(m < precision(v.dtype).tiny, 1.0, m)
    return xp.divide(v, m), m


def symmetric_part(v: Array, xp: Namespace) -> Array:
    """``(v + v') / 2``."""
    half = 0.5 * v
    across = xp.matrix_transpose(half)
    if _is_large(v, xp):  # a copy first, which PyTorch makes in less time than it adds across the rows
        across = xp.reshape(xp.reshape(across, (-1,)), v.shape)
    return half + across


def diagonal(v: Array, xp: Namespace) -> Array:
    """The diagonals of square matrices."""
    return xp.sum(xp.where(eye(v, xp), v, 0.0), axis=-1)


def eye(v: Array, xp: Namespace) -> Array:
    """Which entries of square matrices are on the diagonal."""
    # from ones, so that nothing depends on v, which may be a tangent; and so on its device
    index = xp.cumulative_sum(xp.ones_like(v[(*(0,) * (len(v.shape) - 1), slice(None))]), axis=-1)
    return index[:, None] == index[None, :]


def half_product(a: Array, b: Array, xp: Namespace) -> Array:
    """``a'b``, known to be symmetric, of which only one half is computed."""
    n = a.shape[-1]
    if n < 512:
        return xp.matmul(xp.matrix_transpose(a), b)
    cuts = [n * i // 8 for i in range(9)]
    rows = [xp.matmul(xp.matrix_transpose(a[..., i:j]), b[..., :j]) for i, j in pairwise(cuts)]
    for k, (i, j) in enumerate(pairwise(cuts)):
        rows[k] = xp.concat([rows[k], *(xp.matrix_transpose(row[..., i:j]) for row in rows[k + 1 :])], axis=-1)
    return xp.concat(rows, axis=-2)


def loewner(f: Array, s: Array, slope: Array, xp: Namespace) -> Array:
    """``(f_i - f_j) / (s_i - s_j)``, the mean slope where the values are equal."""
    return _quotient(_pairs(f, -f), _pairs(s, -s), _pairs(slope, slope) / 2, _floor(s, xp), xp)


def shorter(
    v: Array, u: Array, s: Array, f: Array, vt: Array, q: Array, xp: Namespace, symmetric: bool = False
) -> Array:
    """``q U f V'``, which may be symmetric, as such or as ``v - q U (s - f) V'``, whichever product is the smaller.

    So a matrix that hardly moves keeps its digits, and one that nearly vanishes has the digits of what is left.
    """
    rest = s - f
    take = xp.sum(xp.abs(rest), axis=-1, keepdims=True) <= xp.sum(xp.abs(f), axis=-1, keepdims=True)
    weights = xp.where(take, -rest, f)
    if _is_large(v, xp) and xp.can_look(weights):  # a product with those only that are not 0
        used = xp.any(xp.reshape(weights != 0, (-1, weights.shape[-1])), axis=0)
        ends = (int(xp.argmax(xp.astype(x, xp.int64))) for x in (used, xp.flip(used, axis=0)))
        some = slice(next(ends), weights.shape[-1] - next(ends))
        u, vt, weights = u[..., some], vt[..., some, :], weights[..., some]
    u = u * weights[..., None, :] * q
    product = half_product(xp.matrix_transpose(u), vt, xp) if symmetric else xp.matmul(u, vt)
    return xp.where(take[..., None], v, 0.0) + product


def _pairs(a: Array, b: Array) -> Array:
    return a[..., :, None] + b[..., None, :]


def _quotient(over: Array, under: Array, tied: Array, floor: Array, xp: Namespace) -> Array:
    close = xp.abs(under) <= floor
    return xp.where(close, tied, over / xp.where(close, 1.0, under))


def _floor(s: Array, xp: Namespace) -> Array:
    return 2 * _TIED * precision(s.dtype).unit * xp.max(xp.abs(s), axis=-1, keepdims=True)[..., None]


def _less_mean(middle: Array, inner: Array, shared: Array | None, xp: Namespace) -> Array:
    """`middle` less the mean of the diagonal of `inner` over those that `shared` marks, on these."""
    if shared is None:
        return middle
    count = xp.sum(shared, axis=-1, keepdims=True)
    mean = xp.sum(shared * diagonal(inner, xp), axis=-1, keepdims=True) / xp.where(count > 0, count, 1.0)
    return middle - xp.where(eye(middle, xp), (shared * mean)[..., None, :], 0.0)
