"""Sets given by singular values: what is special about them."""

from __future__ import annotations

import math

import numpy as np
import pytest

import projgrad as pg
from projgrad.sets.iterations import error
from tests.cases.spectral import singular
from tests.frameworks import FRAMEWORKS, Framework

gradients = pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f.gradient], ids=repr)
SETS = (
    pg.SpectralNorm(0.5),
    pg.SpectralNorm(0.5, method="newton_schulz", steps=3),
    pg.SpectralNorm(0.5, method="gram", steps=3),
    pg.NuclearNorm(0.5),
    pg.Rank(1),
    pg.Orthogonal(),
    pg.Orthogonal(method="newton_schulz", steps=3),
    pg.PositiveSemidefinite(),
    pg.Spectraplex(),
    pg.Correlation(),
)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: pg.SpectralNorm(-1.0), ValueError, "max_value=-1.0 is a norm, so it must be at least 0"),
        (lambda: pg.SpectralNorm(math.inf), ValueError, "finite"),
        (lambda: pg.SpectralNorm(method="power"), ValueError, "'svd', 'newton_schulz', 'gram'"),
        (lambda: pg.SpectralNorm(steps=0), ValueError, "steps=0 must be at least 1"),
        (lambda: pg.SpectralNorm(axis=0), ValueError, "axis=0 is not a pair"),
        (lambda: pg.SpectralNorm(rate=2.0), ValueError, "rate=2.0"),
        (lambda: pg.NuclearNorm(-1.0), ValueError, "radius=-1.0 is a norm"),
        (lambda: pg.Rank(-1), ValueError, "k=-1 must be at least 0"),
        (lambda: pg.Rank(1.5), TypeError, "k=1.5 is not an int"),
        (lambda: pg.SpectralNorm(axis=(0, (0, 1))).project(np.ones((2, 2))), ValueError, "in both of the pair"),
        (lambda: pg.SpectralNorm().project(np.ones(2)), ValueError, "axis -2 does not exist"),
    ],
)
def test_wrong_arguments_are_refused(make, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize("shape", [(30, 30), (40, 25), (12, 60), (1, 9), (9, 1)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_optimality_of_clipping(shape: tuple[int, int], scale: float) -> None:
    """y is nearest to x in the ball exactly if <x - y, z> is largest at z = y: c times the nuclear norm of x - y."""
    x = np.random.default_rng(0).standard_normal((3, *shape)) * scale
    for group, y in zip(x, pg.SpectralNorm(0.7).project(x), strict=True):
        away = group - y
        assert singular(y)[0] <= 0.7 * (1 + 1e-14)
        np.testing.assert_allclose((away * y).sum(), 0.7 * singular(away).sum(), rtol=1e-12, atol=1e-13 * scale)


@pytest.mark.parametrize("shape", [(30, 30), (40, 25), (12, 60)])
def test_optimality_of_the_nuclear_ball(shape: tuple[int, int]) -> None:
    """<x - y, z> is largest at z = y: the radius times the largest singular value of x - y."""
    x = np.random.default_rng(0).standard_normal((3, *shape))
    for group, y in zip(x, pg.NuclearNorm(3.0).project(x), strict=True):
        away = group - y
        np.testing.assert_allclose(singular(y).sum(), 3.0, rtol=1e-13)
        np.testing.assert_allclose((away * y).sum(), 3.0 * singular(away)[0], rtol=1e-12)


@pytest.mark.parametrize("norm", ["spectral", "nuclear"])
def test_a_cone_solver_agrees(norm: str) -> None:
    cvxpy = pytest.importorskip("cvxpy")
    x = np.random.default_rng(1).standard_normal((3, 4))
    y = cvxpy.Variable(x.shape)
    limit = cvxpy.sigma_max(y) if norm == "spectral" else cvxpy.normNuc(y)
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(y - x)), [limit <= 0.9]).solve(solver="SCS", eps=1e-9)
    found = (pg.SpectralNorm(0.9) if norm == "spectral" else pg.NuclearNorm(0.9)).project(x)
    np.testing.assert_allclose(found, y.value, atol=1e-6)


def test_rank_one_by_brute_force() -> None:
    """Of all rank-one matrices of two rows, the best multiple of every direction."""
    x = np.random.default_rng(2).standard_normal((2, 2))
    angles = np.linspace(0, np.pi, 100_001)
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    best = np.sqrt((x * x).sum() - ((directions @ x) ** 2).sum(1).max())
    np.testing.assert_allclose(np.linalg.norm(x - pg.Rank(1).project(x)), best, rtol=1e-8)


def test_equivalences() -> None:
    x = np.random.default_rng(3).standard_normal((4, 1, 5))
    np.testing.assert_allclose(pg.SpectralNorm(0.5).project(x), pg.MaxNorm(0.5, axis=-1).project(x), rtol=1e-13)
    np.testing.assert_allclose(pg.NuclearNorm(0.5).project(x), pg.MaxNorm(0.5, axis=-1).project(x), rtol=1e-13)
    np.testing.assert_allclose(pg.Orthogonal().project(x), pg.UnitNorm(axis=-1).project(x), rtol=1e-13)
    diagonal = np.diag([3.0, -1.0, 0.5])
    np.testing.assert_allclose(pg.NuclearNorm().project(diagonal), np.diag([1.0, 0, 0]), atol=1e-15)
    assert not pg.SpectralNorm(0.0).project(x).any()
    assert not pg.Rank(0).project(x).any()
    assert np.array_equal(pg.Rank(3).project(diagonal), diagonal)


def test_a_kernel_is_reshaped() -> None:
    kernel = np.random.default_rng(4).standard_normal((6, 3, 2, 2))
    found = pg.SpectralNorm(1.0, axis=(0, (1, 2, 3))).project(kernel)
    expected = pg.SpectralNorm(1.0).project(kernel.reshape(6, 12)).reshape(kernel.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_change_in_one_direction_leaves_the_digits_of_the_others() -> None:
    x = np.diag(np.array([1.0 + 2.0**-20, 2.0**-30, 2.0**-40], np.float32))
    y = pg.SpectralNorm(1.0).project(x)
    assert y[1, 1] == x[1, 1]
    assert y[2, 2] == x[2, 2]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_matrices_are_accurate(framework: Framework, dtype: str) -> None:
    x = framework.make(np.random.default_rng(5).standard_normal((150, 100)), dtype)
    for constraint in (pg.SpectralNorm(8.0), pg.NuclearNorm(30.0), pg.Rank(10), pg.Orthogonal()):
        y = framework.project(constraint, x)
        assert constraint.contains(y)
        assert np.array_equal(framework.read(framework.project(constraint, y)), framework.read(y))
    assert singular(framework.read(framework.project(pg.SpectralNorm(8.0), x)))[0] <= 8 * (
        1 + 200 * np.finfo(dtype).eps
    )


@gradients
@pytest.mark.parametrize("constraint", SETS, ids=repr)
def test_derivatives_are_finite_where_values_are_equal(framework: Framework, constraint: pg.Constraint) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    assert framework.gradient is not None
    rng = np.random.default_rng(6)
    turn = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    points = np.stack([np.zeros((4, 4)), np.eye(4), -np.eye(4), turn, np.ones((4, 4)), np.diag([1.0, 1, 0, 0])])
    for dtype in ("float32", "float64"):
        for scale in (1.0, 1e-30, 1e30):
            with framework.scope():
                x = framework.make(points * scale, dtype)
                w = framework.make(rng.standard_normal(points.shape), dtype)
                assert np.isfinite(framework.read(framework.gradient(constraint.project, x, w))).all()


@gradients
def test_derivatives_at_equal_singular_values(framework: Framework) -> None:
    """Where the nearest point is smooth although the decomposition is not."""
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    assert framework.gradient is not None
    rng = np.random.default_rng(7)
    turn = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    weights = rng.standard_normal((4, 4))
    for constraint, x in (
        (pg.SpectralNorm(0.5), turn),
        (pg.SpectralNorm(2.0), turn),
        (pg.NuclearNorm(1.0), turn),
        (pg.Rank(2), turn @ np.diag([2.0, 2.0, 1.0, 1.0]) @ turn),
        (pg.Orthogonal(), 3 * turn),
        (pg.PositiveSemidefinite(), turn @ np.diag([1.0, 1.0, -1.0, -1.0]) @ turn.T),
        (pg.Spectraplex(), turn @ np.diag([1.0, 1.0, -1.0, -1.0]) @ turn.T),
        (pg.Correlation(), np.eye(4) * 2 - 1),
    ):
        direction = rng.standard_normal((4, 4))
        ends = [(constraint.project(x + s * 1e-6 * direction) * weights).sum() for s in (-1, 1)]
        with framework.scope():
            found = framework.gradient(
                constraint.project, framework.make(x, "float64"), framework.make(weights, "float64")
            )
            slope = (framework.read(found) * direction).sum()
        np.testing.assert_allclose(slope, (ends[1] - ends[0]) / 2e-6, rtol=1e-6, atol=1e-8)


@gradients
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 1), (1, 4)])
def test_derivatives_of_tall_and_wide_matrices(framework: Framework, shape: tuple[int, int]) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    assert framework.gradient is not None
    rng = np.random.default_rng(8)
    x, direction, weights = (rng.standard_normal(shape) for _ in range(3))
    for constraint in (pg.SpectralNorm(0.5), pg.NuclearNorm(2.0), pg.Rank(1), pg.Orthogonal()):
        ends = [(constraint.project(x + s * 1e-6 * direction) * weights).sum() for s in (-1, 1)]
        with framework.scope():
            found = framework.gradient(
                constraint.project, framework.make(x, "float64"), framework.make(weights, "float64")
            )
            slope = (framework.read(found) * direction).sum()
        np.testing.assert_allclose(slope, (ends[1] - ends[0]) / 2e-6, rtol=1e-6, atol=1e-8)


