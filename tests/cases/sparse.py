"""Few entries, or few rows, that are not zero."""

from __future__ import annotations

import numpy as np

import projgrad as pg
from tests.cases import Case
from tests.cases.thresholds import by_bisection


def first_of_the_largest(values: np.ndarray, k: int) -> list[int]:
    """The places of the k largest; a stable sort leaves equal ones in their order."""
    return sorted(range(len(values)), key=lambda i: -values[i])[:k]


def sparse(v: np.ndarray, k: int) -> np.ndarray:
    y = np.zeros_like(v)
    for i in first_of_the_largest(np.abs(v), k):
        y[i] = v[i]
    return y


def beyond(v: np.ndarray, k: int) -> float:
    """The l2 norm of all but the k largest."""
    return float(np.linalg.norm(np.sort(np.abs(v))[: max(len(v) - k, 0)]))


def sparse_simplex(v: np.ndarray, k: int, total: float) -> np.ndarray:
    y = np.zeros_like(v)
    places = first_of_the_largest(v, k)
    y[places] = by_bisection(v[places], total)
    return y


def off_simplex(y: np.ndarray, total: float) -> float:
    return float(abs(y.sum() - total) / np.sqrt(y.size) + np.linalg.norm(np.minimum(y, 0)))


def row_norms(v: np.ndarray) -> np.ndarray:
    return np.array([np.linalg.norm(row) for row in v])


def sparse_rows(v: np.ndarray, k: int) -> np.ndarray:
    y = np.zeros_like(v)
    for i in first_of_the_largest(row_norms(v), k):
        y[i] = v[i]
    return y


CASES = [
    Case(pg.Cardinality(3), [(1,), (6,), (40,)], lambda y: beyond(y, 3), lambda v: sparse(v, 3), convex=False),
    Case(
        pg.SparseSimplex(4, 5.0),
        [(1,), (6,), (40,)],
        lambda y: off_simplex(y, 5.0) + beyond(y, 4),
        lambda v: sparse_simplex(v, 4, 5.0),
        convex=False,
    ),
    Case(
        pg.L0Groups(2),
        [(1, 3), (5, 4), (3, 20)],
        lambda y: beyond(row_norms(y), 2),
        lambda v: sparse_rows(v, 2),
        convex=False,
    ),
]
