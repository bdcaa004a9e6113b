"""Sums, hyperplanes and halfspaces: what is special to them; the promises of all sets are in `test_catalogue.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

import projgrad as pg
from tests.frameworks import Framework


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: pg.SumTo(math.inf), "finite"),
        (lambda: pg.SumTo(cast(Any, "1")), "not a number"),
        (lambda: pg.ZeroMean(axis=()), "axis"),
        (lambda: pg.ZeroMean(rate=2.0), "rate"),
        (lambda: pg.Hyperplane([0.0, 0.0]), "not 0"),
        (lambda: pg.Hyperplane([]), "not 0"),
        (lambda: pg.Hyperplane([1.0, math.inf]), "finite"),
        (lambda: pg.Hyperplane([1.0, math.nan]), "NaN"),
        (lambda: pg.Hyperplane(1.0), "1 dimension"),
        (lambda: pg.Hyperplane([[1.0, 2.0]]), "1 dimension"),
        (lambda: pg.Hyperplane([1.0], offset=math.nan), "offset"),
        (lambda: pg.Halfspace([0.0]), "Halfspace"),
        (lambda: pg.Halfspace([1.0], offset=math.inf), "finite"),
        (lambda: pg.Halfspace([1.0, 2.0]).project(np.zeros((2, 3))), "normal has 2 entries, a group 3"),
        (lambda: pg.Hyperplane([1.0, 2.0]).bind((2, 3), (1,)), "normal has 2 entries, a group 3"),
    ],
)
def test_wrong_arguments_are_refused(wrong: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        wrong()


def test_equivalences(framework: Framework) -> None:
    x = framework.make(np.random.default_rng(0).standard_normal((5, 12)), "float64")
    ones, slope = np.ones(12), np.arange(12.0)
    for one, other in (
        (pg.ZeroMean(), pg.SumTo(0.0)),
        (pg.Hyperplane(ones, 3.0), pg.SumTo(3.0)),
        (pg.Hyperplane(slope, 1.0), pg.Hyperplane(-slope, -1.0)),
        (pg.Hyperplane(1e-200 * slope, 1e-200), pg.Hyperplane(slope, 1.0)),
        (pg.Halfspace(1e200 * slope, 1e200), pg.Halfspace(slope, 1.0)),
        (pg.Halfspace(slope, 1e3), pg.Box(-9.0, 9.0)),  # all are inside
        (pg.Halfspace(slope, -1e3), pg.Hyperplane(slope, -1e3)),  # all are outside
    ):
        found, expected = (framework.read(framework.project(c, x)) for c in (one, other))
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_several_axes_take_the_normal_in_row_major_order() -> None:
    x, normal = np.random.default_rng(0).standard_normal((2, 3, 4)), np.arange(1.0, 9.0)
    y = pg.Hyperplane(normal, 1.0, axis=(0, 2)).project(x)
    np.testing.assert_allclose(np.einsum("ij,ikj->k", normal.reshape(2, 4), y), 1.0)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_normals_of_any_size_in_single_precision(framework: Framework, size: float) -> None:
    rng = np.random.default_rng(0)
    normal, x = rng.standard_normal(30), rng.standard_normal((1, 30))
    expected = x[0] - (normal @ x[0] - 2.0) / (normal @ normal) * normal
    for constraint in (pg.Hyperplane(size * normal, 2 * size), pg.Halfspace(-size * normal, -2 * size)):
        found = framework.read(framework.project(constraint, framework.make(x, "float32")))[0]
        np.testing.assert_allclose(found, expected, atol=3e-6)


def test_a_halfspace_leaves_what_is_inside_bit_for_bit(framework: Framework) -> None:
    x = framework.make(np.array([[1e30, -1e-30, 3.0], [-1.0, 1e-37, 0.1]]), "float32")
    inside = pg.Halfspace([-1.0, 0.0, 0.0], 2.0)
    np.testing.assert_array_equal(framework.read(framework.project(inside, x)), framework.read(x))


def test_the_largest_numbers_do_not_overflow(framework: Framework) -> None:
    x = framework.make(np.array([[3e38, 3e38, 3e38, 3e38], [3e38, -3e38, 3e38, -3e38]]), "float32")
    for constraint in (pg.ZeroMean(), pg.Hyperplane([1.0, 1.0, 1.0, 1.0])):
        found = framework.read(framework.project(constraint, x))
        np.testing.assert_allclose(found, [[0.0] * 4, [3e38, -3e38, 3e38, -3e38]], rtol=1e-6, atol=1e32)


def test_the_smallest_products_are_not_lost(framework: Framework) -> None:
    x = framework.make(np.full((1, 10_000), 1e-36), "float32")  # times a unit normal, less than the smallest number
    found = framework.read(framework.project(pg.Hyperplane(np.ones(10_000)), x))
    np.testing.assert_allclose(found, 0.0, atol=1e-38)


def test_what_is_far_along_the_normal_still_comes_onto_the_plane(framework: Framework) -> None:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(30)
    x = framework.make(1e6 * normal + rng.standard_normal((20, 30)), "float32")
    for constraint in (pg.Hyperplane(normal, 0.5), pg.Halfspace(normal, 0.5)):
        for y in framework.read(framework.project(constraint, x)):
            off = abs(math.fsum(normal * y) - 0.5) / np.linalg.norm(normal)
            assert off <= pg.tolerance("float32", 30, np.linalg.norm(y))


def test_the_mean_of_many_entries_is_right_to_the_last_digits(framework: Framework) -> None:
    rng = np.random.default_rng(0)
    size = 100_000
    x = rng.standard_normal((size, 1)) + 1e4
    normal = rng.uniform(0.5, 1.5, size)
    for constraint, weights in ((pg.ZeroMean(axis=0), np.ones(size)), (pg.Hyperplane(normal, axis=0), normal)):
        y = framework.read(framework.project(constraint, framework.make(x, "float32")))[:, 0]
        off = abs(math.fsum(y * weights)) / np.linalg.norm(weights)
        assert off <= pg.tolerance("float32", size, np.linalg.norm(y))


def test_optax_agrees() -> None:
    jax = pytest.importorskip("jax")
    projections = pytest.importorskip("optax.projections")
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for _ in range(5):
            x, normal = rng.standard_normal((2, 8))
            given = [jax.numpy.asarray(v) for v in (x, normal)]
            for constraint, other in (
                (pg.Hyperplane(normal, 0.5), projections.projection_hyperplane(*given, 0.5)),
                (pg.Halfspace(normal, 0.5), projections.projection_halfspace(*given, 0.5)),
            ):
                np.testing.assert_allclose(constraint.project(x), other, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.9, 0.96, 0.98, 1 - 1e-6, 1.0])
@pytest.mark.parametrize("n", [3, 10, 1000])
def test_groups_along_the_normal_end_up_on_the_plane_in_single_precision(
    framework: Framework, n: int, share: float
) -> None:
    rng = np.random.default_rng(n)
    normal, x = rng.standard_normal(n), rng.standard_normal((40, n))
    unit = normal / np.linalg.norm(normal)
    x = x - np.outer(x @ unit, unit)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x = (share * unit + math.sqrt(1 - share**2) * x) * 2.0 ** rng.integers(-20, 20, (40, 1))
    x = x.astype(np.float32).astype(np.float64)
    for offset in (0.0, 1.0):
        expected = x - np.outer(x @ normal - offset, normal) / (normal @ normal)
        for constraint, to in (
            (pg.Hyperplane(normal, offset), expected),
            (pg.Halfspace(normal, offset), np.where(x @ normal[:, None] > offset, expected, x)),
        ):
            once = framework.project(constraint, framework.make(x, "float32"))
            size = np.linalg.norm(x, axis=1, keepdims=True) + abs(offset) / np.linalg.norm(normal)
            assert np.all(np.abs(framework.read(once) - to) <= 2e-6 * size)
            np.testing.assert_array_equal(framework.read(framework.project(constraint, once)), framework.read(once))


def test_one_group_of_another_size_changes_nothing_for_the_others(framework: Framework) -> None:
    normal, x = np.arange(1.0, 8.0), np.random.default_rng(0).standard_normal((6, 7))
    odd = x.copy()
    odd[0], odd[2, 3], odd[4] = 1e-30, math.nan, 1e30
    for constraint in (pg.Hyperplane(normal, 0.5), pg.Halfspace(-normal, -0.5)):
        plain, mixed = (framework.read(framework.project(constraint, framework.make(v, "float32"))) for v in (x, odd))
        np.testing.assert_allclose(mixed[1::2], plain[1::2], rtol=1e-5, atol=1e-6)
        assert np.all(np.isnan(mixed[2]))
        np.testing.assert_allclose(mixed[0] @ normal, 0.5, atol=1e-6)
        away = mixed[4] @ normal
        assert abs(away) <= 1e25 if isinstance(constraint, pg.Hyperplane) else away >= 0
