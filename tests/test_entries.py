"""Masks and grids: every entry by itself, exactly."""

from __future__ import annotations

import json
import math
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import projgrad as pg
from projgrad.precision import precision
from tests.frameworks import FRAMEWORKS, NUMPY, TORCH, Framework, same

LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38, "float32": float(np.finfo(np.float32).max)}


def stored(values: Any, framework: Framework, dtype: str) -> np.ndarray:
    """Numbers as the dtype has them, the finite ones limited to its largest."""
    most = LARGEST.get(dtype, math.inf)
    numbers = np.asarray(values, float)
    numbers = np.where(np.isfinite(numbers), np.clip(numbers, -most, most), numbers)
    return framework.read(framework.make(numbers, dtype))


def entries(seed: int, dtype: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, 0.3, -0.25, 1e-30, 1e30 if dtype != "float16" else 6e4]
    return np.where(rng.random((3, 4)) < 0.4, rng.choice(special, (3, 4)), rng.standard_normal((3, 4)))


MASKS: list[tuple[pg.Constraint, Any, Any]] = [
    (pg.Mask([True, False, False, True]), [1, 0, 0, 1], 0.0),
    (pg.Mask([[0], [2], [0]], -0.3), [[0], [1], [0]], -0.3),
    (pg.Mask(np.eye(3, 4), [1.0, 2.0, 1e6, 4.0]), np.eye(3, 4), [1.0, 2.0, 1e6, 4.0]),
    (pg.Mask([0.0]), [0], 0.0),
]


@pytest.mark.parametrize(("constraint", "mask", "value"), MASKS, ids=lambda v: str(v)[:24])
@given(seed=st.integers(0, 2**32 - 1))
def test_masked_entries_are_held_and_all_others_left_alone(
    framework: Framework, dtype: str, constraint: pg.Constraint, mask: Any, value: Any, seed: int
) -> None:
    x = framework.make(entries(seed, dtype), dtype)
    given_, held = framework.read(x), stored(value, framework, dtype) + np.zeros((3, 4))
    change = (np.broadcast_to(mask, (3, 4)) == 1) & ~np.isnan(given_) & (given_ != held)
    expected = np.where(change, held, given_)
    y = framework.project(constraint, x)
    assert same(framework.read(y), expected)
    assert same(framework.read(framework.project(constraint, y)), expected)
    found = framework.read(constraint.violation(x))
    np.testing.assert_allclose(found[change], np.abs(given_ - held)[change], rtol=1e-6)
    assert (found[~change & ~np.isnan(given_)] == 0).all()
    assert np.isnan(found[np.isnan(given_)]).all()
    assert constraint.contains(y) == (not np.isnan(given_).any())


STEPS = [0.25, 0.1, 1.0, 3.7, 1e-3, 1e5]
LEVELS = [
    [-1.0, 0.0, 1.0],
    [0.1],
    [-0.3, -0.1, 0.2, 0.25, 7.0],
    [-1e30, 1e-3, 70000.0],
    np.linspace(-2, 2, 255).tolist(),
]


