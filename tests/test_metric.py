"""The nearest point in a diagonal metric, for every set that has one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import projgrad as pg
from tests import oracles
from tests.cases import Case, all_cases, compiled
from tests.frameworks import FRAMEWORKS, IN_PLACE, JAX, KERAS, NUMPY, TENSORFLOW, TORCH, TORCH_GRAPH, Framework


def norms(constraint: Any, low: float, high: float) -> Case:
    """A set of `tests.test_sets`, which are not among the cases."""

    def off(y: np.ndarray) -> float:
        return max(oracles.norm(y) - high, low - oracles.norm(y), 0.0)

    return Case(constraint, [(1,), (6,)], off, oracles.shell(low, high), convex=low == 0)


COUPLED = [case for case in all_cases() if case.constraint.in_metric and case.constraint.axis != ()]
COUPLED += [
    norms(pg.MaxNorm(0.7, axis=-1), 0.0, 0.7),
    norms(pg.UnitNorm(axis=-1), 1.0, 1.0),
    norms(pg.MinMaxNorm(0.5, 1.0, axis=-1), 0.5, 1.0),
    norms(pg.MinMaxNorm(0.5, math.inf, axis=-1), 0.5, math.inf),
]
cases = pytest.mark.parametrize("case", COUPLED, ids=lambda case: repr(case.constraint))
SEEDS = st.integers(0, 2**32 - 1)
OTHERS = [
    pytest.param(f, id=repr(f), marks=pytest.mark.slow if f in (TENSORFLOW, KERAS) else ())
    for f in FRAMEWORKS
    if f not in (IN_PLACE, NUMPY)
]
SPANS = (0.0, 2.0, 6.0, 24.0)  # orders of magnitude between the weights of a group


def weights(seed: int, shape: tuple[int, ...], span: float) -> np.ndarray:
    """Random weights, of which every third is equal to its neighbours', at any scale."""
    rng = np.random.default_rng(seed)
    h = 10.0 ** (-span * rng.random(shape))
    h = np.where(rng.random(shape) < 0.3, 1.0, h)
    return h * 10.0 ** rng.uniform(-4, 4)


def slack(case: Case, dtype: str, *groups: Any) -> float:
    """What the points of groups may be off."""
    return sum(case.accuracy * float(pg.tolerance(dtype, group.size, np.linalg.norm(group))) for group in groups)


def check(case: Case, dtype: str, group: np.ndarray, h: np.ndarray, point: np.ndarray) -> None:
    """That `point` is in the set and nearest in the metric h."""
    tol = slack(case, dtype, group, point)
    assert case.distance(point) <= 1.5 * slack(case, dtype, point) + slack(case, "float64", group), (group, h, point)
    h = h / h.max()
    if case.convex:
        # it is so where it is the Euclidean nearest point of a step from it down the gradient, however long the step
        for length in (0.5, 1.0):
            stepped = point + length * h * (group - point)
            assert np.linalg.norm(case.oracle(stepped) - point) <= 8 * tol, (group, h, point)
    if isinstance(case.constraint, pg.Intersection) and case.constraint.chosen == "sphere and box":
        return  # of which it is not always known
    size = np.sqrt((h * (point - group) ** 2).sum())
    for other in rivals(case, group, h, point):
        assert size <= np.sqrt((h * (other - group) ** 2).sum()) + 4 * tol, (group, h, point, other)


def rivals(case: Case, group: np.ndarray, h: np.ndarray, point: np.ndarray) -> list[np.ndarray]:
    """Other points of the set: near, and that of the Euclidean metric."""
    rng = np.random.default_rng(0)
    near = [point + 10.0**k * rng.standard_normal(group.shape) for k in (-3, -1, 0)]
    near += [point + 0.1 * rng.standard_normal(group.shape) * np.abs(group - point).max() / np.sqrt(h).clip(1e-3)]
    found = [case.oracle(other) for other in (group, -group, *near, group * np.sqrt(h))]
    return [other for other in found if case.distance(other) <= slack(case, "float64", other)]


@cases
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=2)
@given(seed=SEEDS)
def test_the_nearest_point_in_a_metric(case: Case, dtype: str, seed: int) -> None:
    for shape in case.shapes:
        groups = case.groups(seed, shape).astype(dtype)
        for span in SPANS:
            h = weights(seed, groups.shape, min(span, case.span)).astype(dtype)
            found = case.constraint.project(groups, metric=h)
            assert found.dtype == groups.dtype
            for group, weight, point in zip(groups, h, found, strict=True):
                check(case, dtype, group.astype(float), weight.astype(float), point.astype(float))
            np.testing.assert_array_equal(case.constraint.project(found, metric=h), found)
            assert case.constraint.contains(found)


