"""What every set promises, on every framework and dtype; one test for each promise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import projgrad as pg
from projgrad.precision import precision
from tests import oracles
from tests.frameworks import FRAMEWORKS, JAX, NUMPY, STRICT, TENSORFLOW, TORCH, Framework, wide

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


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit for bit, signs of zero included."""
    return bool(np.array_equal(a, b, equal_nan=True) and np.array_equal(np.signbit(a), np.signbit(b)))


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
    if size > 1e-38 or framework.name in ("numpy", "strict", "torch", "torch-in-place"):  # others flush to zero
        unit = framework.read(framework.project(pg.UnitNorm(axis=0), x))
        np.testing.assert_allclose(unit, np.full((3, 1), (1 + 1j) / math.sqrt(6)), rtol=1e-6)
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


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f.compile], ids=repr)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_compiled_and_eager_agree(framework: Framework, dtype: str) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    values = np.random.default_rng(0).standard_normal((300, 4)) * [1e-3, 1, 1e4, 0]
    assert framework.compile is not None
    for constraint in (
        pg.MaxNorm(1.0, axis=0),
        pg.MinMaxNorm(0.5, 2.0, rate=0.5, axis=0),
        pg.UnitNorm(axis=0),
        pg.Box([-0.1, -0.2, -0.3, 0], 0.3),
    ):
        with framework.scope():
            x = framework.make(values, dtype)
            eager = constraint.project(x)
            compiled = framework.compile(constraint.project)(x)
            # within half of the tolerance: what one path made is left alone by the other
            np.testing.assert_allclose(
                framework.read(compiled), framework.read(eager), rtol=pg.tolerance(dtype, 300, 1.0) / 2
            )
            if constraint.rate == 1:
                assert same(framework.read(constraint.project(compiled)), framework.read(compiled))
                assert same(framework.read(framework.compile(constraint.project)(eager)), framework.read(eager))
            np.testing.assert_allclose(
                framework.read(framework.compile(constraint.violation)(x)),
                framework.read(constraint.violation(x)),
                rtol=1e-4,
                atol=1e-6,
            )


def long_groups(length: int, axis: int) -> np.ndarray:
    """Equal small entries, whose squares a naive sum adds with the same error each time, and one large entry."""
    values = np.full((length, 2) if axis == 0 else (2, length), 0.1234567, np.float32)
    values[(0, slice(None)) if axis == 0 else (slice(None), 0)] = 1.0
    return values