# -- approximate methods


@pytest.mark.parametrize("steps", [8, 12, 16, 20])
def test_the_stated_errors(steps: int) -> None:
    stated = {8: 3e-3, 12: 1.1e-4, 16: 3.6e-6, 20: 1.1e-7}
    assert 0.9 * stated[steps] <= error(steps) <= stated[steps]


@pytest.mark.parametrize("steps", [8, 12, 20])
@pytest.mark.parametrize("shape", [(20, 20), (30, 12), (12, 30), (1, 5)])
def test_the_error_of_clipping_by_products(framework: Framework, shape: tuple[int, int], steps: int) -> None:
    rng = np.random.default_rng(8)
    k = min(shape)
    u, v = (np.linalg.qr(rng.standard_normal((n, k)))[0] for n in shape)
    for c in (0.01, 0.5, 0.99):
        s = np.concatenate([[1.0], c * (1 + np.geomspace(1e-6, 0.5, k - 1) * rng.choice([-1, 1], k - 1))])
        x = (u * s) @ v.T
        method = pg.SpectralNorm(c, method="newton_schulz", steps=steps)
        found = framework.read(framework.project(method, framework.make(x, "float64")))
        assert np.linalg.norm(found - (u * np.minimum(s, c)) @ v.T, 2) <= error(steps) + 1e-12
    inside = framework.make(0.5 * x, "float64")
    assert np.array_equal(
        framework.read(framework.project(pg.SpectralNorm(2.0, method="newton_schulz"), inside)), 0.5 * x
    )