@cases
def test_equal_weights_are_no_weights(case: Case) -> None:
    for shape in case.shapes:
        groups = case.groups(1, shape)
        found = case.constraint.project(groups, metric=np.full((1,) * len(shape), 1e-7))
        atol = 2 * max(slack(case, "float64", group) for group in groups)
        np.testing.assert_allclose(found, case.constraint.project(groups), rtol=1e-13, atol=atol)


@cases
@pytest.mark.parametrize("framework", OTHERS, indirect=True)
def test_the_nearest_point_in_all_frameworks(framework: Framework, case: Case) -> None:
    compiled_only = framework in (JAX, TENSORFLOW)  # which prepare every operation on its own when it is not
    groups = case.groups(2, case.shapes[-1])
    h = weights(2, groups.shape, min(6.0, case.span))

    def project(x: Any, h: Any) -> Any:
        return case.constraint.project(x, metric=h)

    run: Callable[..., Any] = framework.compile(project) if compiled_only and framework.compile else project
    found = framework.read(run(framework.make(groups, "float64"), framework.make(h, "float64")))
    if case.convex:
        expected = case.constraint.project(groups, metric=h)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=case.accuracy * 1e-12 * np.abs(groups).max())
    for group, weight, point in zip(groups, h, found, strict=True):
        check(case, "float64", group, weight, point)


@compiled(COUPLED)
def test_compiled_by_torch(case: Case) -> None:
    if TORCH_GRAPH.missing:
        pytest.skip(f"{TORCH_GRAPH.needs} is not installed")
    shape = case.shapes[-1]
    groups = case.groups(3, shape)
    h = weights(3, groups.shape, min(6.0, case.span))
    assert TORCH_GRAPH.compile is not None
    with TORCH_GRAPH.scope():
        x, weight = TORCH_GRAPH.make(groups, "float64"), TORCH_GRAPH.make(h, "float64")
        eager = TORCH_GRAPH.read(case.constraint.project(x, metric=weight))
        compiled = TORCH_GRAPH.read(TORCH_GRAPH.compile(lambda x, h: case.constraint.project(x, metric=h))(x, weight))
    np.testing.assert_allclose(compiled, eager, rtol=1e-10, atol=case.accuracy * 1e-12 * np.abs(groups).max())


