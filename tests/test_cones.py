"""What is special of the second-order cone."""

from __future__ import annotations

import re

import numpy as np
import pytest

import projgrad as pg


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"slope": -1.0}, ValueError, "SecondOrderCone: slope=-1.0 is a ratio of norms, so it must be at least 0"),
        ({"slope": float("inf")}, ValueError, "must be at least 0 and finite"),
        ({"slope": float("nan")}, ValueError, "must be at least 0 and finite"),
        ({"slope": "1"}, TypeError, "SecondOrderCone: slope='1' is not a number"),
        ({"axis": ()}, ValueError, "axis=()"),
        ({"rate": 0.0}, ValueError, "rate=0.0"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        pg.SecondOrderCone(**arguments)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([3.0, 4.0, 6.0], [3.0, 4.0, 6.0]),  # inside
        ([3.0, 4.0, 0.0], [1.5, 2.0, 2.5]),  # on the edge
        ([3.0, 4.0, -5.0], [0.0, 0.0, 0.0]),  # just in the polar cone
        ([3.0, 4.0, -6.0], [0.0, 0.0, 0.0]),
        ([0.0, 0.0, -1.0], [0.0, 0.0, 0.0]),
        ([0.0, 0.0, 2.0], [0.0, 0.0, 2.0]),
    ],
)
def test_the_last_entry_is_the_bound(x, expected):
    np.testing.assert_allclose(pg.SecondOrderCone().project(np.array(x)), expected, atol=1e-15)


@pytest.mark.parametrize("slope", [0.0, 1e-30, 1e-3, 1.0, 7.0, 1e30])
@pytest.mark.parametrize("size", [1e-30, 1.0, 8e37])
def test_any_slope_and_size(slope, size):
    x = np.random.default_rng(0).standard_normal((50, 6))
    y = np.asarray(pg.SecondOrderCone(slope).project((x * size).astype("float32")), "float64") / size
    start = (x * size).astype("float32").astype("float64") / size
    z, t = y[:, :-1], y[:, -1]
    assert np.isfinite(y).all()
    outside = (np.linalg.norm(z, axis=1) - slope * t) / np.hypot(slope, 1)
    assert np.all(outside <= 1e-6 * np.linalg.norm(y, axis=1))
    # the way is at a right angle to the point, and in the polar cone: slope ||z|| <= -t
    way = start - y
    np.testing.assert_allclose((way * y).sum(1), 0, atol=1e-5)
    assert np.all(slope / (1 + slope) * np.linalg.norm(way[:, :-1], axis=1) <= -way[:, -1] / (1 + slope) + 1e-5)


def test_a_norm_that_is_infinite_in_single_precision():
    x = np.array([2.5, 2.5, 1.0])
    y = pg.SecondOrderCone().project((1e38 * x).astype("float32"))
    np.testing.assert_allclose(y, 1e38 * pg.SecondOrderCone().project(x), rtol=1e-6)


def test_slope_zero_is_the_ray_and_a_single_entry_the_half_line():
    x = np.array([[1.0, -2.0, 3.0], [1.0, 1.0, -1.0]])
    np.testing.assert_array_equal(pg.SecondOrderCone(0.0).project(x), [[0, 0, 3], [0, 0, 0]])
    np.testing.assert_array_equal(pg.SecondOrderCone().project(x.reshape(6, 1)), pg.NonNeg().project(x.reshape(6, 1)))


def test_a_reference_solver_finds_the_same_in_a_metric():
    cvxpy = pytest.importorskip("cvxpy")
    rng = np.random.default_rng(1)
    for slope in (0.3, 1.0, 20.0):
        for _ in range(6):
            v, h = rng.standard_normal(6), 10.0 ** rng.uniform(-6, 0, 6)
            h[rng.integers(6)] = 1.0
            y = cvxpy.Variable(6)
            size = cvxpy.sum_squares(cvxpy.multiply(np.sqrt(h), y - v))
            cvxpy.Problem(cvxpy.Minimize(size), [cvxpy.norm(y[:-1]) <= slope * y[-1]]).solve(
                solver="CLARABEL", tol_gap_abs=1e-10, tol_gap_rel=1e-10
            )
            found = pg.SecondOrderCone(slope).project(v, metric=h)
            np.testing.assert_allclose(np.sqrt(h) * found, np.sqrt(h) * y.value, atol=1e-4)


@pytest.mark.parametrize("slope", [0.0, 1e-30, 1e-3, 1.0, 7.0, 1e30])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e33])
def test_any_slope_and_size_in_a_metric(slope, size):
    rng = np.random.default_rng(2)
    start, h = rng.standard_normal((50, 6)).astype("float32"), 10.0 ** rng.uniform(-6, 0, (50, 6)).astype("float32")
    y = pg.SecondOrderCone(slope).project(start * np.float32(size), metric=h).astype("float64") / size
    z, t = y[:, :-1], y[:, -1]
    assert np.isfinite(y).all()
    outside = (np.linalg.norm(z, axis=1) - slope * t) / np.hypot(slope, 1)
    assert np.all(outside <= 1e-6 * np.linalg.norm(y, axis=1))
    # the way, weighted, is at a right angle to the point, and in the polar cone: slope ||z|| <= -t
    h = h / h.max(axis=1, keepdims=True)
    way = h * (start - y)
    np.testing.assert_allclose((way * y).sum(1), 0, atol=1e-5)
    assert np.all(slope / (1 + slope) * np.linalg.norm(way[:, :-1], axis=1) <= -way[:, -1] / (1 + slope) + 1e-5)


def test_the_polar_cone_is_that_of_the_metric():
    cone, x = pg.SecondOrderCone(), np.array([3.0, 4.0, -6.0])
    np.testing.assert_array_equal(cone.project(x, metric=np.ones(3)), 0)
    np.testing.assert_array_equal(cone.project(x, metric=[0.6, 0.6, 0.5]), 0)  # 0.6 * 5 <= 0.5 * 6
    np.testing.assert_allclose(cone.project(x, metric=[1.0, 1.0, 0.5]), [0.8, 1.6 / 1.5, 4 / 3], rtol=1e-6)


def test_a_scheduled_slope():
    cone = pg.SecondOrderCone(pg.Schedule({0: 1.0, 10: 3.0}))
    x = np.array([3.0, 4.0, 1.0])
    np.testing.assert_allclose(cone.project(x, step=10), pg.SecondOrderCone(3.0).project(x))
