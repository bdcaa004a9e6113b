"""Balls of groups of groups."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import projgrad as pg
from tests.cases import Case
from tests.cases.thresholds import by_bisection


def group_l1(v: np.ndarray, radius: float) -> np.ndarray:
    norms = np.linalg.norm(v, axis=1)
    if norms.sum() <= radius:
        return v
    kept = by_bisection(norms, radius)
    return v * (kept / np.where(norms > 0, norms, 1))[:, None]


def l1_inf(v: np.ndarray, radius: float) -> np.ndarray:
    """By bisection on the multiplier t; the cap of a row is the largest of (sum of its j largest - t) / j, or 0."""
    ordered = -np.sort(-np.abs(v), axis=1)
    if ordered[:, 0].sum() <= radius:
        return v
    sums, counts = np.cumsum(ordered, axis=1), np.arange(1, v.shape[1] + 1)

    def caps(t: float) -> np.ndarray:
        return np.maximum(((sums - t) / counts).max(1), 0)

    low, high = 0.0, sums[:, -1].max()
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if caps(t).sum() > radius else (low, t)
    return np.clip(v, -caps(high)[:, None], caps(high)[:, None])


def bilevel(v: np.ndarray, radius: float) -> np.ndarray:
    tops = np.abs(v).max(1)
    caps = tops if tops.sum() <= radius else by_bisection(tops, radius)
    return np.clip(v, -caps[:, None], caps[:, None])


def excess(norms: Callable[[np.ndarray], np.ndarray], radius: float) -> Callable[[np.ndarray], float]:
    return lambda y: max(norms(y).sum() - radius, 0) / np.sqrt(len(y))


def l2(y: np.ndarray) -> np.ndarray:
    return np.linalg.norm(y, axis=1)


def largest(y: np.ndarray) -> np.ndarray:
    return np.abs(y).max(1)


SHAPES = [(1, 1), (4, 3), (3, 20)]

CASES = [
    Case(pg.GroupL1Ball(2.0), SHAPES, excess(l2, 2.0), lambda v: group_l1(v, 2.0)),
    Case(pg.L1InfBall(2.0), SHAPES, excess(largest, 2.0), lambda v: l1_inf(v, 2.0)),
    # not the nearest point: what is asked of it is the point of its own definition
    Case(pg.L1InfBall(2.0, "bilevel"), SHAPES, excess(largest, 2.0), lambda v: bilevel(v, 2.0)),
]