@cases
def test_any_axes_in_a_metric(case: Case) -> None:
    shape = case.shapes[-1]
    groups = case.groups(4, shape)[:6].reshape(2, 3, *shape)
    h = weights(4, groups.shape, 3.0)
    expected = case.constraint.project(groups, metric=h)
    order = (1, *range(2, 2 + case.rank), 0)
    constraint = case.along(tuple(order.index(2 + i) for i in range(case.rank)))
    found = constraint.project(np.transpose(groups, order), metric=np.transpose(h, order))
    found = np.transpose(found, np.argsort(order))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=case.accuracy * 1e-12 * np.abs(groups).max())


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.7), (1.0, 1.0), (0.5, 1.5)])
@pytest.mark.parametrize("framework", [NUMPY, TORCH, JAX, TENSORFLOW], indirect=True)
def test_norms_of_complex_groups_over_several_axes(framework: Framework, low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    real, imaginary = rng.standard_normal((2, 3, 4, 5)) * 10.0 ** rng.integers(-2, 2, (1, 4, 1))
    h = weights(0, real.shape, 6.0)
    case = norms(pg.MinMaxNorm(low, high, axis=(0, 2)), low, high)
    x, given = framework.make(real + 1j * imaginary, "complex128"), framework.make(h, "float64")
    found = framework.read(case.constraint.project(x, metric=given))
    for k in range(4):  # the real and the imaginary part of an entry are two entries of the same weight
        group = np.stack([real[:, k], imaginary[:, k]])
        point = np.stack([found.real[:, k], found.imag[:, k]])
        check(case, "float64", group, np.stack([h[:, k]] * 2), point)
        flat = pg.MinMaxNorm(low, high, axis=0).project(group.ravel(), metric=np.stack([h[:, k]] * 2).ravel())
        np.testing.assert_allclose(point.ravel(), flat, rtol=1e-9, atol=1e-12)


VECTORS: list[Any] = [
    pg.Simplex(2.0),
    pg.CappedSimplex(1.0, 0.0, 0.3),
    pg.L1Ball(),
    pg.L1Sphere(),
    pg.L2Ball(1.0, 0.5),
    pg.SumTo(1.0),
]
VECTORS += [pg.ZeroMean(), pg.Cardinality(3), pg.MaxNorm(1.0, axis=-1), pg.L1Ball() & pg.NonNeg()]
VECTORS += [pg.SumTo(1.0) & pg.Box(-1, 1)]


@pytest.mark.parametrize("constraint", VECTORS, ids=str)
@pytest.mark.parametrize("axes", [(0, 2), (2, 0), (0, 1), None])
def test_several_axes_in_a_metric(constraint: Any, axes: Any) -> None:
    rng = np.random.default_rng(0)
    x, h = rng.standard_normal((3, 5, 4)), 10.0 ** rng.uniform(-2, 0, (3, 5, 4))
    given = axes if axes is not None else (0, 1, 2)
    order = (*(d for d in range(3) if d not in given), *sorted(given))
    flat = [np.transpose(a, order).reshape(*(a.shape[d] for d in order[: 3 - len(given)]), -1) for a in (x, h)]
    expected = constraint.project(flat[0], metric=flat[1])
    parts: Any = constraint.sets if isinstance(constraint, pg.Intersection) else (constraint,)
    along = [replace(part, axis=axes) if part.axis != () else part for part in parts]
    whole = along[0] if len(along) == 1 else pg.Intersection(*along)
    found = np.transpose(whole.project(x, metric=h), order).reshape(flat[0].shape)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@cases
def test_derivatives_in_a_metric(case: Case) -> None:
    if TORCH.missing:
        pytest.skip(f"{TORCH.needs} is not installed")
    shape = case.shapes[-1]
    rng = np.random.default_rng(5)
    groups = np.stack([rng.standard_normal(shape), 3 * rng.standard_normal(shape), np.zeros(shape)])
    h, w = weights(5, groups.shape, 2.0), np.asarray(rng.standard_normal(groups.shape))
    weight = TORCH.make(h, "float64")
    assert TORCH.gradient is not None
    gradient = TORCH.read(
        TORCH.gradient(
            lambda x: case.constraint.project(x, metric=weight),
            TORCH.make(groups, "float64"),
            TORCH.make(w, "float64"),
        )
    )
    assert np.isfinite(gradient).all()
    if not case.smooth:
        return
    step = 1e-6
    for i in range(2):
        direction = rng.standard_normal(shape)
        ends = [case.constraint.project(groups[i] + s * step * direction, metric=h[i]) for s in (-1, 1)]
        difference = float(((ends[1] - ends[0]) * w[i]).sum() / (2 * step))
        np.testing.assert_allclose((gradient[i] * direction).sum(), difference, rtol=1e-4, atol=1e-5)


@cases
def test_huge_and_tiny_in_a_metric(case: Case) -> None:
    some_groups = case.groups(6, case.shapes[-1])[[1, 4, 6]]
    groups = np.concatenate([some_groups * size for size in (1e-38, 1e-30, 1e15, 1e30)]).astype(np.float32)
    h = weights(6, groups.shape, case.span).astype(np.float32)
    found = case.constraint.project(groups, metric=h)
    assert np.isfinite(found).all()
    for point in found:
        assert case.distance(point.astype(float)) <= 1.5 * slack(case, "float32", point.astype(float)) + 1e-37
    for group, wrong in zip(groups[1:3], (np.nan, np.inf), strict=True):
        group.reshape(-1)[-1] = wrong
    bad = case.constraint.project(groups[:4], metric=h[:4])
    assert np.isnan(bad[1:3]).all()
    assert np.isfinite(bad[[0, 3]]).all()


ENTRYWISE = [pg.Box(-1, 2), pg.NonNeg(), pg.Mask([1, 0, 0, 1]), pg.Quantized(0.5), pg.LInfBall(1.0)]


@pytest.mark.parametrize("constraint", ENTRYWISE, ids=str)
def test_single_entries_do_not_mind(constraint: Any) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4))
    np.testing.assert_array_equal(constraint.project(x, metric=weights(0, x.shape, 6.0)), constraint.project(x))


NONE: list[Any] = [
    pg.SpectralNorm(),
    pg.NuclearNorm(),
    pg.Rank(1),
    pg.Orthogonal(),
    pg.PositiveSemidefinite(),
    pg.Spectraplex(),
]
NONE += [pg.Correlation(), pg.SparseSimplex(1), pg.as_constraint(abs)]


