"""Sets given by linear equations and inequalities."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np

import projgrad as pg
from tests.cases import Case


def onto(v: np.ndarray, rows: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The nearest point of an affine set, by least squares; twice, for its digits."""
    for _ in range(2):
        v = v - np.linalg.lstsq(rows, rows @ v - offsets, rcond=1e-12)[0]
    return v


def by_enumeration(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The nearest point of a polyhedron: that of the feasible points that are nearest on some of its faces."""
    length = np.linalg.norm(a, axis=1)
    faces = [list(rows) for k in range(min(a.shape) + 1) for rows in combinations(range(len(a)), k)]

    def nearest(v: np.ndarray) -> np.ndarray:
        best, least = None, np.inf
        for face in faces:
            rows = np.vstack([a[face] / length[face, None], c])
            y = onto(v, rows, np.append(b[face] / length[face], d)) if len(rows) else v
            away = np.linalg.norm(y - v)
            if away < least and np.all((a @ y - b) / length <= 1e-13 * (1 + np.linalg.norm(v))):
                best, least = y, away
        assert best is not None
        return best

    return nearest


def case(constraint: pg.Polyhedron) -> Case:
    a, b = np.asarray(constraint.A), np.asarray(constraint.b)
    c = np.zeros((0, a.shape[1])) if constraint.C is None else np.asarray(constraint.C)
    d = np.broadcast_to(np.asarray(constraint.d), len(c)) if len(c) else np.zeros(0)
    oracle = by_enumeration(a, np.broadcast_to(b, len(a)), c, d)
    return Case(constraint, [(a.shape[1],)], lambda y: float(np.linalg.norm(y - oracle(y))), oracle, accuracy=2.0)


rng = np.random.default_rng(0)
EQUATIONS = rng.standard_normal((3, 40))
CASES = [
    *(
        Case(
            pg.Affine(rows, offsets),
            [(rows.shape[1],)],
            lambda y, rows=rows, offsets=offsets: float(np.linalg.norm(y - onto(y, rows, offsets))),
            lambda v, rows=rows, offsets=offsets: onto(v, rows, offsets),
        )
        for rows, offsets in (
            (np.vstack([EQUATIONS, EQUATIONS[0] + EQUATIONS[1]]), np.array([1.0, -2.0, 0.5, -1.0])),
            (np.array([[1.0, 2.0, 0.0, -1.0], [0.0, 1.0, 1.0, 3.0]]), 0.0),
        )
    ),
    case(pg.Polyhedron(rng.standard_normal((5, 40)), [0.5, 1.0, 0.0, 0.9, -0.1], np.ones((1, 40)), 1.0)),
]