@pytest.mark.parametrize("grid", [*STEPS, *LEVELS], ids=lambda v: str(v)[:24])
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 1.0, 100.0, 1e4]))
def test_entries_are_rounded_to_the_nearest_number_of_the_grid(
    framework: Framework, dtype: str, grid: Any, seed: int, scale: float
) -> None:
    values = entries(seed, dtype)
    values = np.where(np.abs(values) < 6, values * scale, values)
    constraint = pg.Quantized(grid)
    x = framework.make(values, dtype)
    given_ = framework.read(x)
    y = framework.project(constraint, x)
    found = framework.read(y)
    assert same(framework.read(framework.project(constraint, y)), found)
    assert constraint.contains(y) == (not np.isnan(given_).any())
    assert (np.isnan(found) == np.isnan(given_)).all()
    for number, rounded in zip(given_.ravel().tolist(), found.ravel().tolist(), strict=True):
        if math.isnan(number):
            continue
        if isinstance(grid, list):
            levels = stored(grid, framework, dtype)
            near = np.abs(levels - np.clip(number, levels[0], levels[-1]))
            assert rounded == levels[np.argmin(near)]  # of two as near, the first, which is the lower
        elif math.isinf(number):
            assert rounded == number
        else:
            wide = "float64" if dtype == "float64" else "float32"
            step = float(stored(grid, NUMPY, wide))  # as the computation has it
            count = math.floor(number / step)
            unit = precision(dtype).unit
            far = abs(number) >= step * 0.5 / precision(wide).unit
            levels = stored([step * (count + i) for i in (-1, 0, 1, 2)], NUMPY, wide)  # and rounded twice
            near = stored(levels, framework, dtype)
            allowed = 2 * precision(wide).unit * abs(number)
            assert abs(rounded - number) <= np.abs(near - number).min() + allowed
            assert (rounded == number) if far else np.abs(near - rounded).min() <= unit * abs(rounded)


def test_halfway_goes_to_the_lower_one(framework: Framework, dtype: str) -> None:
    x = framework.make(np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5]), dtype)
    for grid in (1.0, [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]):
        found = framework.read(framework.project(pg.Quantized(grid), x))
        np.testing.assert_array_equal(found, [-3, -2, -1, 0, 1, 2, 3])


@pytest.mark.parametrize("step", [0.1, 1 / 3, 0.7, 1.0, 1e-3])
def test_every_float16_is_rounded_once(step: float) -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    once = pg.Quantized(step)(every)
    assert same(pg.Quantized(step)(once), once)
    assert (np.abs(once.astype(float) - every) <= step / 2 + 2.0**-11 * np.abs(every) + 2.0**-25).all()
    once = once.astype(float)
    assert (np.abs(once - np.round(once / step) * step) <= 2.0**-11 * np.abs(once) + 2.0**-25).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_counts_near_the_last_digit(dtype: str) -> None:
    unit, rng = precision(dtype).unit, np.random.default_rng(0)
    for step in rng.uniform(1, 2, 20).astype(dtype):
        counts = np.floor(rng.uniform(0.25, 0.5, 1000) / unit).astype(dtype)
        assert same(pg.Quantized(float(step))(counts * step), counts * step)
    for step in (0.1, 1 / 3, 1.7):
        for count in (2.0**-3, 0.25, 0.5, 0.75, 1, 1.5) * np.asarray(1 / unit):
            x = ((count + np.arange(-50, 50)) * step).astype(dtype)
            y = pg.Quantized(step)(x)
            assert same(pg.Quantized(step)(y), y)
            assert (np.abs(y.astype(np.longdouble) - x) <= 0.5 * step + 2 * unit * np.abs(x)).all()


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f.gradient], ids=repr)
def test_derivatives(framework: Framework) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    assert framework.gradient is not None
    values = np.array([0.0, 0.5, -1.0, math.inf, -0.3])
    with framework.scope():
        x, w = framework.make(values, "float64"), framework.make(np.arange(1.0, 6.0), "float64")
        for constraint, expected in (
            (pg.Mask([1, 0, 1, 0, 0]), [0, 2, 0, 4, 5]),
            (pg.Quantized(0.5), [0] * 5),
            (pg.Quantized([0.0, 1.0]), [0] * 5),
        ):
            found = framework.read(framework.gradient(constraint.project, x, w))
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f.compile], ids=repr)
@pytest.mark.parametrize(
    "constraint",
    [pg.Mask([1, 0, 0, 1], 2.0), pg.Quantized(0.1), pg.Quantized([-1.0, -0.2, 0.4])],
    ids=repr,
)
def test_compiled_and_eager_agree(framework: Framework, constraint: pg.Constraint) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    assert framework.compile is not None
    with framework.scope():
        x = framework.make(entries(7, "float32"), "float32")
        compiled = framework.read(framework.compile(constraint.project)(x))
        assert same(compiled, framework.read(constraint.project(x)))