@pytest.mark.parametrize("length", [4096, 65_537, 1_000_000])
@pytest.mark.parametrize("axis", [0, 1])
def test_reductions_are_accurate(framework: Framework, length: int, axis: int) -> None:
    values = long_groups(length, axis)
    x = framework.make(values, "float32")
    norm = oracles.norm(values[:, 0] if axis == 0 else values[0])
    y = framework.read(framework.project(pg.UnitNorm(axis=axis), x))
    for group in y if axis == 1 else y.T:
        assert abs(oracles.norm(group) - 1) <= pg.tolerance("float32", length, 1.0)
    violation = framework.read(pg.MaxNorm(1.0, axis=axis).violation(x))
    np.testing.assert_allclose(violation, norm - 1, rtol=2 * pg.tolerance("float32", length, 1.0))


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f.compile], ids=repr)
@pytest.mark.parametrize("length", [4096, 1_000_000])
@pytest.mark.parametrize("axis", [0, 1])
def test_compiled_reductions_are_accurate(framework: Framework, length: int, axis: int) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    assert framework.compile is not None
    x = framework.make(long_groups(length, axis), "float32")
    y = framework.read(framework.compile(pg.UnitNorm(axis=axis).project)(x))
    for group in y if axis == 1 else y.T:
        assert abs(oracles.norm(group) - 1) <= pg.tolerance("float32", length, 1.0)


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f.gradient], ids=repr)
def test_gradients_are_those_of_the_closed_form(framework: Framework) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    assert framework.gradient is not None
    rng = np.random.default_rng(0)
    values = rng.standard_normal((5, 4)) * [0.1, 1.0, 3.0, 0.0]
    values[:, 1] /= np.linalg.norm(values[:, 1])  # on the sphere already
    weights = rng.standard_normal((5, 4))
    norm = np.linalg.norm(values, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        direction = values / norm
    radial = direction * (direction * weights).sum(0)  # the part of the weights along each group
    tangent = (weights - radial) / norm
    outside = norm > 1 + 1e-6
    cases = [
        (pg.MaxNorm(1.0, axis=0), np.where(outside, tangent, weights)),
        (pg.UnitNorm(axis=0), np.where(norm > 0, tangent, 0)),
        (pg.MinMaxNorm(0.5, 2.0, axis=0), np.where(norm < 0.5, tangent / 2, np.where(norm > 2, tangent * 2, weights))),
        (pg.NonNeg(), np.where(values < 0, 0, weights)),
        (pg.Box(-0.5, 0.5), np.where(np.abs(values) > 0.5, 0, weights)),
        (pg.NonNeg(rate=0.25), np.where(values < 0, 0.75 * weights, weights)),
    ]
    for constraint, expected in cases:
        with framework.scope():
            expected = (
                np.where(norm > 0, expected, 0) if isinstance(constraint, pg.MinMaxNorm | pg.UnitNorm) else expected
            )
            found = framework.gradient(
                constraint.project, framework.make(values, "float64"), framework.make(weights, "float64")
            )
            np.testing.assert_allclose(framework.read(found), expected, rtol=1e-9, atol=1e-12, err_msg=str(constraint))


def test_gradients_of_the_violation_are_finite_at_zero() -> None:
    torch = pytest.importorskip("torch")
    x = torch.zeros(3, 2, requires_grad=True)
    pg.MaxNorm(1.0, axis=0).violation(x).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("compiled", [False, True])
def test_one_definition_is_right_in_extremes_of_single_precision(framework: Framework, compiled: bool) -> None:
    unit, small = pg.UnitNorm(axis=0), pg.MaxNorm(1e-3, axis=0)
    to_unit: Any = lambda x: framework.project(unit, x)  # noqa: E731
    to_small: Any = lambda x: framework.project(small, x)  # noqa: E731
    if compiled:
        if framework.compile is None:
            pytest.skip(f"{framework} does not compile")
        to_unit, to_small = framework.compile(unit.project), framework.compile(small.project)
    for size in (3e37, 3e38, 1e-30, 1e-37, 1e20):
        x = framework.make(np.full((400, 2), size, np.float32), "float32")
        np.testing.assert_allclose(framework.read(to_unit(x)), 0.05, rtol=1e-6)
        np.testing.assert_allclose(framework.read(to_small(x)), min(size, 5e-5), rtol=1e-6)


def test_wide_reads_what_was_made(framework: Framework) -> None:
    values = np.asarray([[1.5, -2.0]])
    np.testing.assert_array_equal(framework.read(framework.make(values, "float32")), wide(values))


def test_compiled_functions_may_have_several_axes_and_radii() -> None:
    torch = pytest.importorskip("torch")
    torch._dynamo.reset()
    x = torch.linspace(-1, 1, 60).reshape(3, 4, 5)
    for constraint in [pg.MaxNorm(r, axis=axis) for r, axis in ((0.5, 0), (0.7, 1), (0.9, (0, -1)), (1.1, None))]:
        for dynamic in (None, True):
            compiled = torch.compile(constraint.project, fullgraph=True, backend="aot_eager", dynamic=dynamic)
            torch.testing.assert_close(compiled(x), constraint.project(x))


def test_tensorflow_functions_may_leave_a_length_open() -> None:
    tf = pytest.importorskip("tensorflow")
    x = np.linspace(-2, 2, 200, dtype=np.float32).reshape(2, 100)
    for constraint in (pg.MaxNorm(1.0, axis=1), pg.UnitNorm(axis=1), pg.NonNeg(), pg.Box(np.zeros((2, 1)), 1)):
        traced = tf.function(constraint.project, input_signature=[tf.TensorSpec([None, 100])])
        np.testing.assert_allclose(traced(x), constraint.project(x), rtol=1e-6)
    with pytest.raises(ValueError, match="axis 0 is not known"):
        tf.function(pg.MaxNorm(1.0, axis=0).project, input_signature=[tf.TensorSpec([None, 100])])(x)


def test_the_metric_is_not_ignored() -> None:
    with pytest.raises(NotImplementedError):
        pg.MaxNorm(1.0, axis=0).solve(np.ones(2), None, metric=np.ones(2))  # type: ignore[arg-type]
