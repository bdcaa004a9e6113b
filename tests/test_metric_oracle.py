"""The nearest point in a metric, against a solver of conic programs that knows nothing of projections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import projgrad as pg

cp = pytest.importorskip("cvxpy")

N = 6
NORMAL, ROWS = np.linspace(-1.0, 2.0, N), np.random.default_rng(9).standard_normal((2, N))
Shape = tuple[int, ...]
Described = tuple[pg.Constraint, Shape, Callable[[Any], list[Any]]]


def differences(y: Any) -> Any:
    return y[1:] - y[:-1]


SETS: list[Described] = [
    (pg.Simplex(2.0), (N,), lambda y: [y >= 0, cp.sum(y) == 2]),
    (pg.CappedSimplex(1.0, 0.0, 0.3), (N,), lambda y: [y >= 0, y <= 0.3, cp.sum(y) == 1]),
    (pg.L1Ball(1.0), (N,), lambda y: [cp.norm1(y) <= 1]),
    (pg.L2Ball(1.0, 0.5), (N,), lambda y: [cp.norm(y - 0.5) <= 1]),
    (pg.MaxNorm(1.0, axis=0), (N,), lambda y: [cp.norm(y) <= 1]),
    (pg.SumTo(1.0), (N,), lambda y: [cp.sum(y) == 1]),
    (pg.Hyperplane(NORMAL, 0.5), (N,), lambda y: [NORMAL @ y == 0.5]),
    (pg.Halfspace(NORMAL, -0.5), (N,), lambda y: [NORMAL @ y <= -0.5]),
    (pg.Affine(ROWS, [1.0, -1.0]), (N,), lambda y: [ROWS @ y == np.asarray([1.0, -1.0])]),
    (pg.Monotone(), (N,), lambda y: [differences(y) >= 0]),
    (pg.Monotone(lower=-0.5, upper=0.5), (N,), lambda y: [differences(y) >= 0, y >= -0.5, y <= 0.5]),
    (pg.Unimodal(peak=2), (N,), lambda y: [differences(y)[:2] >= 0, differences(y)[2:] <= 0]),
    (pg.TotalVariationBall(1.0), (N,), lambda y: [cp.norm1(differences(y)) <= 1]),
    (pg.SecondOrderCone(), (N,), lambda y: [cp.norm(y[:-1]) <= y[-1]]),
    (pg.GroupL1Ball(1.0), (3, 4), lambda y: [cp.sum(cp.norm(y, axis=1)) <= 1]),
    (pg.L1InfBall(1.0), (3, 4), lambda y: [cp.sum(cp.max(cp.abs(y), axis=1)) <= 1]),
    (pg.Symmetric(), (3, 3), lambda y: [y == y.T]),
    (pg.SkewSymmetric(), (3, 3), lambda y: [y == -y.T]),
    (pg.DoublyStochastic(), (4, 4), lambda y: [y >= 0, cp.sum(y, axis=0) == 1, cp.sum(y, axis=1) == 1]),
    (
        pg.Transport([1.0, 2.0, 0.5], [1.5, 0.5, 1.0, 0.5]),
        (3, 4),
        lambda y: [y >= 0, cp.sum(y, axis=1) == np.asarray([1, 2, 0.5]), cp.sum(y, axis=0) == [1.5, 0.5, 1, 0.5]],
    ),
    (pg.Simplex() & pg.Halfspace(NORMAL, 0.0), (N,), lambda y: [y >= 0, cp.sum(y) == 1, NORMAL @ y <= 0]),
    (pg.MaxNorm(0.7, axis=0) & pg.NonNeg(), (N,), lambda y: [cp.norm(y) <= 0.7, y >= 0]),
    (pg.MaxNorm(0.7, axis=0) & pg.Box(-0.2, 0.4), (N,), lambda y: [cp.norm(y) <= 0.7, y >= -0.2, y <= 0.4]),
    (pg.L1Ball(1.0) & pg.NonNeg(), (N,), lambda y: [cp.sum(y) <= 1, y >= 0]),
]


@pytest.mark.parametrize("described", SETS, ids=lambda described: str(described[0]))
@pytest.mark.parametrize("span", [2.0, 6.0])
def test_a_solver_finds_nothing_nearer(described: Described, span: float) -> None:
    constraint, shape, conditions = described
    rng = np.random.default_rng(3)
    for _ in range(3):
        v, h = 2 * rng.standard_normal(shape), 10.0 ** (-span * rng.random(shape))
        found = constraint.project(v, metric=h)
        y = cp.Variable(shape)
        problem = cp.Problem(cp.Minimize(cp.sum_squares(cp.multiply(np.sqrt(h), y - v))), conditions(y))
        problem.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
        best = float((h * (y.value - v) ** 2).sum())
        for condition in conditions(cp.Constant(found)):
            assert np.max(condition.violation()) < 1e-12
        assert (h * (found - v) ** 2).sum() <= best * (1 + 1e-7) + 1e-10
        assert constraint.violation(y.value).max() < 1e-8  # the two speak of the same set
