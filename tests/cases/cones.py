"""Cones given by a norm."""

from __future__ import annotations

import numpy as np

import projgrad as pg
from tests.cases import Case


def by_bisection(v: np.ndarray, slope: float) -> np.ndarray:
    """The nearest point of the second-order cone: z is cut to the length that t allows, for the best t."""
    size, start = np.linalg.norm(v[:-1]), v[-1]
    if size <= slope * start:
        return v
    low, high = 0.0, max(start, 0.0) + size * (1 + slope)
    for _ in range(200):  # the slope in t of the squared distance increases
        t = (low + high) / 2
        low, high = (low, t) if t - start - slope * max(size - slope * t, 0.0) > 0 else (t, high)
    return np.append(v[:-1] * min(1.0, slope * high / size) if size else v[:-1], high)


CASES = [
    Case(
        pg.SecondOrderCone(slope),
        [(1,), (2,), (40,)],
        lambda y, s=slope: float(np.linalg.norm(y - by_bisection(y, s))),
        lambda v, s=slope: by_bisection(v, s),
    )
    for slope in (1.0, 0.3)
]
