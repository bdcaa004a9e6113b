"""Balls of groups of groups: what is special to these sets."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest

import projgrad as pg
from tests.cases.groups import l1_inf
from tests.frameworks import FRAMEWORKS, Framework, same


def matrices(rng: np.random.Generator, m: int, n: int) -> list[np.ndarray]:
    v = rng.standard_normal((m, n))
    return [v, np.round(2 * v), v * np.exp(3 * rng.standard_normal((m, 1))), np.exp(5 * v), rng.standard_cauchy((m, n))]


def test_a_reference_solver_finds_the_same() -> None:
    cvxpy = pytest.importorskip("cvxpy")
    rng = np.random.default_rng(0)
    for v in [v / np.abs(v).max() for v in matrices(rng, 4, 5)]:
        y = cvxpy.Variable(v.shape)
        norms = {pg.GroupL1Ball: cvxpy.norm(y, 2, axis=1), pg.L1InfBall: cvxpy.norm(y, "inf", axis=1)}
        for kind, norm in norms.items():
            cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(y - v)), [cvxpy.sum(norm) <= 0.4]).solve(solver="CLARABEL")
            np.testing.assert_allclose(kind(0.4)(v), y.value, atol=1e-5)


def test_a_reference_solver_finds_the_same_in_a_metric() -> None:
    cvxpy = pytest.importorskip("cvxpy")
    rng = np.random.default_rng(10)
    for v in [v / np.abs(v).max() for v in matrices(rng, 4, 5)]:
        h = 10.0 ** rng.uniform(-6, 0, v.shape)
        h[0, 0] = 1.0
        y = cvxpy.Variable(v.shape)
        norms = {pg.GroupL1Ball: cvxpy.norm(y, 2, axis=1), pg.L1InfBall: cvxpy.norm(y, "inf", axis=1)}
        for kind, norm in norms.items():
            size = cvxpy.sum_squares(cvxpy.multiply(np.sqrt(h), y - v))
            cvxpy.Problem(cvxpy.Minimize(size), [cvxpy.sum(norm) <= 0.4]).solve(
                solver="CLARABEL", tol_gap_abs=1e-10, tol_gap_rel=1e-10
            )
            found = kind(0.4).project(v, metric=h)
            # in its own metric: along the lightest entries, the solver does not tell points apart
            np.testing.assert_allclose(np.sqrt(h) * found, np.sqrt(h) * y.value, atol=1e-4)


@pytest.mark.parametrize("span", [0.0, 6.0, 24.0])
def test_no_point_of_the_ball_is_nearer_in_a_metric(span: float) -> None:
    """``<h (v - y), z - y> <= 0`` for the z of the ball that makes it largest."""
    rng = np.random.default_rng(11)
    for shape in ((8, 6), (300, 4), (3, 500)):
        for v in matrices(rng, *shape):
            h = 10.0 ** (-span * rng.random(shape))
            h[0, 0] = 1.0
            for part in (1e-3, 0.3, 0.9):
                radius = float(part * np.abs(v).max(1).sum())
                y = pg.L1InfBall(radius).project(v, metric=h)
                slope = h * (v - y)
                most = radius * np.abs(slope).sum(1).max()
                assert most - (slope * y).sum() <= 1e-12 * (h * v**2).sum() + 1e-12 * radius * np.abs(slope).max()
                assert np.abs(y).max(1).sum() <= radius * (1 + 1e-14)
                radius = float(part * np.linalg.norm(v, axis=1).sum())
                y = pg.GroupL1Ball(radius).project(v, metric=h)
                slope = h * (v - y)
                most = radius * np.linalg.norm(slope, axis=1).max()
                assert most - (slope * y).sum() <= 1e-12 * (h * v**2).sum() + 1e-12 * radius * np.abs(slope).max()
                assert np.linalg.norm(y, axis=1).sum() <= radius * (1 + 1e-14)


def test_a_heavy_entry_at_the_cap_up_to_rounding() -> None:
    # which counts with its weight, or Newton's method goes back and forth and stops
    v = np.array([[0.35738042, 1.3151038, 1.8016349], [-1.2083186, -0.00445413, 0.65647495]])
    v = np.vstack([v, [[-1.2883614, 0.39512205, 0.4298637], [-1.1841179, -0.6617026, 0.6960427]]])
    h = np.array([[2.7e-11, 1.2e-23, 1e-12], [6.2e-11, 1.3e-15, 1], [1, 1, 6.5e-19], [1.2e-12, 2e-13, 1]])
    exact = pg.L1InfBall(2.0).project(v, metric=h)
    found = pg.L1InfBall(2.0).project(v.astype("float32"), metric=h.astype("float32"))
    np.testing.assert_allclose(found, exact, atol=1e-6)


@pytest.mark.parametrize("kind", [pg.GroupL1Ball, pg.L1InfBall])
@pytest.mark.parametrize("span", [2.0, 24.0])
def test_a_small_ball_is_met_from_far_away_in_a_metric(kind: Any, span: float) -> None:
    rng = np.random.default_rng(12)
    v = (rng.uniform(0.5, 1, (3, 6, 30)) * [[[1e8]], [[3e37]], [[1e20]]]).astype("float32")
    h = (10.0 ** (-span * rng.random(v.shape))).astype("float32")
    for radius in (1.0, 0.0):
        y = kind(radius).project(v, metric=h).astype("float64")
        norms = np.abs(y).max(2) if kind is pg.L1InfBall else np.linalg.norm(y, axis=2)
        np.testing.assert_allclose(norms.sum(1), radius, rtol=1e-6)


def test_rows_of_one_entry_and_single_rows_in_a_metric() -> None:
    rng = np.random.default_rng(13)
    v, h = 3 * rng.standard_normal((20, 1)), 10.0 ** rng.uniform(-6, 0, (20, 1))
    for constraint in (pg.GroupL1Ball(2.0), pg.L1InfBall(2.0)):
        expected = pg.L1Ball(2.0, axis=0).project(v, metric=h)
        np.testing.assert_allclose(constraint.project(v, metric=h), expected, atol=1e-13)
    expected = pg.MaxNorm(2.0, axis=1).project(v.T, metric=h.T)
    np.testing.assert_allclose(pg.GroupL1Ball(2.0).project(v.T, metric=h.T), expected, atol=1e-13)
    np.testing.assert_allclose(pg.L1InfBall(2.0).project(v.T, metric=h.T), np.clip(v.T, -2, 2), atol=1e-13)


def test_a_point_that_is_not_nearest_has_no_metric() -> None:
    with pytest.raises(ValueError, match="its nearest point in a diagonal metric is not implemented"):
        pg.L1InfBall(1.0, "bilevel").project(np.ones((2, 2)), metric=1.0)


def test_no_point_of_the_ball_is_nearer() -> None:
    """``<v - y, z - y> <= 0`` for the z of the ball that makes it largest."""
    rng = np.random.default_rng(1)
    for v in matrices(rng, 8, 6):
        for radius in (1e-3, 0.7, 5.0):
            y = pg.L1InfBall(radius)(v)
            most = radius * np.abs(v - y).sum(1).max()  # z has its mass in one row, with the signs of v - y
            assert most - ((v - y) * y).sum() <= 1e-12 * (v**2).sum()
            y = pg.GroupL1Ball(radius)(v)
            most = radius * np.linalg.norm(v - y, axis=1).max()
            assert most - ((v - y) * y).sum() <= 1e-12 * (v**2).sum()


@pytest.mark.parametrize("shape", [(5, 20000), (20000, 5)], ids=str)
def test_large_matrices(framework: Framework, shape: tuple[int, int]) -> None:
    if framework.name in ("strict", "keras"):
        pytest.skip("slow, and NumPy and TensorFlow in other clothes")
    dtype = "float32"
    for values in matrices(np.random.default_rng(2), *shape)[::2]:
        x = framework.make(values, dtype)
        stored = framework.read(x)
        radius = float(0.1 * np.abs(stored).max(1).sum())
        y = framework.read(framework.project(pg.L1InfBall(radius), x))
        tol = pg.tolerance(dtype, values.size, 1.0)
        assert math.fsum(np.abs(y).max(1)) <= radius * (1 + tol)
        assert np.linalg.norm(y - l1_inf(stored, radius)) <= 4 * tol * np.linalg.norm(stored)
        radius = float(0.1 * np.linalg.norm(stored, axis=1).sum())
        y = framework.read(framework.project(pg.GroupL1Ball(radius), x))
        assert math.fsum(np.linalg.norm(y, axis=1)) <= radius * (1 + tol)


@pytest.mark.parametrize("shape", [(3, 90_000), (2, 400, 400)], ids=str)
@pytest.mark.parametrize("module", ["numpy", "torch"])
def test_matrices_beyond_the_cache(module: str, shape: tuple[int, ...]) -> None:
    """What is done row by row is what is done at once."""
    library = pytest.importorskip(module)
    x = np.random.default_rng(9).standard_normal(shape).astype(np.float32)
    y = np.asarray(pg.L1InfBall(50.0).project(library.asarray(x)))
    norms = np.asarray(pg.GroupL1Ball(50.0).project(library.asarray(x)))
    for of_y, of_norms, v in zip(*(a.reshape(-1, *shape[-2:]) for a in (y, norms, x)), strict=True):
        tol = 4 * pg.tolerance("float32", v.size, np.linalg.norm(v))
        assert np.linalg.norm(of_y - l1_inf(v.astype(np.float64), 50.0)) <= tol
        rows = np.linalg.norm(v.astype(np.float64), axis=1)
        kept = pg.L1Ball(50.0).project(rows)
        assert np.linalg.norm(of_norms - v * (kept / rows)[:, None]) <= tol


def test_rows_by_a_factor_are_what_they_are_where_one_may_differentiate() -> None:
    torch = pytest.importorskip("torch")
    from projgrad.torch import project_

    rng = np.random.default_rng(11)
    values = np.stack(matrices(rng, 6, 9))
    values[1] *= 1e-3
    values[2] *= 1e37 / np.abs(values[2]).max()
    values[3] *= 1e-30
    values[4, 2, 3] = np.nan
    for rate in (1.0, 0.3):
        constraint = pg.GroupL1Ball(1.5, rate=rate)
        x = torch.tensor(values, dtype=torch.float32)
        expected = constraint.project(x.clone().requires_grad_()).detach()
        y = constraint.project(x)
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-7, equal_nan=True)
        in_place = project_(x.clone(), constraint)
        torch.testing.assert_close(in_place, expected, rtol=1e-6, atol=1e-7, equal_nan=True)
        kept = [bool((y[i] == x[i]).all()) for i in range(5)]
        assert kept == [False, True, False, True, False]
        grown = x.clone().requires_grad_()
        np.testing.assert_allclose(constraint.violation(x), constraint.violation(grown).detach(), rtol=1e-6)
        assert constraint.contains(constraint.project(x[0])) == (rate == 1)


@pytest.mark.parametrize("kind", [pg.GroupL1Ball, pg.L1InfBall])
def test_a_small_ball_is_met_from_far_away(framework: Framework, kind: Any) -> None:
    values = np.random.default_rng(3).uniform(0.5, 1, (2, 6, 30)) * [[[1e8]], [[3e38]]]
    x = framework.make(values, "float32")
    y = framework.read(framework.project(kind(1.0), x))
    norms = np.abs(y).max(2) if kind is pg.L1InfBall else np.linalg.norm(y, axis=2)
    np.testing.assert_allclose(norms.sum(1), 1, rtol=1e-6)
    equal = framework.make(np.full((2, 6, 30), 1e8), "float32")
    y = framework.read(framework.project(kind(1.0), equal))
    np.testing.assert_allclose(y, 1 / 6 / (1 if kind is pg.L1InfBall else math.sqrt(30)), rtol=1e-6)


def test_whole_rows_become_zero(framework: Framework) -> None:
    values = np.array([[3.0, 4.0], [0.3, 0.4], [-4.0, 3.0], [0.0, 0.0]])
    x = framework.make(values, "float64")
    y = framework.read(framework.project(pg.GroupL1Ball(5.0), x))
    np.testing.assert_allclose(y, values * [[0.5], [0], [0.5], [0]], rtol=1e-12)
    assert not y[1].any()
    # sums 7, 0.7, 7: at the multiplier t the caps are (7 - t) / 2 as long as two entries are above
    y = framework.read(framework.project(pg.L1InfBall(5.0), x))
    np.testing.assert_allclose(y, [[2.5, 2.5], [0, 0], [-2.5, 2.5], [0, 0]], rtol=1e-12)
    assert not y[1].any()
    rng = np.random.default_rng(7)
    values = np.exp(rng.standard_normal((50, 8, 5)) + rng.standard_normal((50, 8, 1)))
    y = framework.read(framework.project(pg.L1InfBall(3.0), framework.make(values, "float32")))
    expected = np.stack([l1_inf(v, 3.0) for v in values])
    np.testing.assert_array_equal(y == 0, expected == 0)
    assert (expected == 0).any()
    nothing = framework.read(framework.project(pg.L1InfBall(0.0), x))
    assert not nothing.any()
    assert not framework.read(framework.project(pg.GroupL1Ball(0.0), x)).any()


def test_rows_of_one_entry_make_an_l1_ball_and_one_row_a_box_or_a_ball() -> None:
    rng = np.random.default_rng(4)
    v = 3 * rng.standard_normal((20, 1))
    for constraint in (pg.GroupL1Ball(2.0), pg.L1InfBall(2.0), pg.L1InfBall(2.0, "bilevel")):
        np.testing.assert_allclose(constraint(v), pg.L1Ball(2.0, axis=0)(v), atol=1e-14)
    np.testing.assert_allclose(pg.L1InfBall(2.0)(v.T), np.clip(v.T, -2, 2), atol=1e-14)
    np.testing.assert_allclose(pg.GroupL1Ball(2.0)(v.T), pg.MaxNorm(2.0, axis=1)(v.T), atol=1e-14)


def test_bilevel_is_in_the_ball_and_not_much_further_away(framework: Framework) -> None:
    rng = np.random.default_rng(5)
    ratios = []
    for m, n in ((2, 2), (5, 3), (4, 30)):
        for values in matrices(rng, m, n):
            x = framework.make(values, "float64")
            for radius in (0.1, 1.0, 3.0):
                quick = pg.L1InfBall(radius, "bilevel")
                y = framework.read(framework.project(quick, x))
                assert np.abs(y).max(1).sum() <= radius * (1 + 1e-14)
                near = np.linalg.norm(values - framework.read(framework.project(pg.L1InfBall(radius), x)))
                far = np.linalg.norm(values - y)
                assert near * (1 - 1e-12) <= far <= math.sqrt(n) * near * (1 + 1e-12)
                ratios.append(far / near if near else 1.0)
    assert max(ratios) > 1.01  # the name says that it is another point


def test_bilevel_can_be_almost_that_far_away() -> None:
    # one row of many equal entries, and as many rows of one entry, over which the exact caps are lowered
    n = 100
    v = np.zeros((2, n))
    v[0], v[1, 0] = 1.0, 1.0
    near, far = (np.linalg.norm(v - pg.L1InfBall(1.9, method)(v)) for method in ("exact", "bilevel"))
    assert far / near > 0.5 * math.sqrt(n)


def test_units_of_a_layer(framework: Framework) -> None:
    values = np.random.default_rng(6).standard_normal((3, 3, 4, 5))
    x = framework.make(values, "float64")
    rows = values.reshape(36, 5).T
    for kind in (pg.GroupL1Ball, pg.L1InfBall):
        expected = kind(1.5)(rows).T.reshape(values.shape)
        for constraint in (kind(1.5, axis=(3, (0, 1, 2))), kind(1.5, axis="incoming").bind(values.shape, (0, 1, 2))):
            np.testing.assert_allclose(framework.read(framework.project(constraint, x)), expected, atol=1e-14)
        assert kind(1.5, axis="incoming").bind((7, 4), (1,)).axis == (0, 1)
        with pytest.raises(ValueError, match="no unit"):
            kind(1.5, axis="incoming").bind((7, 4), "no unit here")
        with pytest.raises(ValueError, match="layer"):
            kind(1.5, axis="incoming").project(values)


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f.gradient], ids=repr)
@pytest.mark.parametrize("constraint", [pg.GroupL1Ball(), pg.L1InfBall(), pg.L1InfBall(1.0, "bilevel")], ids=repr)
def test_derivatives_are_finite_where_there_are_none(framework: Framework, constraint: pg.Constraint) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    assert framework.gradient is not None
    ties = np.array([[2.0, 2.0, -2.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    for values in (ties, ties * 1e-20, ties * 1e20, ties * 1e37, ties * 0.0):
        with framework.scope():
            x, w = framework.make(values, "float32"), framework.make(np.ones((3, 3)), "float32")
            assert np.isfinite(framework.read(framework.gradient(constraint.project, x, w))).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: pg.GroupL1Ball(-1.0), "radius"),
        (lambda: pg.GroupL1Ball(math.inf), "finite"),
        (lambda: pg.GroupL1Ball(1.0, axis=None), "not a pair"),
        (lambda: pg.GroupL1Ball(1.0, axis=(0, 1, 2)), "not a pair"),
        (lambda: pg.GroupL1Ball(1.0, axis=(0, 1)).project(np.ones(3)), "axis 1 does not exist"),
        (lambda: pg.GroupL1Ball(1.0, rate=0), "rate"),
        (lambda: pg.L1InfBall(-1.0), "radius"),
        (lambda: pg.L1InfBall(math.nan), "radius"),
        (lambda: pg.L1InfBall(1.0, "quick"), "quick"),
        (lambda: pg.L1InfBall(1.0, cast(Any, None)), "method"),
        (lambda: pg.L1InfBall(1.0, axis=(1, -1)).project(np.ones((2, 3))), "both of the pair"),
    ],
)
def test_what_cannot_be_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        wrong()


def test_groups_in_the_ball_stay_bit_for_bit(framework: Framework, dtype: str) -> None:
    values = np.array([[0.1, -0.2, -0.0], [0.0, 0.3, -0.3]])
    x = framework.make(values, dtype)
    for constraint in (pg.GroupL1Ball(), pg.L1InfBall(), pg.L1InfBall(1.0, "bilevel")):
        assert same(framework.read(framework.project(constraint, x)), framework.read(x))
