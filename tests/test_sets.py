"""What every set promises, on every framework and dtype; one test for each promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import projgrad as pg
from projgrad.precision import precision
from tests import oracles
from tests.frameworks import JAX, NUMPY, STRICT, TENSORFLOW, TORCH, Framework, same

# few shapes, so that frameworks that compile each shape do so only once
SHAPES: list[tuple[tuple[int, ...], int | tuple[int, ...] | None]] = [
    ((6,), 0),
    ((4, 5), 0),
    ((4, 5), 1),
    ((4, 5), -1),
    ((3, 2, 4), (0, 2)),
    ((3, 2, 4), None),
    ((70, 2), 0),
    ((1, 1), 1),
]
BOUNDS = [(0.0, 2.0), (0.0, 0.0), (1.0, 1.0), (0.5, 3.0), (0.25, math.inf)]


def norm_set(low: float, high: float, axis: object, rate: float = 1.0) -> pg.Constraint:
    if low == high == 1:
        return pg.UnitNorm(axis=axis, rate=rate)  # type: ignore[arg-type]
    if low == 0:
        return pg.MaxNorm(high, axis=axis, rate=rate)  # type: ignore[arg-type]
    return pg.MinMaxNorm(low, high, axis=axis, rate=rate)  # type: ignore[arg-type]


def axes_of(shape: tuple[int, ...], axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
    given = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    return tuple(a % len(shape) for a in given)


@st.composite
def points(draw: st.DrawFn, largest: float = 1e30) -> tuple[np.ndarray, int | tuple[int, ...] | None]:
    """Arrays whose groups are ordinary, zero, feasible by far, huge or tiny."""
    shape, axis = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scales = [s for s in (0.0, 1e-30, 1e-3, 0.1, 1.0, 1.0, 10.0, 1e4, 1e30) if s <= largest]
    # one scale per group, and another for single entries
    per_group = rng.choice(scales, [1 if d in axes_of(shape, axis) else n for d, n in enumerate(shape)])
    spread = rng.choice([1.0, 1.0, 1e-3, 0.0], shape)
    return rng.standard_normal(shape) * per_group * spread, axis


def largest(dtype: str) -> float:
    return 1e4 if dtype == "float16" else 1e30


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@given(data=st.data())
def test_norm_sets_give_the_nearest_point(
    framework: Framework, dtype: str, bounds: tuple[float, float], data: st.DataObject
) -> None:
    values, axis = data.draw(points(largest(dtype)))
    low, high = bounds
    constraint = norm_set(low, high, axis)
    x = framework.make(values, dtype)
    stored = framework.read(x)
    y = framework.project(constraint, x)
    result = framework.read(y)
    axes = axes_of(values.shape, axis)
    expected = oracles.by_group(stored, axes, oracles.shell(low, high))
    size = math.prod(values.shape[a] for a in axes)
    p = precision(dtype)
    for index, group in oracles.groups(result, axes):
        # feasible, measured independently
        norm = oracles.norm(group)
        assert norm <= high + pg.tolerance(dtype, size, high) or high == math.inf
        assert norm >= low - pg.tolerance(dtype, size, low)
        # nearest: every entry is that of the oracle, up to the tolerance of the norm and its own rounding
        allowed = pg.tolerance(dtype, size, 1.0) + p.unit
        close = np.abs(group - expected[index]) <= allowed * np.abs(expected[index]) + 2 * p.tiny
        assert close.all() or np.array_equal(group, stored[index])  # kept, within the tolerance
    assert constraint.contains(y)
    assert str(y.dtype) == str(getattr(x, "value", x).dtype if framework.name == "keras" else x.dtype)


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@given(data=st.data())
def test_what_is_in_the_set_comes_back_bit_for_bit(
    framework: Framework, dtype: str, bounds: tuple[float, float], data: st.DataObject
) -> None:
    values, axis = data.draw(points(largest(dtype)))
    constraint = norm_set(*bounds, axis)
    once = framework.project(constraint, framework.make(values, dtype))
    twice = framework.project(constraint, once)
    assert same(framework.read(once), framework.read(twice))


def test_signs_of_zero_stay_in_groups_that_are_kept(framework: Framework, dtype: str) -> None:
    values = np.array([[1.0, -0.0, 0.0], [-0.0, 0.0, -1.0]])
    x = framework.make(values, dtype)
    for low, high in BOUNDS[2:]:
        assert same(framework.read(framework.project(norm_set(low, high, 1), x)), values)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_one_code_path_leaves_alone_every_other_accepts(framework: Framework, dtype: str) -> None:
    if dtype not in framework.dtypes:
        pytest.skip(f"{framework} has no {dtype}")
    rng = np.random.default_rng(0)
    for size in (2, 40):
        x = rng.standard_normal((size, 4000))
        x *= (1 + rng.uniform(-1.1, 1.1, 4000) * pg.tolerance(dtype, size, 1.0)) / np.linalg.norm(x, axis=0)
        y = framework.project(pg.UnitNorm(axis=0), framework.make(x, dtype))
        for other in (NUMPY, STRICT, TORCH, JAX, TENSORFLOW):
            if dtype in other.dtypes and not other.missing:
                assert pg.UnitNorm(axis=0).contains(other.make(framework.read(y), dtype)), other


@given(seed=st.integers(0, 2**32 - 1))
def test_no_point_of_the_set_is_nearer(framework: Framework, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4, 5)) * rng.choice([0.1, 1, 5], (4, 1))
    for low, high in ((0.0, 1.5), (1.0, 1.0), (0.5, 2.0)):
        y = framework.read(framework.project(norm_set(low, high, 1), framework.make(x, "float32")))
        for _ in range(20):
            z = y + rng.standard_normal(x.shape) * rng.choice([1e-3, 0.1, 1])
            z *= np.clip(np.linalg.norm(z, axis=1, keepdims=True), low, high) / np.linalg.norm(z, axis=1, keepdims=True)
            assert (np.linalg.norm(x - y, axis=1) <= np.linalg.norm(x - z, axis=1) + 1e-5).all()


BOXES = [
    (pg.NonNeg(), 0.0, math.inf),
    (pg.NonPos(), -math.inf, 0.0),
    (pg.Box(-0.3, 0.7), -0.3, 0.7),
    (pg.Box(-math.inf, 1.5), -math.inf, 1.5),
    (pg.Box(-1e6, 1e6), -1e6, 1e6),
    (
        pg.Box([[-1.0], [0.0], [-math.inf]], [0.5, 0.25, 1.0, math.inf]),
        [[-1.0], [0.0], [-math.inf]],
        [0.5, 0.25, 1.0, math.inf],
    ),
]


@pytest.mark.parametrize(("box", "lower", "upper"), BOXES, ids=lambda v: str(v)[:24])
@given(seed=st.integers(0, 2**32 - 1))
def test_boxes_clip_exactly(
    framework: Framework, dtype: str, box: pg.Constraint, lower: object, upper: object, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, 0.3, -0.3, 1e-30, 1e30 if dtype != "float16" else 6e4]
    values = np.where(rng.random((3, 4)) < 0.4, rng.choice(special, (3, 4)), rng.standard_normal((3, 4)))
    x = framework.make(values, dtype)
    stored, limit = framework.read(x), {"float16": 65504.0}.get(dtype, math.inf)

    def bound(b: object) -> np.ndarray:
        numbers = np.asarray(b, float)
        return framework.read(
            framework.make(np.where(np.isfinite(numbers), np.clip(numbers, -limit, limit), numbers), dtype)
        )

    expected = np.where(stored < bound(lower), bound(lower), np.where(stored > bound(upper), bound(upper), stored))
    y = framework.project(box, x)
    assert same(framework.read(y), expected)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(
            framework.read(box.violation(x)),
            np.where(stored == expected, 0, np.abs(stored - expected)).astype(
                "float32" if dtype != "float64" else dtype
            ),
        )
    assert same(framework.read(framework.project(box, y)), expected)


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_any_axes_give_what_a_loop_over_groups_gives(framework: Framework, bounds: tuple[float, float]) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32) * 2
    for axis in (0, 1, 2, (0, 1), (0, 2), (1, 2), (2, 0), -1, None):
        whole = framework.read(framework.project(norm_set(*bounds, axis), framework.make(x, "float32")))
        single = norm_set(*bounds, None)

        def alone(group: np.ndarray, single: pg.Constraint = single) -> np.ndarray:
            return framework.read(framework.project(single, framework.make(group, "float32")))

        looped = oracles.by_group(x.astype(np.float64), axes_of(x.shape, axis), alone)
        np.testing.assert_allclose(whole, looped, rtol=1e-6)


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_nan_and_infinity_never_become_legal_weights(
    framework: Framework, dtype: str, bounds: tuple[float, float]
) -> None:
    values = np.ones((3, 4))
    values[0, 1], values[1, 2], values[2] = math.nan, math.inf, 0.5
    constraint = norm_set(*bounds, 1)
    x = framework.make(values, dtype)
    y = framework.read(framework.project(constraint, x))
    assert np.isnan(y[:2]).all()
    assert np.isfinite(y[2]).all()
    assert not constraint.contains(x)
    assert np.isnan(framework.read(constraint.violation(x))[0])


def test_the_point_chosen_for_zeros(framework: Framework, dtype: str) -> None:
    zeros = framework.make(np.zeros((9, 2)), dtype)
    unit = framework.read(framework.project(pg.UnitNorm(axis=0), zeros))
    np.testing.assert_allclose(unit, 1 / 3, rtol=2 * precision(dtype).unit)
    shell = framework.read(framework.project(pg.MinMaxNorm(0.6, 1.0, axis=0), zeros))
    np.testing.assert_allclose(shell, 0.2, rtol=2 * precision(dtype).unit)
    assert same(framework.read(framework.project(pg.MaxNorm(1.0, axis=0), zeros)), np.zeros((9, 2)))


@pytest.mark.parametrize(
    "constraint", [pg.MaxNorm(1.0, axis=0), pg.UnitNorm(axis=0), pg.NonNeg(), pg.Box(-1, 1)], ids=str
)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_empty_arrays(framework: Framework, constraint: pg.Constraint, shape: tuple[int, ...]) -> None:
    x = framework.make(np.zeros(shape), "float32")
    assert framework.read(framework.project(constraint, x)).shape == shape
    expected = shape[1:] if isinstance(constraint, pg.MaxNorm | pg.UnitNorm) else shape
    assert framework.read(constraint.violation(x)).shape == expected
    assert constraint.contains(x)


def test_single_numbers(framework: Framework) -> None:
    x = framework.make(np.asarray(-3.0), "float32")
    assert framework.read(framework.project(pg.MaxNorm(2.0, axis=None), x)) == -2
    assert framework.read(framework.project(pg.NonNeg(), x)) == 0
    assert framework.read(pg.UnitNorm(axis=None).violation(x)) == 2


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_complex_groups_keep_their_phases(framework: Framework, dtype: str, bounds: tuple[float, float]) -> None:
    if dtype not in framework.dtypes:
        pytest.skip(f"{framework} has no {dtype}")
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((40, 3)) + 1j * rng.standard_normal((40, 3))) * [0.01, 1, 0]
    x = framework.make(values, dtype)
    y = framework.read(framework.project(norm_set(*bounds, 0), x))
    expected = oracles.by_group(framework.read(x), (0,), oracles.shell(*bounds))
    np.testing.assert_allclose(y, expected, rtol=3e-6, atol=1e-7)
    with pytest.raises(TypeError, match="real"):
        pg.NonNeg().project(x)


@pytest.mark.parametrize("size", [3e38, 1e-37, 1e-42, 1e20])
def test_complex_groups_may_be_huge_or_tiny(framework: Framework, size: float) -> None:
    if "complex64" not in framework.dtypes:
        pytest.skip(f"{framework} has no complex64")
    values = np.full((3, 1), size + 1j * size, np.complex64)
    x = framework.make(values, "complex64")
    inside = framework.read(framework.project(pg.MaxNorm(1.0, axis=0), x))
    np.testing.assert_allclose(
        inside, values if size < 1 else np.full((3, 1), (1 + 1j) / math.sqrt(6)), rtol=1e-6, atol=2e-38
    )
    unit = framework.read(framework.project(pg.UnitNorm(axis=0), x))
    # subnormal numbers count as zeros
    direction = (1 + 1j) / math.sqrt(6) if size > 1e-38 else 1 / math.sqrt(3)
    np.testing.assert_allclose(unit, np.full((3, 1), direction), rtol=1e-6)
    assert framework.read(framework.project(pg.UnitNorm(axis=0), framework.make(values * 0, "complex64"))).real.all()


@pytest.mark.parametrize("rate", [0.25, 0.9, 1])
@pytest.mark.parametrize(
    "make",
    [
        lambda rate: pg.MaxNorm(1.0, axis=0, rate=rate),
        lambda rate: pg.UnitNorm(axis=0, rate=rate),
        lambda rate: pg.MinMaxNorm(0.5, 1.0, rate=rate, axis=0),
        lambda rate: pg.NonNeg(rate=rate),
        lambda rate: pg.NonPos(rate=rate),
        lambda rate: pg.Box([-0.5, 0.1, 0.0], 0.3, rate=rate),
    ],
)
def test_rate_goes_part_of_the_way(framework: Framework, dtype: str, make: object, rate: float) -> None:
    values = np.random.default_rng(0).standard_normal((6, 3))
    values[:, 2] = 0
    x = framework.make(values, dtype)
    full = framework.read(framework.project(make(1), x))  # type: ignore[operator]
    part = framework.read(framework.project(make(rate), x))  # type: ignore[operator]
    np.testing.assert_allclose(
        part, (1 - rate) * framework.read(x) + rate * full, rtol=4 * precision(dtype).unit, atol=1e-7
    )
    kept = full == framework.read(x)
    assert same(part[kept], full[kept])
