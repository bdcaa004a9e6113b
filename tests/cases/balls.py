"""Balls with a centre. (The l-infinity ball is a box, and tested as one.)"""

from __future__ import annotations

import numpy as np

import projgrad as pg
from tests.cases import Case

CENTER = np.array([0.5, -3.0, 0.0, 10.0, 0.0])


def ball(v: np.ndarray, radius: float, center: np.ndarray | float) -> np.ndarray:
    """The point of the segment from the centre, in extended precision."""
    away = v - np.longdouble(1) * center
    distance = np.sqrt(np.sum(away**2))
    return v if distance <= radius else np.asarray(center + away * (radius / distance), dtype=np.float64)


def outside(radius: float, center: np.ndarray | float):
    return lambda y: max(float(np.linalg.norm(y - center)) - radius, 0.0)


CASES = [
    Case(pg.L2Ball(r, c), shapes, outside(r, c), lambda v, r=r, c=c: ball(v, r, c))
    for r, c, shapes in ((2.0, 0.0, [(1,), (7,)]), (1.5, 0.3, [(1,), (40,)]), (0.7, CENTER, [(5,)]))
]
