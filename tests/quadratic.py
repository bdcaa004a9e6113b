"""A quadratic whose minimum over a set is known, for the optimizers that ought to find it."""

from __future__ import annotations

import numpy as np

__all__ = ["minimum", "quadratic"]


def quadratic(seed=0, n=20):
    """A quadratic of condition 1000 that is not aligned with the axes."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((n, n)))[0]
    scale = 10.0 ** rng.uniform(-1, 1, n)
    matrix = turn @ np.diag(np.geomspace(1, 1000, n)) @ turn.T
    matrix = (matrix / np.sqrt(np.outer(np.diag(matrix), np.diag(matrix)))) * np.outer(scale, scale)
    return matrix, 3 * rng.standard_normal(n) * scale


def minimum(matrix, vector, constraint):
    """By accelerated projected gradients, which know nothing of a metric."""
    x = y = constraint.project(np.zeros(len(vector)) + 0.01)
    step, t = 1 / np.linalg.eigvalsh(matrix)[-1], 1.0
    for _ in range(20000):
        new = constraint.project(y - step * (matrix @ y - vector))
        if (new - x) @ (y - new) > 0:
            t, y = 1.0, x
            continue
        t, was = (1 + np.sqrt(1 + 4 * t * t)) / 2, t
        x, y = new, new + (was - 1) / t * (new - x)
    return 0.5 * x @ matrix @ x - vector @ x
