"""Compiled code, long sums, derivatives and the ends of the range: the same numbers in all of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import projgrad as pg
from tests import oracles
from tests.frameworks import FRAMEWORKS, Framework, same, wide


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


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f.gradient], ids=repr)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-42, 1e-38, 2e-38, 1e-30, 1e30])
def test_gradients_are_finite_at_all_sizes(framework: Framework, size: float) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    assert framework.gradient is not None
    weights = framework.make(np.asarray([1.0, 2.0]), "float32")
    x = framework.make(np.asarray([3.0, 4.0]) * size, "float32")
    for constraint in (pg.UnitNorm(axis=0), pg.MinMaxNorm(0.5, 1.0, axis=0), pg.MaxNorm(1.0, axis=0)):
        assert np.isfinite(framework.read(framework.gradient(constraint.project, x, weights))).all()
        assert constraint.contains(constraint.project(x))


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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_groups_of_all_sizes_beside_each_other(framework: Framework, dtype: str) -> None:
    # ordinary groups by themselves take another way than those beside extreme ones, and must not depend on these
    sizes = {
        "float32": [3e-38, 1e-22, 1e-9, 1e3, 1e15, 1e19, 3e37],
        "float64": [1e-300, 1e-161, 1e-9, 1e3, 1e140, 1e300],
    }
    values = np.random.default_rng(0).uniform(0.5, 1, (300, 1)) * np.asarray(sizes[dtype])
    if dtype not in framework.dtypes:
        pytest.skip(f"{framework} has no {dtype}")
    runs: list[Any] = [framework.project]
    if framework.compile is not None:
        compiled = framework.compile(lambda x: pg.UnitNorm(axis=0).project(x))
        runs.append(lambda c, x: compiled(x))
    for project in runs:
        with framework.scope():
            for columns in (values, values[:, 2:4], values[:, :1], values[:, -1:]):
                y = framework.read(project(pg.UnitNorm(axis=0), framework.make(columns, dtype)))
                stored = framework.read(framework.make(columns, dtype))
                expected = [group / oracles.norm(group) for group in (stored / stored.max(0)).T]
                np.testing.assert_allclose(y.T, expected, rtol=pg.tolerance(dtype, 300, 1.0))


COMPILED = [f for f in FRAMEWORKS if f.compile]


@pytest.mark.parametrize("framework", COMPILED, ids=repr)
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_compiled_groups_do_not_depend_on_which_others_move(framework: Framework, rate: float) -> None:
    # where none moves, compiled code leaves out all else; where one is extreme, it takes the norms of all again
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    assert framework.compile is not None
    inside, outside, odd = [0.3, 0.9], [1.1, 30.0], [0.0, 1e-30, 1e25, 3e37, np.nan]
    directions = np.random.default_rng(0).uniform(0.5, 1, (5, 9))
    directions /= np.linalg.norm(directions, axis=0)
    for constraint in (pg.MaxNorm(1.0, axis=0, rate=rate), pg.MinMaxNorm(0.5, 1.0, axis=0, rate=rate)):
        compiled = framework.compile(constraint.project)
        for norms in (inside, outside, odd, inside + outside, inside + odd, outside + odd, inside + outside + odd):
            values = (directions[:, : len(norms)] * norms).astype("float32")
            found = framework.read(compiled(framework.make(values, "float32")))
            expected = constraint.project(values)
            np.testing.assert_allclose(found, expected, rtol=3e-7)
            kept = np.all(expected == values, axis=0)
            assert same(found[:, kept], values[:, kept])


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f.gradient], ids=repr)
def test_gradients_do_not_depend_on_which_others_move(framework: Framework) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    assert framework.gradient is not None
    random = np.random.default_rng(0)
    x, weights = random.normal(size=(2, 4, 3)).astype("float32")
    unit = x / np.linalg.norm(x, axis=0)
    tangent = weights - unit * (unit * weights).sum(0)
    for norms in ([0.5, 0.9, 0.1], [2.0, 0.9, 4.0], [2.0, 3.0, 4.0], [2.0, 0.9, 1e-25], [2.0, 0.9, 1e25]):
        found = framework.gradient(
            pg.MaxNorm(1.0, axis=0).project,
            framework.make(unit * norms, "float32"),
            framework.make(weights, "float32"),
        )
        for j, norm in enumerate(norms):
            expected = tangent[:, j] / norm if norm > 1 else weights[:, j]
            atol = 1e-6 / max(norm, 1.0)
            np.testing.assert_allclose(framework.read(found)[:, j], expected, rtol=1e-5, atol=atol)


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


@pytest.mark.parametrize(
    "make",
    [
        lambda r: pg.Box(-r, r),
        lambda r: pg.Box(-math.inf, r, rate=r),
        lambda r: pg.LInfBall(r),
        lambda r: pg.Quantized(r),
        lambda r: pg.L2Ball(r, 0.1),
        lambda r: pg.Simplex(r),
        lambda r: pg.CappedSimplex(r, 0.0, 0.9),
        lambda r: pg.L1Ball(r),
        lambda r: pg.L1Sphere(r),
        lambda r: pg.SparseSimplex(2, r),
        lambda r: pg.GroupL1Ball(r),
        lambda r: pg.L1InfBall(r),
        lambda r: pg.SumTo(r),
        lambda r: pg.Halfspace([1.0, 2.0, 3.0, 4.0, 5.0], r),
        lambda r: pg.Affine([[1.0, 2.0, 3.0, 4.0, 5.0]], r),
        lambda r: pg.Polyhedron([[1.0, 2.0, 3.0, 4.0, 5.0]], r),
        lambda r: pg.SecondOrderCone(r),
        lambda r: pg.Monotone(lower=-r, upper=r),
        lambda r: pg.TotalVariationBall(r),
        lambda r: pg.SpectralNorm(r),
        lambda r: pg.NuclearNorm(r),
        lambda r: pg.PositiveSemidefinite(r),
        lambda r: pg.Spectraplex(r),
        lambda r: pg.MaxNorm(r, axis=-1) & pg.Box(-0.3, 0.4 * r),
        lambda r: pg.MinMaxNorm(r, r, axis=-1) & pg.Box(0.0, 0.45),
    ],
    ids=lambda make: repr(make(0.5)),
)
def test_one_compiled_function_may_take_several_numbers(make: Any) -> None:
    torch = pytest.importorskip("torch")
    torch._dynamo.reset()
    x = torch.linspace(-1.0, 1.1, 25, dtype=torch.float64).reshape(5, 5)
    compiled = torch.compile(lambda constraint: constraint.project(x), fullgraph=True, backend="aot_eager")
    for number in (0.5, 0.7, 0.9):  # from the second one on, the number is an argument of what is compiled
        torch.testing.assert_close(compiled(make(number)), make(number).project(x))


def test_tensorflow_functions_may_leave_a_length_open() -> None:
    tf = pytest.importorskip("tensorflow")
    x = np.linspace(-2, 2, 200, dtype=np.float32).reshape(2, 100)
    for constraint in (pg.MaxNorm(1.0, axis=1), pg.UnitNorm(axis=1), pg.NonNeg(), pg.Box(np.zeros((2, 1)), 1)):
        traced = tf.function(constraint.project, input_signature=[tf.TensorSpec([None, 100])])
        np.testing.assert_allclose(traced(x), constraint.project(x), rtol=1e-6)
    with pytest.raises(ValueError, match="axis 0 is not known"):
        tf.function(pg.MaxNorm(1.0, axis=0).project, input_signature=[tf.TensorSpec([None, 100])])(x)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0, 1e30])
def test_a_norm_of_constants_compiled(value):
    jax = pytest.importorskip("jax")
    zeros = jax.numpy.zeros((3, 4))
    y = np.asarray(jax.jit(lambda x: pg.UnitNorm(axis=1).project(0.0 * x + zeros + value))(zeros))
    np.testing.assert_allclose(y, np.full((3, 4), 0.5), rtol=1e-6)
    y = np.asarray(jax.jit(lambda: pg.UnitNorm(axis=1).project(zeros + value))())
    np.testing.assert_allclose(y, np.full((3, 4), 0.5), rtol=1e-6)
