"""Simplices, l1 balls and l1 spheres: what is special to them; the promises of all sets are in `test_catalogue.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import projgrad as pg
from tests.cases.thresholds import by_bisection
from tests.frameworks import Framework

SEEDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: pg.Simplex(-1.0), "at least 0"),
        (lambda: pg.Simplex(math.nan), "total"),
        (lambda: pg.L1Ball(-1.0), "at least 0"),
        (lambda: pg.L1Ball(math.inf), "finite"),
        (lambda: pg.L1Ball(cast(Any, "1")), "not a number"),
        (lambda: pg.L1Sphere(-1e-9), "at least 0"),
        (lambda: pg.L1Sphere(1.0, rate=0.0), "rate"),
        (lambda: pg.CappedSimplex(math.inf), "finite"),
        (lambda: pg.CappedSimplex(1.0, 0.5, 0.25), "must not exceed"),
        (lambda: pg.CappedSimplex(1.0, math.inf, math.inf), "only infinity"),
        (lambda: pg.CappedSimplex(1.0, [0.0, math.nan], 1.0), "NaN"),
        (lambda: pg.CappedSimplex(1.0, [0.0, 0.0], [1.0, 1.0, 1.0]), "do not broadcast"),
        (lambda: pg.CappedSimplex(1.0, [[0.0, 0.0]], 1.0), "list"),
        (lambda: pg.CappedSimplex(1.0, axis=()), "axis"),
    ],
)
def test_wrong_arguments_are_refused(wrong: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        wrong()


@pytest.mark.parametrize(
    ("constraint", "size", "message"),
    [
        (pg.CappedSimplex(5.0), 4, "at most 4, which total=5 is not"),
        (pg.CappedSimplex(-0.1), 4, "at least 0"),
        (pg.CappedSimplex(1.0, 0.3, 1.0), 4, "at least 1.2"),
        (pg.CappedSimplex(1.0, 0.0, [0.1, 0.2]), 2, "at most 0.3"),
        (pg.CappedSimplex(1.0, 0.0, [1.0, 1.0, 1.0]), 4, "does not broadcast"),
    ],
)
def test_sizes_without_a_point_are_refused_when_they_are_known(
    constraint: pg.Constraint, size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        constraint.project(np.zeros((2, size)))
    with pytest.raises(ValueError, match=message):
        constraint.bind((2, size), (1,))


@pytest.mark.parametrize(
    ("constraint", "size"),
    [
        (pg.CappedSimplex(1.0, 0.1, 1.0), 10),  # 0.1 added up is not quite 1
        (pg.CappedSimplex(4.0), 4),
        (pg.CappedSimplex(0.6, 0.0, [0.1, 0.2, 0.3]), 3),
        (pg.CappedSimplex(0, [0, -1], [0, 1]), 2),
        (pg.CappedSimplex(1.0, -math.inf, [math.inf, 0.0]), 2),
    ],
)
def test_bounds_that_leave_just_one_point_or_a_line(constraint: pg.CappedSimplex, size: int) -> None:
    x = np.random.default_rng(0).standard_normal((5, size))
    y = constraint.project(x)
    np.testing.assert_allclose(y.sum(-1), constraint.total, rtol=1e-12, atol=1e-12)
    assert (y >= np.asarray(constraint.lower)).all()
    assert (y <= np.asarray(constraint.upper)).all()


@given(seed=SEEDS)
def test_equivalences(framework: Framework, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4, 9)) * 10.0 ** rng.integers(-3, 4)
    pairs: list[tuple[pg.Constraint, pg.Constraint, np.ndarray]] = [
        (pg.CappedSimplex(2.0, 0.0, math.inf), pg.Simplex(2.0), x),
        (pg.CappedSimplex(2.0, 0.0, 2.0), pg.Simplex(2.0), x),
        (pg.CappedSimplex(2.0, -math.inf, math.inf), pg.SumTo(2.0), x),
        (pg.CappedSimplex(9 * 0.5, 0.5, 0.5), pg.Box(0.5, 0.5), x),
        (pg.L1Ball(0.01), pg.Simplex(0.01), np.abs(x) + 1),
        (pg.L1Sphere(3.0), pg.Simplex(3.0), np.abs(x)),
        (pg.L1Sphere(1e-3), pg.L1Ball(1e-3), np.where(x < 0, x - 1, x + 1)),
        (pg.L1Ball(0.0), pg.Box(0.0, 0.0), x),
    ]
    for one, other, values in pairs:
        given = framework.make(values, "float64")
        found, expected = (framework.read(framework.project(c, given)) for c in (one, other))
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13 * (1 + np.abs(values).max()))


@given(seed=SEEDS)
def test_capped_simplices_with_ties_and_infinite_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 9))
    lower = np.where(rng.random(size) < 0.3, -math.inf, np.round(rng.standard_normal(size), 1))
    least = np.where(np.isfinite(lower), lower, -1.0)
    upper = np.where(rng.random(size) < 0.3, math.inf, least + np.round(rng.exponential(size=size), 1))
    most = np.where(np.isfinite(upper), upper, least + 3)
    weight = rng.choice([0.0, 1.0, rng.random()])
    total = float(((1 - weight) * least + weight * most).sum())
    x = rng.standard_normal(size) * rng.choice([1e-3, 1.0, 1e3, 1e8])
    x = np.round(x) if rng.random() < 0.3 else x
    y = pg.CappedSimplex(total, lower, upper).project(x)
    # a larger entry has more room below its upper bound, or the sum of the others would not be as small
    np.testing.assert_allclose(y, by_bisection(x, total, lower, upper), atol=1e-12 * (1 + np.abs(x).max()))


def test_no_point_of_the_l1_sphere_is_nearer_than_ours() -> None:
    """From groups inside with zeros too, where no algorithm is trusted: all points of a fine grid are tried."""
    steps = np.linspace(-2.0, 2.0, 161)
    plane = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    rest = 2.0 - np.abs(plane).sum(1)
    grid = np.column_stack([plane, rest])[rest >= -1e-12]
    grid = np.concatenate([grid, grid * [1, 1, -1]])
    points = [
        [0.5, 0, 0],
        [0, 0, 0],
        [0.3, -0.2, 0],
        [-1e-3, 0, 0],
        [0.5, 0.4, -0.3],
        [3, 0, 0],
        [1, -1, 0],
        [2, -5, 1],
    ]
    for x in np.array(points, dtype=float):
        y = pg.L1Sphere(2.0).project(x)
        assert np.abs(y).sum() == pytest.approx(2.0)
        assert np.linalg.norm(y - x) <= np.linalg.norm(grid - x, axis=1).min() + 1e-9


def test_a_zero_goes_to_the_positive_side_of_the_l1_sphere(framework: Framework) -> None:
    x = framework.make(np.array([[0.5, 0.0], [-0.5, -0.0], [0.0, 0.0]]), "float32")
    found = framework.read(framework.project(pg.L1Sphere(2.0), x))
    np.testing.assert_allclose(found, [[1.25, 0.75], [-1.25, 0.75], [1.0, 1.0]], rtol=1e-6)


def test_signs_hold_exactly(framework: Framework) -> None:
    """What is outside by less than the tolerance is kept, but not on the wrong side of 0."""
    x = framework.make(np.array([[-1e-9, 0.5, 0.5]]), "float32")
    for constraint in (pg.Simplex(), pg.CappedSimplex()):
        assert (framework.read(framework.project(constraint, x)) >= 0).all()
    y = framework.project(pg.CappedSimplex(-1.0, -1.0, 0.0), framework.make(np.array([[1e-9, -0.5, -0.5]]), "float32"))
    assert (framework.read(y) <= 0).all()


# -- every way to a threshold -------------------------------------------------------------------------------------


def assert_nearest(
    v: np.ndarray,
    y: np.ndarray,
    total: float,
    lower: np.ndarray | float,
    upper: np.ndarray | float,
    h: np.ndarray | float = 1.0,
) -> None:
    """`y` has the sum, is within the bounds, and is where ``h (v - y)`` is one number for all that is at no bound."""
    eps = float(np.finfo(v.dtype).eps)
    v, y = v.astype(float), y.astype(float)
    slack = 32 * eps * (np.abs(y).sum(-1) + abs(total))
    np.testing.assert_array_less(np.abs(y.sum(-1) - total), slack)
    assert (y >= lower).all()
    assert (y <= upper).all()
    t, close = h * (v - y), (slack * 2)[:, None]
    # what is at its lower bound would fall further, and what is at its upper one would rise
    highest = np.where(y < upper - close, t, -math.inf).max(-1)
    lowest = np.where(y > lower + close, t, math.inf).min(-1)
    assert (highest <= lowest + 32 * eps * (1 + np.abs(v).max(-1)) * np.max(h)).all()


@pytest.mark.parametrize(("rows", "size"), [(300, 1), (300, 7), (3, 16), (300, 16), (3, 17), (300, 64), (3, 129)])
def test_short_and_long_groups(framework: Framework, rows: int, size: int) -> None:
    rng = np.random.default_rng(size)
    x = rng.standard_normal((rows, size)) * 10.0 ** rng.integers(-3, 4, (rows, 1))
    x = np.where(rng.random((rows, 1)) < 0.3, np.round(x), x).astype(np.float32)  # with ties
    for constraint, total, lower, upper in (
        (pg.Simplex(2.0), 2.0, 0.0, math.inf),
        (pg.Simplex(0.3 * size), 0.3 * size, 0.0, math.inf),
        (pg.CappedSimplex(0.1 * size, 0.0, 0.3), 0.1 * size, np.float32(0.0), np.float32(0.3)),
        (pg.CappedSimplex(-0.25 * size, -1.0, 4.0), -0.25 * size, -1.0, 4.0),
        (pg.CappedSimplex(1.0, -math.inf, 1.5), 1.0, -math.inf, 1.5),
    ):
        y = framework.read(framework.project(constraint, framework.make(x, "float32")))
        assert_nearest(x, y, total, lower, upper)
    y = framework.read(framework.project(pg.L1Ball(2.0), framework.make(x, "float32")))
    outside = np.abs(x).sum(-1, dtype=float) > 2
    np.testing.assert_array_equal(y[~outside], x[~outside])
    assert_nearest(np.abs(x[outside]), np.abs(y[outside]), 2.0, 0.0, math.inf)
    assert (y * x >= 0).all()


@given(seed=SEEDS)
def test_capped_simplices_where_newton_alone_would_cycle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(17, 200))
    x = rng.standard_normal((20, size)) * 10.0 ** rng.integers(-2, 4)
    lower = -rng.exponential(size=size)
    upper = lower + 10.0 ** rng.uniform(-3, 1, size)  # steps of f, with flat pieces between them
    share = rng.choice([1e-3, 0.5, rng.random(), 1 - 1e-3])
    total = float(((1 - share) * lower + share * upper).sum())
    h = 10.0 ** rng.uniform(-3, 0, size)
    assert_nearest(x, pg.CappedSimplex(total, lower, upper).project(x), total, lower, upper)
    y = pg.CappedSimplex(total, lower, upper).project(x, metric=h)
    assert_nearest(x, y, total, lower, upper, h)


# -- what others get wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", [0.01, 0.3, 0.99])
@pytest.mark.parametrize("size", [10, 40, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_capped_simplex_does_not_depend_on_the_other_groups(fill: float, size: int, dtype: str) -> None:
    # all groups share the rounds of the search
    x = np.random.default_rng(0).standard_normal((64, size)).astype(dtype)
    constraint = pg.CappedSimplex(fill * size, 0.0, 1.0, axis=1)
    together = constraint.project(x)
    for i in range(len(x)):
        np.testing.assert_array_equal(together[i : i + 1], constraint.project(x[i : i + 1]))


def test_digits_beyond_those_of_the_sum_are_not_lost(framework: Framework) -> None:
    x = framework.make(np.array([[1e8, 1e8 + 8, 0.0]]), "float32")
    for constraint in (pg.Simplex(), pg.L1Ball(), pg.L1Sphere(), pg.CappedSimplex()):
        np.testing.assert_array_equal(framework.read(framework.project(constraint, x)), [[0.0, 1.0, 0.0]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_many_small_numbers_in_low_precision(framework: Framework, dtype: str) -> None:
    if dtype not in framework.dtypes:
        pytest.skip(f"{framework} has no {dtype}")
    x = np.random.default_rng(0).uniform(0, 1e-3, (1, 10_000))
    for constraint in (pg.Simplex(), pg.L1Sphere(), pg.CappedSimplex()):
        y = framework.read(framework.project(constraint, framework.make(x, dtype)))
        assert abs(y.sum() - 1) <= {"float16": 2**-11, "bfloat16": 2**-8}[dtype]


def test_peers_agree_where_they_are_right() -> None:
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    from optax import projections

    assert optax
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for _ in range(5):
            x = rng.standard_normal(20)
            for constraint, other in (
                (pg.Simplex(1.5), projections.projection_simplex),
                (pg.L1Ball(1.5), projections.projection_l1_ball),
                (pg.L1Sphere(1.5), projections.projection_l1_sphere),  # groups outside, here
            ):
                np.testing.assert_allclose(constraint.project(x), other(jax.numpy.asarray(x), 1.5), atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jaxopt_agrees_on_box_sections() -> None:
    jax = pytest.importorskip("jax")
    projection = pytest.importorskip("jaxopt.projection")
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for _ in range(3):
            x, width = rng.standard_normal(6), rng.uniform(0.2, 1.0, 6)
            limits = (jax.numpy.asarray(-width), jax.numpy.asarray(width))
            other = projection.projection_box_section(jax.numpy.asarray(x), (*limits, jax.numpy.ones(6), 0.3))
            np.testing.assert_allclose(pg.CappedSimplex(0.3, -width, width).project(x), other, atol=1e-4)


# -- many entries -------------------------------------------------------------------------------------------------


def spread(size: int, scale: float) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(size) * scale


SIZE = 100_000
MANY = {
    "small": spread(SIZE, 1e-3),
    "ordinary": spread(SIZE, 1.0),
    "large": spread(SIZE, 1e8),
    "equal": np.full(SIZE, 1e8),
    "one large": np.where(np.arange(SIZE) == 5, 1e5, 1.0),
}


@pytest.mark.parametrize("values", MANY.values(), ids=MANY.keys())
def test_sums_of_many_entries_are_right_to_the_last_digits(framework: Framework, values: np.ndarray) -> None:
    x = framework.make(values.reshape(1, -1), "float32")
    stored = framework.read(x)[0]
    for constraint, total, lower, upper in (
        (pg.Simplex(), 1.0, 0.0, math.inf),
        (pg.CappedSimplex(SIZE / 3), SIZE / 3, 0.0, 1.0),
        (pg.CappedSimplex(1.0, 0.0, 2.0**-15), 1.0, 0.0, 2.0**-15),
        (pg.L1Sphere(1e12), 1e12, None, None),
    ):
        y = framework.read(framework.project(constraint, x))[0]
        assert abs(math.fsum(np.abs(y)) - total) <= 4.8e-7 * total
        if lower is not None and upper is not None:
            best = by_bisection(stored, total, lower, upper)
            assert np.linalg.norm(y - best) <= 2 * pg.tolerance("float32", SIZE, np.linalg.norm(best))


def test_constraints_that_differ_in_a_number_compile_one_after_the_other() -> None:
    """torch.compile takes such a number for a variable from the second on, which its loops do not."""
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 5)))
    for kind in (pg.Simplex, pg.L1Ball, pg.L1Sphere, pg.CappedSimplex):
        torch._dynamo.reset()
        for total in (1.0, 1.5, 2.0):
            constraint = kind(total)
            compiled = torch.compile(constraint.project, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(x), constraint.project(x))


def test_two_arrays_compile() -> None:
    """torch.compile gives all constants that one function makes the same name, and fails at the second."""
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 4)))
    lower, upper = [0.0, -1.0, 0.25, 0.0], [1.0, 0.0, 0.5, 2.0]
    for constraint in (pg.Box(lower, upper), pg.CappedSimplex(1.0, lower, upper)):
        torch._dynamo.reset()
        compiled = torch.compile(constraint.project, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), constraint.project(x))


def exactly(x: np.ndarray, total: float, lower: float, upper: float) -> np.ndarray:
    """The nearest point of a capped simplex in rational numbers: the sum is linear between the sorted ends."""
    values = [Fraction(float(v)) for v in x]
    bounds = [None if math.isinf(bound) else Fraction(bound) for bound in (lower, upper)]
    ends = sorted({v - bound for v in values for bound in bounds if bound is not None})

    def at(t: Fraction) -> list[Fraction]:
        low, high = bounds
        moved = [v - t for v in values]
        return [v if low is None else max(v, low) for v in (v if high is None else min(v, high) for v in moved)]

    left = [t for t in ends if sum(at(t)) >= total]
    start = max(left, default=ends[0] - 1)
    here, after = at(start), at(start + Fraction(1, 2**200))
    slope = (sum(here) - sum(after)) * 2**200
    t = start + ((sum(here) - Fraction(total)) / slope if slope else 0)
    return np.array([float(y) for y in at(t)])


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("x", "total", "lower", "upper"),
    [
        (np.array([0, 1, 0, -1, -1, 0, -2, -1, -1, -2, 2, -1, 1, -3, 0, 3, -1]) * 1e8, -10.0, -1.0, 2.0),
        (RNG.standard_normal(17) * 1e16, 17.0, 0.0, 1.0),
        (RNG.standard_normal(100) * 1e20, 100.0, 0.0, math.inf),
        (2.0 ** RNG.integers(0, 40, 40) * RNG.choice([-1, 1], 40), 4.4, -1.0, 2.0),
        (np.append(RNG.standard_normal(40), 1e30), 3.0, 0.0, math.inf),
        (np.full(17, 1e30), 16.0, 0.0, math.inf),
        (np.array([3e37, -3e37]), 1.2, -1.0, 2.0),
        (np.array([3e38, -3e38]), 1.2, -1.0, 2.0),
    ],
)
def test_bounds_closer_than_the_digits_of_the_entries(
    framework: Framework, x: np.ndarray, total: float, lower: float, upper: float
) -> None:
    x = x.astype("float32")
    constraint = pg.CappedSimplex(total, lower, upper)
    with np.errstate(over="ignore"):
        y = framework.read(framework.project(constraint, framework.make(x[None], "float32")))[0]
    expected = exactly(x, total, lower, upper)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5 * (1 + np.abs(expected).max()))