@pytest.mark.parametrize("steps", [2, 6, 12])
def test_the_error_of_scaling_by_the_gram_matrix(framework: Framework, steps: int) -> None:
    rng = np.random.default_rng(9)
    for x in (rng.standard_normal((30, 12)) * 1e3, np.eye(12), rng.standard_normal((1, 5)), np.ones((5, 8)) * 1e-3):
        k = min(x.shape)
        method = pg.SpectralNorm(1e-4, method="gram", steps=steps)
        y = framework.project(method, framework.make(x, "float64"))
        found = framework.read(y)
        assert 1e-4 * k ** (-1 / 2 ** (steps + 2)) * (1 - 1e-12) <= singular(found)[0] <= 1e-4 * (1 + 1e-12)
        np.testing.assert_allclose(found / np.linalg.norm(found), x / np.linalg.norm(x), atol=1e-13)
        assert np.array_equal(framework.read(framework.project(method, y)), found)
    assert k ** (1 / 2 ** (steps + 2)) <= {2: 1.12, 6: 1.007, 12: 1.0005}[steps]


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f.compile], ids=repr)
def test_approximate_methods_compile(framework: Framework) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    assert framework.compile is not None
    values = np.random.default_rng(10).standard_normal((2, 4, 3))
    for constraint in SETS:
        if getattr(constraint, "method", "svd") == "svd":
            continue
        with framework.scope():
            x = framework.make(values, "float64")
            found = framework.read(framework.compile(constraint.project)(x))
            np.testing.assert_allclose(found, framework.read(constraint.project(x)), rtol=1e-9, atol=1e-12)
