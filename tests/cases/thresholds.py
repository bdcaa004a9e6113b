"""Simplices, l1 balls and spheres: all have a threshold."""

from __future__ import annotations

import itertools
import math

import numpy as np

import projgrad as pg
from tests.cases import Case


def by_bisection(v: np.ndarray, total: float, lower: np.ndarray | float = 0.0, upper: float = math.inf) -> np.ndarray:
    """The nearest point between two bounds with a given sum, from a threshold bisected down to its last digit."""
    lower, upper = np.broadcast_to(lower, v.shape), np.broadcast_to(upper, v.shape)
    reach = np.abs(v).max() + abs(total) + np.abs(np.where(np.isfinite(lower), lower, 0)).sum()
    reach += np.abs(np.where(np.isfinite(upper), upper, 0)).sum()
    low, high = -reach - 1.0, reach + 1.0
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if np.clip(v - t, lower, upper).sum() > total else (low, t)
    y = np.clip(v - high, lower, upper)
    free = (y > lower) & (y < upper)
    if free.any():  # what the last digit of the threshold leaves
        y = np.clip(y - np.where(free, (math.fsum(y) - total) / free.sum(), 0.0), lower, upper)
    return y


def off_simplex(total: float, lower: np.ndarray | float = 0.0, upper: np.ndarray | float = math.inf):
    return lambda y: abs(math.fsum(y) - total) / np.sqrt(y.size) + float(np.linalg.norm(y - np.clip(y, lower, upper)))


def l1_ball(v: np.ndarray, radius: float) -> np.ndarray:
    return v if math.fsum(np.abs(v)) <= radius else np.sign(v) * by_bisection(np.abs(v), radius)


def l1_sphere(v: np.ndarray, radius: float) -> np.ndarray:
    """The nearest of the points of all faces, one for each choice of signs, where there are few of them."""
    if v.size > 7:
        return np.where(v < 0, -1.0, 1.0) * by_bisection(np.abs(v), radius)
    faces = [np.array(s) * by_bisection(np.array(s) * v, radius) for s in itertools.product((1, -1), repeat=v.size)]
    return min(faces, key=lambda y: float(np.linalg.norm(y - v)))


LOWER, UPPER = np.linspace(-1.0, 0.0, 7), np.array([0.5, 2.0, math.inf, 0.1, 0.1, 1.0, 0.0])

CASES = [
    *(
        Case(pg.Simplex(total), [(1,), (7,), (40,)], off_simplex(total), lambda v, s=total: by_bisection(v, s))
        for total in (1.0, 0.3, 20.0)
    ),
    Case(
        pg.CappedSimplex(1.0, 0.0, 0.3),
        [(4,), (7,), (40,)],
        off_simplex(1.0, 0.0, 0.3),
        lambda v: by_bisection(v, 1.0, 0.0, 0.3),
    ),
    Case(
        pg.CappedSimplex(-0.5, LOWER, UPPER),
        [(7,)],
        off_simplex(-0.5, LOWER, UPPER),
        lambda v: by_bisection(v, -0.5, LOWER, UPPER),
    ),
    Case(
        pg.CappedSimplex(2.0, -math.inf, 0.5),
        [(5,), (40,)],
        off_simplex(2.0, -math.inf, 0.5),
        lambda v: by_bisection(v, 2.0, -math.inf, 0.5),
    ),
    *(
        Case(
            pg.L1Ball(radius),
            [(1,), (7,), (40,)],
            lambda y, r=radius: max(math.fsum(np.abs(y)) - r, 0.0) / np.sqrt(y.size),
            lambda v, r=radius: l1_ball(v, r),
        )
        for radius in (1.0, 20.0)
    ),
    *(
        Case(
            pg.L1Sphere(radius),
            [(1,), (5,), (40,)],
            lambda y, r=radius: abs(math.fsum(np.abs(y)) - r) / np.sqrt(y.size),
            lambda v, r=radius: l1_sphere(v, r),
            convex=False,
        )
        for radius in (1.0, 20.0)
    ),
]
