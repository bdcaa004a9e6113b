"""What is special of the sets of matrices with given sums: large ones, optimality, far points, errors."""

from __future__ import annotations

import re

import numpy as np
import pytest

import projgrad as pg
from projgrad.sets import transport


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([1.0, 2.0], [1.0], "Transport: row_sums and column_sums have the totals 3 and 1"),
        ([1.0, -1.0], [0.0], "Transport: row_sums must be at least 0"),
        ([1.0, float("inf")], [1.0], "Transport: row_sums must be finite"),
        ([1.0, float("nan")], [1.0], "Transport: row_sums has a NaN"),
        (1.0, [1.0], "Transport: row_sums must have 1 dimension, not 0"),
        ([[1.0]], [1.0], "Transport: row_sums must have 1 dimension, not 2"),
        ("x", [1.0], "Transport: row_sums is not an array of real numbers"),
    ],
)
def test_wrong_sums(rows, columns, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        pg.Transport(rows, columns)


def test_wrong_shapes_and_axes():
    with pytest.raises(ValueError, match=re.escape("DoublyStochastic is a set of square matrices; these are 2 x 3")):
        pg.DoublyStochastic().project(np.zeros((4, 2, 3)))
    with pytest.raises(ValueError, match=re.escape("the sums are those of 2 x 1 matrices; these are 1 x 2")):
        pg.Transport([1.0, 2.0], [3.0]).project(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="is not a pair"):
        pg.DoublyStochastic(axis=0)
    with pytest.raises(ValueError, match="rate"):
        pg.DoublyStochastic(rate=2.0)


def optimality(x: np.ndarray, y: np.ndarray) -> float:
    """The largest violation of the conditions for `y` to be nearest to `x`: ``x - y = a + b - z, z >= 0, z y = 0``.

    The numbers a and b come from the support of `y`, by least squares, and z from these.
    """
    m, n = x.shape
    way = (x - y).reshape(-1)
    system = np.hstack([np.kron(np.eye(m), np.ones((n, 1))), np.kron(np.ones((m, 1)), np.eye(n))])
    on = y.reshape(-1) > 0
    dual = np.linalg.lstsq(system[on], way[on], rcond=1e-12)[0]
    z = system @ dual - way
    return float(max(np.abs(z[on]).max(), -z[~on].min(initial=0.0)))


def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often the reduced dual function is evaluated."""
    count = [0]
    found = transport._thresholds
    monkeypatch.setattr(transport, "_thresholds", lambda *a: (count.__setitem__(0, count[0] + 1), found(*a))[1])
    return count


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("scale", "most"), [(0.01, 10), (1.0, 20)])
def test_fifty_by_fifty_where_the_answer_has_an_interior(monkeypatch, dtype, scale, most):
    count = evaluations(monkeypatch)
    x = (scale * np.random.default_rng(0).standard_normal((50, 50))).astype(dtype)
    y = pg.DoublyStochastic().project(x).astype("float64")
    eps = np.finfo(dtype).eps
    assert count[0] <= most
    assert y.min() >= 0
    assert max(np.abs(y.sum(0) - 1).max(), np.abs(y.sum(1) - 1).max()) <= 4 * eps
    assert optimality(x.astype("float64"), y) <= 100 * eps * max(scale, 0.1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [100.0, 1e6, 1e30])
def test_fifty_by_fifty_where_the_answer_is_a_permutation(monkeypatch, dtype, scale):
    # far from the set the nearest point is the vertex that the assignment problem asks for
    from scipy.optimize import linear_sum_assignment

    count = evaluations(monkeypatch)
    x = (scale * np.random.default_rng(1).standard_normal((50, 50))).astype(dtype)
    y = pg.DoublyStochastic().project(x).astype("float64")
    assert count[0] <= 80
    assert max(np.abs(y.sum(0) - 1).max(), np.abs(y.sum(1) - 1).max()) <= 4 * np.finfo(dtype).eps
    rows, columns = linear_sum_assignment(-x)
    best = np.zeros((50, 50))
    best[rows, columns] = 1
    if scale > 100:
        np.testing.assert_allclose(y, best, atol=1e-6)
    else:
        assert np.linalg.norm(x - y) <= np.linalg.norm(x - best)


@pytest.mark.parametrize("shape", [(40, 15), (15, 40)])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_given_sums(shape, scale):
    rng = np.random.default_rng(2)
    rows, columns = rng.random(shape[0]) + 0.01, rng.random(shape[1]) + 0.01
    columns *= rows.sum() / columns.sum()
    x = scale * rng.standard_normal((3, *shape))
    for group, y in zip(x, pg.Transport(rows, columns).project(x), strict=True):
        np.testing.assert_allclose(y.sum(1), rows, rtol=1e-13)
        np.testing.assert_allclose(y.sum(0), columns, rtol=1e-13)
        assert optimality(group, y) <= 1e-13 * scale


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_given_sums_of_far_points(monkeypatch, dtype):
    # a vertex, where nearly no step stays within the support it was made for
    count = evaluations(monkeypatch)
    rng = np.random.default_rng(1)
    rows, columns = rng.random(50) + 0.01, rng.random(50) + 0.01
    columns *= rows.sum() / columns.sum()
    y = pg.Transport(rows, columns).project((1e6 * rng.standard_normal((50, 50))).astype(dtype)).astype("float64")
    assert count[0] <= 250
    assert (y > 0).sum() <= 99
    np.testing.assert_allclose(y.sum(1), rows, rtol=8 * np.finfo(dtype).eps)
    np.testing.assert_allclose(y.sum(0), columns, rtol=8 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps)


def test_no_entry_stays_negative():
    x = np.array([[0.5, 0.5, -1e-12], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], "float32")
    assert np.all(pg.DoublyStochastic().project(x) >= 0)


def test_doubly_stochastic_is_transport_with_sums_of_one():
    x = np.random.default_rng(3).standard_normal((2, 7, 7))
    ones = pg.Transport(np.ones(7), np.ones(7))
    np.testing.assert_allclose(pg.DoublyStochastic().project(x), ones.project(x), atol=1e-14)


def test_one_row_is_a_given_point_and_one_column_of_a_free_one_a_simplex():
    x = np.random.default_rng(4).standard_normal((1, 5))
    np.testing.assert_allclose(pg.Transport([3.0], [1.0, 1.0, 0.5, 0.5, 0.0]).project(x), [[1, 1, 0.5, 0.5, 0]])
    # with two rows of which one may take all that is left over, the other is nearest in a box with a sum
    x = np.random.default_rng(5).standard_normal((2, 6))
    caps = np.full(6, 0.5)
    y = pg.Transport([1.0, 2.0], caps).project(x)
    v = (x[0] - x[1] + caps) / 2  # both rows' distances in terms of the first
    np.testing.assert_allclose(y[0], pg.CappedSimplex(1.0, 0.0, 0.5).project(v), atol=1e-14)


def test_rows_and_columns_of_zeros():
    x = np.random.default_rng(6).standard_normal((3, 3))
    y = pg.Transport([0.0, 1.0, 2.0], [3.0, 0.0, 0.0]).project(x)
    np.testing.assert_array_equal(y, [[0, 0, 0], [1, 0, 0], [2, 0, 0]])
    np.testing.assert_array_equal(pg.Transport([0.0, 0.0], [0.0]).project(x[:2, :1]), [[0], [0]])


def test_totals_that_differ_by_rounding():
    rows, columns = np.array([0.1, 0.2, 0.7], "float32"), np.array([0.3, 0.3, 0.4], "float32")
    y = pg.Transport(rows, columns).project(np.eye(3))
    np.testing.assert_allclose(y.sum(1), rows.astype("float64"), rtol=1e-14)
    np.testing.assert_allclose(y.sum(0), columns, rtol=1e-6)


def test_an_iteration_limit_is_an_error(monkeypatch):
    monkeypatch.setattr(transport, "_MOST", 2)
    with pytest.raises(RuntimeError, match="did not reach its tolerance"):
        pg.DoublyStochastic().project(np.random.default_rng(7).standard_normal((9, 9)))


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_thirty_by_thirty_in_a_metric(scale):
    from scipy.optimize import linprog

    rng = np.random.default_rng(4)
    x, h = scale * rng.standard_normal((30, 30)), 10.0 ** (-4 * rng.random((30, 30)))
    y = pg.DoublyStochastic().project(x, metric=h)
    np.testing.assert_allclose([y.sum(0), y.sum(1)], 1, rtol=1e-13)
    # optimal: numbers a and b with h (x - y) = a + b on the support and <= elsewhere; the least that they are off is t
    way, on = (h * (x - y)).reshape(-1), y.reshape(-1) > 0
    sums = np.hstack([np.kron(np.eye(30), np.ones((30, 1))), np.kron(np.ones((30, 1)), np.eye(30)), np.ones((900, 1))])
    least = sums[on] * ([1.0] * 60 + [-1.0])
    rows, bounds = np.vstack([-sums, least]), np.append(-way, way[on])
    found = linprog([0.0] * 60 + [1.0], rows, bounds, bounds=[(None, None)] * 60 + [(0, None)])
    assert found.status == 0
    assert found.fun <= 1e-9 * scale
