"""Balls with a centre: what is special to them; the promises of all sets are in `test_catalogue.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

import projgrad as pg
from tests.frameworks import FRAMEWORKS, Framework, same


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: pg.L2Ball(-1.0), "at least 0"),
        (lambda: pg.L2Ball(math.nan), "radius"),
        (lambda: pg.L2Ball(math.inf), "finite"),
        (lambda: pg.L2Ball(1.0, math.inf), "center must be finite"),
        (lambda: pg.L2Ball(1.0, cast(Any, "middle")), "center"),
        (lambda: pg.L2Ball(1.0, [[0.0, 1.0]]), "one dimension"),
        (lambda: pg.L2Ball(1.0, [0.0, 1.0]).project(np.zeros((2, 3))), "does not broadcast"),
        (lambda: pg.L2Ball(1.0, [0.0, 1.0]).bind((2, 3), (1,)), "does not broadcast"),
        (lambda: pg.L2Ball(1.0, axis=()), "axis"),
        (lambda: pg.LInfBall(-1.0), "at least 0"),
        (lambda: pg.LInfBall(1.0, math.nan), "NaN"),
        (lambda: pg.LInfBall(1.0, [0.0, 1.0]).project(np.zeros((2, 3))), "does not broadcast"),
        (lambda: pg.LInfBall(1.0, rate=0), "rate"),
    ],
)
def test_wrong_arguments_are_refused(wrong: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        wrong()


def test_without_a_centre_it_is_the_max_norm(framework: Framework, dtype: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((6, 5)) * np.array([[0.0], [1e-6], [0.1], [1.0], [10.0], [1e4]])
    x = framework.make(values, dtype)
    for radius in (0.0, 1.0, 30.0):
        one, other = pg.L2Ball(radius), pg.MaxNorm(radius, axis=-1)
        assert same(framework.read(framework.project(one, x)), framework.read(framework.project(other, x)))
        np.testing.assert_array_equal(framework.read(one.violation(x)), framework.read(other.violation(x)))
        # a centre of zeros, given one by one, is not seen to be none
        listed = framework.read(framework.project(pg.L2Ball(radius, [0.0] * 5), x))
        np.testing.assert_allclose(listed, framework.read(framework.project(other, x)), rtol=1e-2, atol=1e-30)


def test_a_ball_moves_with_its_centre(framework: Framework) -> None:
    rng = np.random.default_rng(0)
    x, center = 3 * rng.standard_normal((4, 6)), rng.standard_normal(6)
    y = framework.read(framework.project(pg.L2Ball(1.5, center), framework.make(x + center, "float64")))
    np.testing.assert_allclose(y - center, pg.MaxNorm(1.5, axis=-1).project(x), atol=1e-12)
    far = framework.read(framework.project(pg.L2Ball(2.0, 1e4), framework.make(x + 1e4, "float32")))
    assert (np.linalg.norm(far - 1e4, axis=-1) <= 2 + pg.tolerance("float32", 6, 1e4 * math.sqrt(6))).all()


def test_large_groups_are_not_lost(framework: Framework) -> None:
    """optax's ball turns these into zeros, as their squares overflow."""
    x = framework.make(np.array([[3e20, 4e20], [3e-20, 4e-20]]), "float32")
    for constraint in (pg.L2Ball(1.0), pg.L2Ball(1.0, [0.0, 0.0])):
        found = framework.read(framework.project(constraint, x))
        np.testing.assert_allclose(found, [[0.6, 0.8], [3e-20, 4e-20]], rtol=1e-6)


BALLS_AND_BOXES = [
    (pg.LInfBall(0.5), pg.Box(-0.5, 0.5)),
    (pg.LInfBall(0.7, -0.1), pg.Box(-0.1 - 0.7, -0.1 + 0.7)),
    (pg.LInfBall(0.0, 2.0), pg.Box(2.0, 2.0)),
    (pg.LInfBall(1e6, 0.0), pg.Box(-1e6, 1e6)),
    (pg.LInfBall(0.25, [0.0, 0.5, -1.0]), pg.Box([-0.25, 0.25, -1.25], [0.25, 0.75, -0.75])),
    (pg.LInfBall(0.5, [[1.0], [2.0]], rate=0.5), pg.Box([[0.5], [1.5]], [[1.5], [2.5]], rate=0.5)),
    (pg.LInfBall(1e5, [0.0, 0.0, 5.0]), pg.Box(-1e5, 1e5)),  # beyond the largest number of float16
]


@pytest.mark.parametrize(("ball", "box"), BALLS_AND_BOXES, ids=str)
def test_the_l_infinity_ball_is_a_box(framework: Framework, dtype: str, ball: pg.LInfBall, box: pg.Box) -> None:
    values = np.random.default_rng(0).standard_normal((5, 2, 3)) * np.array([0.1, 1, 1, 10, 1e3]).reshape(-1, 1, 1)
    values[0, 0], values[1, 1] = [np.nan, 0.0, -0.0], [np.inf, -np.inf, 1.0]
    x = framework.make(values, dtype)
    found, expected = (framework.project(c, x) for c in (ball, box))
    assert str(found.dtype) == str(expected.dtype)
    if "1e5" not in str(ball) and "100000" not in str(ball):
        assert same(framework.read(found), framework.read(expected))
    np.testing.assert_array_equal(framework.read(found)[2:], framework.read(expected)[2:])
    np.testing.assert_array_equal(framework.read(ball.violation(x))[2:], framework.read(box.violation(x))[2:])


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f.compile and f.gradient], ids=repr)
@pytest.mark.parametrize("ball", [pg.LInfBall(0.5), pg.LInfBall(0.5, [0.0, 0.25, -1.0])], ids=repr)
def test_the_l_infinity_ball_compiles_and_has_derivatives(framework: Framework, ball: pg.LInfBall) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    values = np.array([[0.1, 0.2, 3.0], [-5.0, 0.0, -1.1]])
    assert framework.compile is not None
    assert framework.gradient is not None
    with framework.scope():
        x = framework.make(values, "float64")
        np.testing.assert_allclose(framework.read(framework.compile(ball.project)(x)), ball.project(values))
        ones = framework.make(np.ones_like(values), "float64")
        slopes = framework.read(framework.gradient(ball.project, x, ones))
    np.testing.assert_array_equal(slopes, ball.project(values) == values)


def test_the_l_infinity_ball_is_saved_and_shown() -> None:
    for ball in (pg.LInfBall(2.0), pg.LInfBall(1.0, [[0.0, 1.0]], rate=0.5)):
        assert pg.from_dict(ball.to_dict()) == ball == eval(repr(ball), vars(pg) | {"float": float})


def test_optax_agrees() -> None:
    jax = pytest.importorskip("jax")
    projections = pytest.importorskip("optax.projections")
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for _ in range(5):
            x = 2 * rng.standard_normal(8)
            given = jax.numpy.asarray(x)
            for constraint, other in (
                (pg.L2Ball(1.5), projections.projection_l2_ball(given, 1.5)),
                (pg.LInfBall(1.5), projections.projection_linf_ball(given, 1.5)),
            ):
                np.testing.assert_allclose(constraint.project(x), other, atol=1e-12)
