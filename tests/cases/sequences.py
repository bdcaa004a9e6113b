"""Sequences that rise, rise and fall, curve one way, or vary little."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

import projgrad as pg
from tests.cases import Case


def pooled(v: np.ndarray) -> np.ndarray:
    """The nearest rising sequence: neighbours that fall are pooled, one pair after the other."""
    pools: list[list[float]] = []
    means: list[float] = []
    for x in v.tolist():
        pools.append([x])
        means.append(x)
        while len(pools) > 1 and means[-2] > means[-1]:
            last = pools.pop()
            pools[-1] = pools[-1] + last
            means[-2:] = [math.fsum(pools[-1]) / len(pools[-1])]
    return np.repeat(means, [len(pool) for pool in pools])


def in_parts(v: np.ndarray) -> np.ndarray:
    """The nearest of the sequences that rise and then fall, of all places to turn."""
    turns = (np.append(pooled(v[:p]), -pooled(-v[p:])) if p < v.size else pooled(v) for p in range(1, v.size + 1))
    return min(turns, key=lambda y: float(np.linalg.norm(y - v)))


def tight_rows(rows: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which of the rows are 0 on the nearest x with ``rows @ x >= 0``, and have a multiplier.

    One row at a time gets a positive multiplier, and rows whose multipliers would turn negative lose theirs on the way.
    """
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    tight, multipliers, x = np.zeros(len(rows), bool), np.zeros(len(rows)), v
    while True:
        short = np.where(tight, 0.0, rows @ x)
        row = int(np.argmin(short))
        if short[row] >= -2e-16 * np.abs(v).max():
            return tight
        tight[row] = True
        while True:
            new = np.zeros(len(rows))
            new[tight] = np.linalg.lstsq(rows[tight].T, -v)[0]
            if np.all(new[tight] > 0):
                break
            down = tight & (new <= 0)
            way = np.where(down, multipliers / np.where(multipliers > new, multipliers - new, 1.0), np.inf)
            multipliers = multipliers + way.min() * (new - multipliers)
            tight &= ~(down & (way <= way.min()))
        multipliers = new
        if not tight[row]:  # it was a rounding error
            return tight
        x = v - rows[tight].T @ np.linalg.lstsq(rows[tight].T, v)[0]


def with_peak(peak: int, v: np.ndarray) -> np.ndarray:
    """The nearest sequence that rises to the entry `peak`, and then falls: means between where it is not level."""
    differences = np.diff(np.eye(v.size), axis=0)
    differences[peak:] *= -1
    pieces = np.split(v, 1 + np.flatnonzero(~tight_rows(differences, v)))
    return np.concatenate([np.full(piece.size, math.fsum(piece) / piece.size) for piece in pieces])


def convex(v: np.ndarray) -> np.ndarray:
    """The nearest convex sequence: where it bends, from its second differences, and the fit of hats that bend there."""
    n = v.size
    if n < 3:
        return v
    bends = ~tight_rows(np.diff(np.eye(n), 2, axis=0), v)
    knots = np.concatenate([[0], 1 + np.flatnonzero(bends), [n - 1]])
    hats = np.stack([np.interp(np.arange(n), knots, row) for row in np.eye(len(knots))], axis=1)
    return hats @ np.linalg.lstsq(hats, v)[0]


def in_variation(radius: float, v: np.ndarray) -> np.ndarray:
    """The nearest sequence of bounded variation: as a multiplier grows, neighbours merge, and never part."""
    if np.abs(np.diff(v)).sum() <= radius:
        return v
    centre = v.mean()
    pieces = np.split(v - centre, 1 + np.flatnonzero(np.diff(v - centre)))
    total, size = np.array([piece.sum() for piece in pieces]), np.array([piece.size for piece in pieces])
    sign, multiplier = np.sign(np.diff(total / size)), 0.0
    while total.size > 1:
        push = np.diff(np.concatenate([[0.0], sign, [0.0]])) / size
        speed = -sign * np.diff(push)  # at which jumps shrink
        start = sign * np.diff(total / size)
        with np.errstate(divide="ignore", invalid="ignore"):
            merge = np.where(speed > 0, start / speed, math.inf)
        merge[start - multiplier * speed <= 1e-16 * np.abs(v).max()] = multiplier
        first = max(merge.min(), multiplier)
        done = (start.sum() - radius) / speed.sum()
        if done <= first:
            return np.repeat(total / size + done * push, size) + centre
        multiplier, k = first, int(np.argmin(merge))
        total[k] += total[k + 1]
        size[k] += size[k + 1]
        total, size, sign = np.delete(total, k + 1), np.delete(size, k + 1), np.delete(sign, k)
    return np.full_like(v, centre)


def ordered(lower: float, upper: float) -> Callable[[np.ndarray], float]:
    def distance(y: np.ndarray) -> float:
        return math.inf if np.any(np.diff(y) < 0) else float(np.linalg.norm(y - np.clip(y, lower, upper)))

    return distance


def turning_once(y: np.ndarray) -> float:
    turns = np.sign(np.diff(y))
    return 0.0 if np.all(np.diff(turns[turns != 0]) <= 0) else math.inf


def case(constraint: pg.Constraint, oracle: Callable[[np.ndarray], np.ndarray], **others: object) -> Case:
    others = {"distance": lambda y: float(np.linalg.norm(y - oracle(y))), "shapes": [(3,), (33,), (8,)]} | others
    return Case(constraint, oracle=oracle, **others)  # type: ignore[arg-type]


CASES = [
    case(pg.Monotone(), pooled, distance=ordered(-math.inf, math.inf), shapes=[(1,), (70,), (8,)]),
    case(
        pg.Monotone(False, lower=-0.5, upper=0.0),
        lambda v: np.clip(-pooled(-v), -0.5, 0.0),
        distance=lambda y: ordered(0.0, 0.5)(-y),
    ),
    case(pg.Unimodal(), in_parts, distance=turning_once, convex=False),
    case(
        pg.Unimodal(2, valley=True),
        lambda v: -with_peak(2, -v),
        distance=lambda y: turning_once(-y) + float(y.min() < y[2]),
    ),
    case(pg.Convex(), convex),
    case(pg.Concave(), lambda v: -convex(-v), shapes=[(2,), (5,)]),
    case(pg.TotalVariationBall(2.0), lambda v: in_variation(2.0, v), shapes=[(1,), (33,), (8,)]),
]
