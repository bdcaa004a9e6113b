"""Matrices with orthonormal rows or columns: what is special about them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

import projgrad as pg
from projgrad.sets.iterations import error
from tests.cases.spectral import singular
from tests.frameworks import Framework


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="'svd', 'newton_schulz'"):
        pg.Orthogonal(method="cayley")
    with pytest.raises(ValueError, match="axis=1 is not a pair"):
        pg.Orthogonal(axis=1)


@pytest.mark.parametrize("shape", [(5, 5), (7, 3), (3, 7), (40, 30)])
def test_it_is_the_polar_factor(framework: Framework, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal(shape)
    found = framework.read(framework.project(pg.Orthogonal(), framework.make(x, "float64")))
    wide = shape[0] < shape[1]
    a = x.T if wide else x
    expected = a @ np.linalg.inv(linalg.sqrtm(a.T @ a).real)
    np.testing.assert_allclose(found, expected.T if wide else expected, atol=1e-11)
    np.testing.assert_allclose(found, linalg.polar(x)[0], atol=1e-12)


def test_two_by_two_by_brute_force() -> None:
    """All rotations and reflections of the plane."""
    angles = np.linspace(0, 2 * np.pi, 100_001)
    c, s = np.cos(angles), np.sin(angles)
    every = np.concatenate([np.stack([c, -s, s, c], 1), np.stack([c, s, s, -c], 1)])
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal((2, 2))
        best = np.linalg.norm(every - x.reshape(-1), axis=1).min()
        np.testing.assert_allclose(np.linalg.norm(pg.Orthogonal().project(x) - x), best, rtol=1e-8)


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5), (1, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dependent_columns_still_get_a_nearest_point(framework: Framework, shape: tuple[int, int], dtype: str) -> None:
    rng = np.random.default_rng(1)
    rank_one = np.outer(rng.standard_normal(shape[0]), rng.standard_normal(shape[1]))
    for values in (np.zeros(shape), np.ones(shape), rank_one, 1e-30 * rank_one, 1e30 * rank_one):
        x = framework.make(values, dtype)
        y = framework.project(pg.Orthogonal(), x)
        found, group = framework.read(y), framework.read(x)
        np.testing.assert_allclose(singular(found), 1, atol=30 * np.finfo(dtype).eps)
        size = np.abs(group).max() or 1.0  # <x, y> is the sum of the singular values of x, the most that it can be
        np.testing.assert_allclose((found * (group / size)).sum(), singular(group / size).sum(), rtol=1e-5, atol=1e-5)
        assert np.array_equal(framework.read(framework.project(pg.Orthogonal(), y)), found)


@pytest.mark.parametrize("steps", [8, 12, 20])
@pytest.mark.parametrize("shape", [(20, 20), (30, 12), (12, 30)])
def test_the_error_of_the_iteration(framework: Framework, shape: tuple[int, int], steps: int) -> None:
    rng = np.random.default_rng(2)
    k = min(shape)
    u, v = (np.linalg.qr(rng.standard_normal((n, k)))[0] for n in shape)
    method = pg.Orthogonal(method="newton_schulz", steps=steps)
    for least in (1.02 * error(steps), 0.5):
        s = np.geomspace(1.0, least, k)
        found = framework.read(framework.project(method, framework.make((u * s) @ v.T * 1e3, "float64")))
        assert np.linalg.norm(found - u @ v.T, 2) <= error(steps) + 1e-11
    low = framework.read(framework.project(method, framework.make((u * np.geomspace(1.0, 1e-12, k)) @ v.T, "float64")))
    assert (singular(low) <= 1 + 1e-11).all()
    assert not framework.read(framework.project(method, framework.make(np.zeros(shape), "float64"))).any()
