"""Symmetric matrices, and sets of them given by their eigenvalues."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import optimize

import projgrad as pg
from tests.cases import Case
from tests.cases.spectral import by_jacobi, soft


def of_eigenvalues(function):
    """The oracle that replaces the eigenvalues of the symmetric part, decreasing, by a function of them."""

    def oracle(x: np.ndarray) -> np.ndarray:
        part = (x + x.T).astype(np.longdouble) / 2
        shift = np.sqrt((part * part).sum())
        _, s, q = by_jacobi(part + shift * np.eye(len(x)))  # positive semidefinite
        return ((q * function(s - shift)) @ q.T).astype(np.float64)

    return oracle


def off_symmetric(y: np.ndarray) -> float:
    return float(np.linalg.norm(y - y.T) / 2)


def below(y: np.ndarray, least: float) -> float:
    """How far the eigenvalues are from being at least `least`."""
    return float(np.linalg.norm(np.minimum(np.linalg.eigvalsh((y + y.T) / 2) - least, 0)))


def nearest_correlation(x: np.ndarray) -> np.ndarray:
    return _by_dual(x.tobytes(), len(x))


@lru_cache(maxsize=100_000)
def _by_dual(x: bytes, n: int) -> np.ndarray:
    """The positive semidefinite part of x plus the diagonal that a general solver finds to be right."""
    part = np.frombuffer(x).reshape(n, n)
    part = (part + part.T) / 2
    part = part - np.diag(np.diag(part))

    def at(y: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(part + np.diag(y))
        return (vectors * np.maximum(values, 0)) @ vectors.T

    def dual(y: np.ndarray) -> tuple[float, np.ndarray]:
        z = at(y)
        return (z * z).sum() / 2 - y.sum(), np.diag(z) - 1

    start = optimize.minimize(dual, np.ones(n), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 10_000}).x
    found = optimize.root(lambda y: dual(y)[1], start, tol=1e-15).x
    return at(min(found, start, key=lambda y: np.abs(dual(y)[1]).max()))


def off_correlation(y: np.ndarray) -> float:
    return off_symmetric(y) + below(y, 0.0) + (0.0 if (np.diag(y) == 1).all() else np.inf)


CASES = [
    Case(pg.Symmetric(), [(1, 1), (5, 5)], off_symmetric, lambda x: (x + x.T) / 2),
    Case(pg.SkewSymmetric(), [(1, 1), (5, 5)], lambda y: float(np.linalg.norm(y + y.T) / 2), lambda x: (x - x.T) / 2),
    *(
        Case(
            pg.PositiveSemidefinite(least),
            [(1, 1), (4, 4)],
            lambda y, least=least: off_symmetric(y) + below(y, least),
            of_eigenvalues(lambda v, least=least: np.maximum(v, least)),
            accuracy=8.0,
        )
        for least in (0.0, -0.5)
    ),
    Case(
        pg.Spectraplex(1.5),
        [(1, 1), (4, 4)],
        lambda y: off_symmetric(y) + below(y, 0.0) + abs(np.trace(y) - 1.5) / np.sqrt(len(y)),
        of_eigenvalues(lambda v: soft(v - v.min() + 1.5, 1.5)),
        accuracy=8.0,
    ),
    Case(
        pg.Correlation(),
        [(1, 1), (4, 4)],
        off_correlation,
        nearest_correlation,
        scales=(1e-3, 1.0, 10.0),
        accuracy=8.0,
    ),
]
