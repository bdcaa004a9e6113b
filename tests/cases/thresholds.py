"""Simplices, l1 balls and sums."""

from __future__ import annotations

import numpy as np

import projgrad as pg
from tests.cases import Case


def by_bisection(v: np.ndarray, total: float) -> np.ndarray:
    """The nearest point of the simplex, from the threshold between the smallest and the largest possible."""
    low, high = v.min() - total - 1.0, v.max()
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if np.maximum(v - t, 0).sum() > total else (low, t)
    return np.maximum(v - high, 0)


def off_simplex(total: float):
    return lambda y: abs(y.sum() - total) / np.sqrt(y.size) + float(np.linalg.norm(np.minimum(y, 0)))


CASES = [
    Case(pg.Simplex(total), [(1,), (7,), (40,)], off_simplex(total), lambda v, s=total: by_bisection(v, s))
    for total in (1.0, 0.3, 20.0)
]
