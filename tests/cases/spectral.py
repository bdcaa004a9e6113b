"""Sets of matrices given by their singular values, and a decomposition in extended precision."""

from __future__ import annotations

import numpy as np

import projgrad as pg
from tests.cases import Case


def by_jacobi(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U, s and V with ``x = U s V'`` in extended precision: columns are turned in pairs until all are orthogonal.

    The columns of U that belong to the singular value 0 are 0.
    """
    if x.shape[0] < x.shape[1]:
        v, s, u = by_jacobi(x.T)
        return u, s, v
    scale = np.abs(x).max() or 1.0
    g = x.astype(np.longdouble) / scale
    v = np.eye(x.shape[1], dtype=np.longdouble)
    for _ in range(40):
        turned = False
        for i in range(x.shape[1]):
            for j in range(i + 1, x.shape[1]):
                a, b, c = g[:, i] @ g[:, i], g[:, j] @ g[:, j], g[:, i] @ g[:, j]
                if abs(c) <= 1e-18 * np.sqrt(a * b) or abs(c) < 1e-36:
                    continue
                turned = True
                slope = (b - a) / (2 * c)
                t = (1 if slope >= 0 else -1) / (abs(slope) + np.sqrt(1 + slope * slope))
                turn = np.array([[1, t], [-t, 1]]) / np.sqrt(1 + t * t)
                g[:, [i, j]], v[:, [i, j]] = g[:, [i, j]] @ turn, v[:, [i, j]] @ turn
        if not turned:
            break
    s = np.sqrt((g * g).sum(0))
    order = np.argsort(-s)
    g, s, v = g[:, order], s[order], v[:, order]
    s = np.where(s > 1e-17 * s[0], s, 0)
    return g / np.where(s > 0, s, 1), s * scale, v


def of_singular_values(function):
    """The oracle that replaces the singular values by a function of them."""

    def oracle(x: np.ndarray) -> np.ndarray:
        u, s, v = by_jacobi(x)
        return ((u * function(s)) @ v.T).astype(np.float64)

    return oracle


def soft(s: np.ndarray, total: float) -> np.ndarray:
    """The nearest point to decreasing numbers of at least 0 that has at most the sum `total`, by trying every count."""
    if s.sum() <= total:
        return s
    best = max((s[: k + 1].sum() - total) / (k + 1) for k in range(len(s)))
    return np.maximum(s - best, 0)


def singular(y: np.ndarray) -> np.ndarray:
    return np.linalg.svd(y, compute_uv=False)


CASES = [
    Case(
        pg.SpectralNorm(0.8),
        [(1, 1), (4, 3), (3, 5)],
        lambda y: float(np.linalg.norm(np.maximum(singular(y) - 0.8, 0))),
        of_singular_values(lambda s: np.minimum(s, 0.8)),
        accuracy=8.0,
    ),
    Case(
        pg.NuclearNorm(1.5),
        [(1, 4), (4, 3), (3, 5)],
        lambda y: max(singular(y).sum() - 1.5, 0.0),
        of_singular_values(lambda s: soft(s, 1.5)),
        accuracy=8.0,
    ),
    Case(
        pg.Rank(2),
        [(2, 1), (4, 4), (3, 5)],
        lambda y: float(np.linalg.norm(singular(y)[2:])),
        of_singular_values(lambda s: np.where(np.arange(len(s)) < 2, s, 0)),
        convex=False,
        accuracy=8.0,
    ),
]
