"""Sums, hyperplanes and halfspaces."""

from __future__ import annotations

import math

import numpy as np

import projgrad as pg
from tests.cases import Case

NORMALS = [
    np.array([2.0, -1.0, 0.0, 0.5, 1e-3]),
    1e-30 * np.array([1.0, 2.0, -3.0]),
    1e30 * np.cos(np.arange(40.0)),
]


def exactly(normal: np.ndarray, y: np.ndarray) -> float:
    """The inner product, added without rounding."""
    return math.fsum(normal * y)


def onto(normal: np.ndarray, offset: float, v: np.ndarray) -> np.ndarray:
    """The nearest point of a hyperplane, from the equations that it and its multiplier solve."""
    size = np.linalg.norm(normal)
    unit = (normal / size)[:, None]
    system = np.block([[np.eye(v.size), unit], [unit.T, np.zeros((1, 1))]])
    return np.linalg.solve(system, np.append(v, offset / size))[:-1]


def off(normal: np.ndarray, offset: float):
    return lambda y: abs(exactly(normal, y) - offset) / float(np.linalg.norm(normal))


def above(normal: np.ndarray, offset: float):
    return lambda y: max(exactly(normal, y) - offset, 0.0) / float(np.linalg.norm(normal))


CASES = [
    *(
        Case(
            constraint,
            [(1,), (7,), (40,)],
            lambda y, s=total: off(np.ones(y.size), s)(y),
            lambda v, s=total: onto(np.ones(v.size), s, v),
        )
        for constraint, total in ((pg.SumTo(2.0), 2.0), (pg.ZeroMean(), 0.0))
    ),
    *(
        Case(pg.Hyperplane(a, b), [a.shape], off(a, b), lambda v, a=a, b=b: onto(a, b, v))
        for a, b in zip(NORMALS, (0.5, 0.0, 1e30), strict=True)
    ),
    *(
        Case(
            pg.Halfspace(a, b),
            [a.shape],
            above(a, b),
            lambda v, a=a, b=b: v if exactly(a, v) <= b else onto(a, b, v),
        )
        for a, b in zip(NORMALS, (0.5, 1e-30, 0.0), strict=True)
    ),
]