@pytest.mark.parametrize("constraint", NONE, ids=str)
def test_what_has_no_form_in_a_metric_says_so(constraint: Any) -> None:
    assert not constraint.in_metric
    with pytest.raises(ValueError, match=r'not implemented; leave it at metric="euclidean"'):
        constraint.project(np.eye(3), metric=np.ones((3, 3)))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (np.ones(3) + 1j, "real"),
        (np.zeros(3), "positive and finite"),
        (np.asarray([1.0, np.nan, 1.0]), "positive and finite"),
        (-1.0, "positive and finite"),
        (np.ones(4), r"metric has the shape \(4,\), which does not broadcast to \(2, 3\)"),
        (np.ones((1, 2, 3)), "does not broadcast"),
    ],
)
def test_a_wrong_metric(metric: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pg.Simplex().project(np.ones((2, 3)), metric=metric)


def test_relaxed_and_scheduled_in_a_metric() -> None:
    x, h = np.asarray([3.0, 1.0, -1.0]), np.asarray([1.0, 0.1, 10.0])
    full = pg.Simplex().project(x, metric=h)
    np.testing.assert_allclose(pg.Simplex().relaxed(0.25).project(x, metric=h), 0.75 * x + 0.25 * full)
    scheduled = pg.Simplex(pg.Schedule({0: 2.0, 10: 1.0}))
    np.testing.assert_allclose(scheduled.project(x, metric=h, step=10), full)


def test_each_slice_in_its_own_weights() -> None:
    x, h = np.random.default_rng(0).standard_normal((4, 3)), weights(1, (4, 3), 3.0)
    found = pg.Slices([pg.Simplex(), pg.MaxNorm(0.5, axis=1)]).project(x, metric=h)
    np.testing.assert_array_equal(found[:2], pg.Simplex().project(x[:2], metric=h[:2]))
    np.testing.assert_array_equal(found[2:], pg.MaxNorm(0.5, axis=1).project(x[2:], metric=h[2:]))
    with pytest.raises(ValueError, match="not implemented"):
        pg.Slices([pg.Simplex(), pg.SpectralNorm()]).project(np.ones((4, 2)), metric=1.0)


def test_hard_cases_of_a_sphere() -> None:
    sphere = pg.UnitNorm(axis=0)
    found = sphere.project(np.asarray([0.0, 0.1]), metric=np.asarray([1e-6, 1.0]))
    np.testing.assert_allclose(found, [np.sqrt(1 - 0.01), 0.1], rtol=1e-5)
    half = 0.5**0.5
    found = sphere.project(np.zeros(4), metric=np.asarray([1.0, 0.5, 0.5, 1.0]))
    np.testing.assert_allclose(found, [0, half, half, 0])


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.5, 1.5), (0.5, math.inf)])
def test_no_point_of_a_circle_is_nearer(low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 2)) * rng.choice([1e-3, 0.3, 1.0, 3.0], (200, 1)) * (rng.random((200, 2)) < 0.9)
    h = 10.0 ** rng.uniform(-6, 0, (200, 2))
    found = pg.MinMaxNorm(low, high, axis=-1).project(x, metric=h)
    angles = np.linspace(0, 2 * np.pi, 20_001)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    radii = np.where(np.linalg.norm(x, axis=-1) > high, high, low)[:, None, None]
    least = (h[:, :, None] * (radii * circle - x[:, :, None]) ** 2).sum(1).min(-1)
    outside = np.linalg.norm(found - x, axis=-1) > 1e-12
    assert outside.sum() > 50
    size = (h * (found - x) ** 2).sum(-1)
    assert (size[outside] <= least[outside] + 1e-12 * h.max(-1)[outside]).all()


@pytest.mark.parametrize("framework", [JAX, TENSORFLOW], indirect=True)
def test_derivatives_of_intersections_in_a_metric(framework: Framework) -> None:
    rng = np.random.default_rng(0)
    x, h, w = 2 * rng.standard_normal(5), weights(0, (5,), 2.0), rng.standard_normal(5)
    ball = pg.MaxNorm(1.0, axis=-1)
    parts = [pg.NonNeg(), pg.L1Ball(1.5), pg.Box(-0.4, 0.5), pg.L2Ball(1.0, 0.5), pg.Halfspace([1, 2, 3, 4, 5], 0.1)]
    for both in [ball & part for part in parts] + [pg.UnitNorm(axis=-1) & pg.NonNeg()]:
        given = framework.make(h, "float64")
        assert framework.gradient is not None
        found = framework.read(
            framework.gradient(
                lambda v, both=both, given=given: both.project(v, metric=given),
                framework.make(x, "float64"),
                framework.make(w, "float64"),
            )
        )
        moves = 1e-6 * np.eye(5)
        ends = [[(both.project(x + s * e, metric=h) * w).sum() for s in (-1, 1)] for e in moves]
        np.testing.assert_allclose(found, [(b - a) / 2e-6 for a, b in ends], rtol=1e-4, atol=1e-5)


def test_no_digits_left_of_a_root() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=6).astype(np.float32)
    both = pg.Monotone(axis=0) & pg.SumTo(1.0, axis=0)
    for span in (2.0, 6.0, 12.0):
        h = (10 ** rng.uniform(-span, span, 6)).astype(np.float32)
        found = both.project(x, metric=h)
        assert both.contains(found)
        assert np.abs(found).max() < 100


def test_the_word_is_for_wrappers() -> None:
    with pytest.raises(TypeError, match="for the wrappers"):
        pg.Simplex().project(np.ones(3), metric="optimizer")
    with pytest.raises(ValueError, match="metric=.* is not known"):
        pg.Tag(pg.Simplex(), metric=np.ones(6))  # type: ignore[arg-type]
