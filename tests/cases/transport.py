"""Matrices with given sums of the rows and of the columns."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

import projgrad as pg
from tests.cases import Case


def sums(shape: tuple[int, int]) -> np.ndarray:
    """The matrix that takes the entries of a matrix to the sums of its rows and of its columns."""
    m, n = shape
    return np.vstack([np.kron(np.eye(m), np.ones(n)), np.kron(np.ones(m), np.eye(n))])


def by_support(v: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The nearest point: its support from penalised least squares, the point from the equations on the support."""
    system, right, start = sums(v.shape), np.append(rows, columns), v.reshape(-1)
    for weight in (1e3, 1e5, 1e7):
        weight *= max(1.0, float(np.abs(v).max()) ** 0.5)
        found = nnls(np.vstack([np.eye(start.size), weight * system]), np.append(start, weight * right), maxiter=10**5)
        on = found[0] > 0
        y = np.where(on, start, 0.0)
        for _ in range(2):
            y[on] -= np.linalg.lstsq(system[:, on], system[:, on] @ y[on] - right, rcond=1e-12)[0]
        # optimal: what is left of the way, after what the sums take, only keeps entries from becoming negative
        dual, _ = nnls(np.hstack([system.T, -system.T, -np.eye(start.size)[:, ~on]]), start - y, maxiter=10**5)
        left = np.hstack([system.T, -system.T, -np.eye(start.size)[:, ~on]]) @ dual - (start - y)
        size = 1 + np.abs(v).max()
        if y.min() >= -1e-12 and np.abs(system @ y - right).max() < 1e-12 and np.abs(left).max() < 1e-9 * size:
            return np.maximum(y, 0).reshape(v.shape)
    raise AssertionError("the oracle found no point that is optimal")


def off(y: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> float:
    """How far from the sums, by least squares, and how much of it is negative."""
    excess = np.append(y.sum(1) - rows, y.sum(0) - columns)
    move = np.linalg.lstsq(sums(y.shape), excess, rcond=1e-12)[0]
    return float(np.linalg.norm(move)) + float(np.linalg.norm(np.minimum(y, 0)))


ROWS, COLUMNS = np.array([2.0, 0.0, 1.0]), np.array([0.5, 0.7, 0.3, 1.5, 0.0])
CASES = [
    Case(
        pg.DoublyStochastic(),
        [(1, 1), (3, 3), (6, 6)],
        lambda y: off(y, np.ones(len(y)), np.ones(len(y))),
        lambda v: by_support(v, np.ones(len(v)), np.ones(len(v))),
        span=4.0,
    ),
    Case(
        pg.Transport(ROWS, COLUMNS),
        [(3, 5)],
        lambda y: off(y, ROWS, COLUMNS),
        lambda v: by_support(v, ROWS, COLUMNS),
        span=4.0,
    ),
]
