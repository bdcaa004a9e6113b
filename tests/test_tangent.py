"""Directions that do not leave a set: against the definition of the tangent cone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import projgrad as pg
from tests.frameworks import FRAMEWORKS, IN_PLACE, Framework

EIGHT = np.linspace(-1, 1, 8)
SETS: list[pg.Constraint] = [
    pg.UnitNorm(axis=1),
    pg.MaxNorm(1.0, axis=1),
    pg.MinMaxNorm(0.5, 1.0, axis=1),
    pg.L2Ball(1.0, 0.25),
    pg.L2Ball(1.0),
    pg.NonNeg(),
    pg.NonPos(),
    pg.Box(-0.5, 0.25),
    pg.LInfBall(0.5),
    pg.Simplex(),
    pg.CappedSimplex(1.0, 0.0, 0.3),
    pg.SumTo(1.0),
    pg.ZeroMean(),
    pg.Hyperplane(EIGHT, 0.5),
    pg.Affine(np.random.default_rng(1).standard_normal((2, 8)), [1.0, 2.0]),
    pg.Orthogonal(),
]
sets = pytest.mark.parametrize("constraint", SETS, ids=str)


def cases(constraint: pg.Constraint, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of the set, most of them on its boundary, and directions."""
    rng = np.random.default_rng(seed)
    return constraint.project(2 * rng.standard_normal((5, 8))), rng.standard_normal((5, 8))


@sets
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_definition(constraint: pg.Constraint, seed: int) -> None:
    x, d = cases(constraint, seed)
    found = constraint.tangent(x, d)
    # the derivative of the projection along d, from the side of d
    t = 1e-7
    np.testing.assert_allclose(found, (constraint.project(x + t * d) - x) / t, atol=2e-6)
    # a cone: what is left is at right angles, and nothing more is to be removed
    np.testing.assert_allclose(((d - found) * found).sum(), 0, atol=1e-10)
    np.testing.assert_allclose(constraint.tangent(x, found), found, atol=1e-10)
    np.testing.assert_allclose(constraint.tangent(x, 3 * d), 3 * found, atol=1e-10)


def test_a_sphere_loses_all_along_the_point() -> None:
    rng = np.random.default_rng(0)
    x, d = rng.standard_normal((64, 256)).astype(np.float32), rng.standard_normal((64, 256)).astype(np.float32)
    x = pg.UnitNorm(axis=1).project(x)
    d = d + 1e3 * x  # nearly all of it
    found = pg.UnitNorm(axis=1).tangent(x, d)
    cosine = (found * x).sum(1) / np.linalg.norm(found, axis=1)
    assert np.abs(cosine).max() < 1e-6


def test_only_outwards_and_only_at_the_boundary() -> None:
    x = np.asarray([[0.6, 0.8], [0.3, 0.4]])
    ball = pg.MaxNorm(1.0, axis=1)
    np.testing.assert_allclose(ball.tangent(x, x), [[0, 0], [0.3, 0.4]], atol=1e-15)
    np.testing.assert_array_equal(ball.tangent(x, -x), -x)
    shell = pg.MinMaxNorm(0.5, 1.0, axis=1)
    np.testing.assert_allclose(shell.tangent(x, -x), [[-0.6, -0.8], [0, 0]], atol=1e-15)
    np.testing.assert_array_equal(pg.MaxNorm(0.0, axis=1).tangent(0 * x, x), 0 * x)
    np.testing.assert_array_equal(
        pg.NonNeg().tangent(np.asarray([0.0, 0.0, 1.0]), np.asarray([-1.0, 1, -1])), [0, 1, -1]
    )


def test_complex_spheres() -> None:
    x = np.asarray([3 + 4j, 0j]) / 5
    found = pg.UnitNorm(axis=0).tangent(x, np.asarray([1 + 1j, 1j]))
    np.testing.assert_allclose((np.conj(x) * found).real.sum(), 0, atol=1e-15)
    np.testing.assert_allclose(found[1], 1j)


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f is not IN_PLACE], indirect=True)
@sets
def test_all_frameworks(framework: Framework, constraint: pg.Constraint) -> None:
    x, d = cases(constraint, 3)
    found = framework.read(constraint.tangent(framework.make(x, "float64"), framework.make(d, "float64")))
    np.testing.assert_allclose(found, constraint.tangent(x, d), atol=1e-12)
    low = constraint.tangent(framework.make(x, "float32"), framework.make(d, "float32"))
    assert "float32" in str(low.dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_low_precision_the_boundary_is_found(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    for constraint in (pg.MaxNorm(0.3, axis=1), pg.Box(-0.1, 0.1), pg.UnitNorm(axis=1), pg.L2Ball(0.3, axis=1)):
        inside: Any = constraint.project(x)
        left = constraint.tangent(inside, inside).float().norm() / inside.float().norm()
        assert left < 0.02 if not isinstance(constraint, pg.Box) else left < 0.5


def test_errors() -> None:
    with pytest.raises(ValueError, match="tangent directions are not implemented"):
        pg.Rank(1).tangent(np.eye(3), np.eye(3))
    with pytest.raises(TypeError, match="the direction is a .*, but the point a ndarray"):
        pg.NonNeg().tangent(np.ones(2), pytest.importorskip("torch").ones(2))
    with pytest.raises(ValueError, match=r"direction has the shape \(2,\), and the point \(3,\)"):
        pg.NonNeg().tangent(np.ones(3), np.ones(2))


def test_short_directions_of_affine_sets_stay_finite() -> None:
    constraint = pg.SumTo(100.0, axis=1)
    x = constraint.project(np.ones((2, 8), np.float32))
    for size in (1e-30, 1e-37, 1e-38, 1e-40, 0.0):
        assert np.isfinite(constraint.tangent(x, np.full((2, 8), size, np.float32))).all()