def test_rate_goes_part_of_the_way(framework: Framework) -> None:
    x = framework.make(np.array([1.0, -0.3, 0.5]), "float32")
    for constraint, expected in (
        (pg.Mask([1, 0, 1], 0.5, rate=0.5), [0.75, -0.3, 0.5]),
        (pg.Quantized(1.0, rate=0.25), [1.0, -0.225, 0.375]),
    ):
        np.testing.assert_allclose(framework.read(framework.project(constraint, x)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: pg.Mask(True), "single number"),
        (lambda: pg.Mask([[1, 0], [1]]), "mask is not an array"),
        (lambda: pg.Mask([math.nan]), "mask has a NaN"),
        (lambda: pg.Mask([1], math.inf), "value must be finite"),
        (lambda: pg.Mask([1], cast(Any, "zero")), "value"),
        (lambda: pg.Mask([1, 0]).project(np.ones((2, 3))), "mask has the shape"),
        (lambda: pg.Mask([1], [1.0, 2.0]).project(np.ones((2, 3))), "value has the shape"),
        (lambda: pg.Mask([1, 0]).bind((2, 3), "none"), "broadcast"),
        (lambda: pg.Mask([1, 0], rate=0), "rate"),
        (lambda: pg.Quantized(0), "at least 1e-37"),
        (lambda: pg.Quantized(-0.5), "at least 1e-37"),
        (lambda: pg.Quantized(math.inf), "finite"),
        (lambda: pg.Quantized([]), "shape"),
        (lambda: pg.Quantized([[1.0, 2.0]]), "shape"),
        (lambda: pg.Quantized([1.0, 1.0]), "increase"),
        (lambda: pg.Quantized([1.0, 0.0]), "increase"),
        (lambda: pg.Quantized([0.0, math.nan]), "NaN"),
        (lambda: pg.Quantized(0.5, rate=2), "rate"),
    ],
)
def test_what_cannot_be_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


@pytest.mark.parametrize(
    "constraint", [pg.Mask([[True, False]], 0.5), pg.Mask([3, 0], [1.0, 2.0]), pg.Quantized(0.25), pg.Quantized([0, 1])]
)
def test_shown_saved_and_compared(constraint: pg.Constraint) -> None:
    twins = pg.from_dict(json.loads(json.dumps(constraint.to_dict()))), eval(repr(constraint), vars(pg))
    for twin in twins:
        assert twin == constraint
        assert hash(twin) == hash(constraint)
    assert pg.Mask([5, 0]) == pg.Mask([True, False])
    assert constraint.bind((3, 2), "none") == constraint


@pytest.mark.parametrize("constraint", [pg.Mask([True, False]), pg.Quantized(0.5), pg.Quantized([0, 1])], ids=repr)
@pytest.mark.parametrize("shape", [(0, 2), (3, 0, 2)])
def test_empty_arrays(framework: Framework, constraint: pg.Constraint, shape: tuple[int, ...]) -> None:
    x = framework.make(np.zeros(shape), "float32")
    assert framework.read(framework.project(constraint, x)).shape == shape
    assert framework.read(constraint.violation(x)).shape == shape


def test_a_single_number_and_a_transposed_array() -> None:
    assert pg.Quantized(0.5)(np.asarray(0.7)) == 0.5
    assert pg.Quantized([0.0, 1.0])(np.asarray(0.7)) == 1.0
    torch = pytest.importorskip("torch")
    x = torch.arange(6.0).reshape(2, 3).T / 5
    assert pg.Quantized([0.0, 1.0])(x).tolist() == [[0, 1], [0, 1], [0, 1]]
    assert TORCH.project(pg.Mask([1, 0]), x)[:, 0].tolist() == [0, 0, 0]
