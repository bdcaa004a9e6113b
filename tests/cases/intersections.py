"""Intersections, one for every method that finds their nearest points."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from scipy.optimize import minimize

import projgrad as pg
from tests.cases import Case
from tests.cases.thresholds import by_bisection


def nearest_of(v: np.ndarray, candidates: Iterator[np.ndarray]) -> np.ndarray:
    """The candidate nearest to `v`."""
    return min(candidates, key=lambda y: float(np.linalg.norm(y - v)))


def sphere_in_box(v: np.ndarray, low: float, high: float, radius: float = 1.0) -> np.ndarray:
    """By trying for every entry whether it is at the lower bound, at the upper one, or free."""

    def candidates() -> Iterator[np.ndarray]:
        for state in itertools.product((0, 1, 2), repeat=v.size):
            where = np.array(state)
            y, free = np.where(where == 1, high, low).astype(float), where == 2
            rest = radius**2 - (y[~free] ** 2).sum()
            if rest < -1e-12 or (not free.any() and rest > 1e-12):
                continue
            along = v[free] if np.any(v[free]) else np.ones(int(free.sum()))
            for sign in (1, -1) if free.any() else (0,):
                y[free] = sign * along / np.linalg.norm(along) * np.sqrt(max(rest, 0.0)) if free.any() else 0.0
                if np.all(y >= low - 1e-12) and np.all(y <= high + 1e-12):
                    yield np.clip(y, low, high)

    return nearest_of(v, candidates())


def sphere_in_orthant(v: np.ndarray) -> np.ndarray:
    """By trying every set of entries that are not 0."""

    def candidates() -> Iterator[np.ndarray]:
        yield from np.eye(v.size)
        for state in itertools.product((False, True), repeat=v.size):
            y = np.where(state, v, 0.0)
            if np.all(y >= 0) and np.linalg.norm(y) > 0:
                yield y / np.linalg.norm(y)

    return nearest_of(v, candidates())


def sphere_of_zero_mean(v: np.ndarray) -> np.ndarray:
    """In the coordinates of an orthonormal basis of the plane."""
    basis = np.linalg.svd(np.ones((1, v.size)))[2][1:]
    inside = basis @ v
    if np.linalg.norm(inside) <= 1e-14 * np.linalg.norm(v):
        inside = np.eye(v.size - 1)[0]
    return basis.T @ (inside / np.linalg.norm(inside))


def plane_and_box(v: np.ndarray, normal: np.ndarray, offset: float, low: float, high: float) -> np.ndarray:
    """By bisection of the multiplier, once more from where it ends."""
    for _ in range(2):
        ends = np.concatenate([(v - low) / normal, (v - high) / normal])
        first, last = ends.min(), ends.max()
        for _ in range(200):
            t = (first + last) / 2
            first, last = (t, last) if np.clip(v - t * normal, low, high) @ normal > offset else (first, t)
        v = v - last * normal
    return np.clip(v, low, high)


def simplex_below(v: np.ndarray, normal: np.ndarray, offset: float) -> np.ndarray:
    """By trying every set of entries that are not 0: the point for which the conditions of optimality hold best.

    Distances would not do, as they are the same to rounding for points that are not.
    """
    free = by_bisection(v, 1.0)
    if normal @ free <= offset:
        return free

    def candidates() -> Iterator[tuple[float, np.ndarray]]:
        for size in range(2, v.size + 1):
            for chosen in map(list, itertools.combinations(range(v.size), size)):
                rows, sides = np.stack([np.ones(size), normal[chosen]]), np.array([1.0, offset])
                some, *_ = np.linalg.lstsq(rows, sides - rows @ v[chosen], rcond=None)
                y = np.zeros(v.size)
                y[chosen] = v[chosen] + some
                (shift, slope), *_ = np.linalg.lstsq(rows.T, some, rcond=None)
                rest = np.delete(v + shift + slope * normal, chosen)
                wrong = max(slope, -y.min(), rest.max(initial=0.0), np.abs(rows @ y[chosen] - sides).max())
                yield float(wrong), np.maximum(y, 0)

    return min(candidates(), key=lambda pair: pair[0])[1]


def l1_and_l2(v: np.ndarray, total: float, radius: float) -> np.ndarray:
    """Both bind where neither ball alone will do; then the threshold makes the quotient of the norms right."""

    def soft(t: float) -> np.ndarray:
        return np.sign(v) * np.maximum(np.abs(v) - t, 0)

    inside = v / max(1.0, np.linalg.norm(v) / radius)
    if np.abs(inside).sum() <= total:
        return inside
    one = np.sign(v) * by_bisection(np.abs(v), total) if np.abs(v).sum() > total else v
    if np.linalg.norm(one) <= radius:
        return one
    low, high = 0.0, np.abs(v).max()
    for _ in range(200):
        t = (low + high) / 2
        y = soft(t)
        more = np.abs(y).sum() * radius > total * np.linalg.norm(y)
        low, high = (t, high) if more else (low, t)
    y = soft(low)
    return y / np.linalg.norm(y) * radius


def rows_and_columns(v: np.ndarray, radius: float) -> np.ndarray:
    """By the dual function, whose multipliers divide rows and columns; then Newton's method on those that are not 0."""
    m, n = v.shape

    def divided(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        q = 1 + z[:m, None] + z[None, m:]
        return v / q, q

    def dual(z: np.ndarray) -> tuple[float, np.ndarray]:
        x, q = divided(z)
        squares = np.concatenate([(x * x).sum(1), (x * x).sum(0)])
        return (radius**2 * z.sum() - (v * v * (1 - 1 / q)).sum()) / 2, (radius**2 - squares) / 2

    options = {"maxiter": 20_000, "ftol": 1e-16, "gtol": 1e-13, "maxcor": 30}
    z = minimize(dual, np.zeros(m + n), jac=True, bounds=[(0, None)] * (m + n), method="L-BFGS-B", options=options).x
    on = z > 1e-7
    z = np.where(on, z, 0.0)
    for _ in range(30 if on.any() else 0):
        x, q = divided(z)
        w = -2 * x * x / q
        slope = np.block([[np.diag(w.sum(1)), w], [w.T, np.diag(w.sum(0))]])[np.ix_(on, on)]
        squares = np.concatenate([(x * x).sum(1), (x * x).sum(0)])
        z[on] -= np.linalg.lstsq(slope, squares[on] - radius**2, rcond=None)[0]
    return divided(z)[0]


def off_box(y: np.ndarray, low: float, high: float) -> float:
    return float(np.linalg.norm(y - np.clip(y, low, high)))


NORMAL = np.array([0.5, -1.0, 2.0, 0.25, -0.75])

CASES = [
    Case(
        pg.UnitNorm(axis=-1) & pg.Box(0.0, 0.6),
        [(3,), (5,)],
        lambda y: abs(float(np.linalg.norm(y)) - 1) + off_box(y, 0.0, 0.6),
        lambda v: sphere_in_box(v, 0.0, 0.6),
        convex=False,
    ),
    Case(
        pg.UnitNorm(axis=-1) & pg.NonNeg(),
        [(1,), (6,)],
        lambda y: abs(float(np.linalg.norm(y)) - 1) + off_box(y, 0.0, np.inf),
        sphere_in_orthant,
        convex=False,
    ),
    Case(
        pg.UnitNorm(axis=-1) & pg.ZeroMean(axis=-1),
        [(2,), (40,)],
        lambda y: abs(float(np.linalg.norm(y)) - 1) + abs(y.sum()) / np.sqrt(y.size),
        sphere_of_zero_mean,
        convex=False,
        accuracy=2.0,
    ),
    Case(
        pg.MaxNorm(1.0, axis=-1) & pg.NonNeg(),
        [(1,), (40,)],
        lambda y: max(0.0, float(np.linalg.norm(y)) - 1) + off_box(y, 0.0, np.inf),
        lambda v: np.maximum(v, 0) / max(1.0, float(np.linalg.norm(np.maximum(v, 0)))),
    ),
    Case(
        pg.Hyperplane(NORMAL, 0.3, axis=-1) & pg.Box(-0.5, 1.0),
        [(5,)],
        lambda y: abs(y @ NORMAL - 0.3) / np.linalg.norm(NORMAL) + off_box(y, -0.5, 1.0),
        lambda v: plane_and_box(v, NORMAL, 0.3, -0.5, 1.0),
        accuracy=2.0,
    ),
    Case(
        pg.Simplex(1.0, axis=-1) & pg.Halfspace(NORMAL, -0.1, axis=-1),
        [(5,)],
        lambda y: (
            max(0.0, y @ NORMAL + 0.1) / np.linalg.norm(NORMAL) + abs(y.sum() - 1) / np.sqrt(5) + off_box(y, 0.0, 1.0)
        ),
        lambda v: simplex_below(v, NORMAL, -0.1),
        accuracy=2.0,
    ),
    Case(
        pg.L1Ball(1.5, axis=-1) & pg.MaxNorm(1.0, axis=-1),
        [(2,), (40,)],
        lambda y: max(0.0, float(np.linalg.norm(y)) - 1) + max(0.0, float(np.abs(y).sum()) - 1.5) / np.sqrt(y.size),
        lambda v: l1_and_l2(v, 1.5, 1.0),
        accuracy=2.0,
    ),
    Case(
        pg.MaxNorm(1.0, axis=-1) & pg.MaxNorm(1.0, axis=-2),
        [(2, 3)],
        lambda y: float(
            np.sum(np.maximum(np.linalg.norm(y, axis=1) - 1, 0)) + np.sum(np.maximum(np.linalg.norm(y, axis=0) - 1, 0))
        ),
        lambda v: rows_and_columns(v, 1.0),
        accuracy=4.0,
        scales=(1e-3, 1.0, 3.0),
        smooth=False,
    ),
]
