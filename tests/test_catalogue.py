"""What every set of the catalogue promises, on every framework; the cases are in `tests/cases`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import projgrad as pg
from projgrad.precision import precision
from tests.cases import Case, all_cases, compiled
from tests.frameworks import (
    FRAMEWORKS,
    IN_PLACE,
    JAX,
    KERAS,
    NUMPY,
    STRICT,
    TENSORFLOW,
    TORCH,
    TORCH_GRAPH,
    Framework,
    same,
)

CASES = all_cases()
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case.constraint))
compiled_cases = compiled(CASES)
SEEDS = st.integers(0, 2**32 - 1)

# What runs without "-m slow": every dtype somewhere. JAX and TensorFlow, which prepare every operation on its own when
# it is not compiled, are compared as compiled code below.
QUICK = {
    (NUMPY, "float16"),
    (NUMPY, "float64"),
    (STRICT, "float64"),
    (TORCH, "bfloat16"),
    (TORCH, "float64"),
    (IN_PLACE, "float32"),
}
PAIRS = [
    pytest.param((f, dtype), id=f"{f}-{dtype}", marks=() if (f, dtype) in QUICK else pytest.mark.slow)
    for f in FRAMEWORKS
    for dtype in ("float16", "bfloat16", "float32", "float64")
    if dtype in f.dtypes
]


def some(frameworks: Any, slow: tuple[Framework, ...]) -> Any:
    """Runs a test on these frameworks, on some of them only with "-m slow"."""
    chosen = [pytest.param(f, id=repr(f), marks=pytest.mark.slow if f in slow else ()) for f in frameworks]
    return pytest.mark.parametrize("framework", chosen, indirect=True)


everywhere = some(FRAMEWORKS, slow=(STRICT, JAX, TENSORFLOW, KERAS))


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Framework, str]]:
    framework, dtype = request.param
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    with framework.scope():
        yield framework, dtype


def tolerances(case: Case, dtype: str, groups: np.ndarray) -> np.ndarray:
    """The tolerance that belongs to the norm of each group."""
    norms = np.sqrt((groups.reshape(len(groups), -1) ** 2).sum(1))
    return case.accuracy * pg.tolerance(dtype, groups[0].size, norms)


@cases
@pytest.mark.parametrize("pair", PAIRS, indirect=True)
@settings(max_examples=2)
@given(seed=SEEDS)
def test_the_nearest_point_of_the_set(pair: tuple[Framework, str], case: Case, seed: int) -> None:
    framework, dtype = pair
    if precision(dtype).unit > 1e-6 and not case.low:
        pytest.skip("not for low precision")
    for shape in case.shapes:
        x = framework.make(case.groups(seed, shape), dtype)
        stored = framework.read(x)  # after rounding to the dtype
        y = framework.project(case.constraint, x)
        found = framework.read(y)
        expected = np.stack([case.oracle(group) for group in stored])
        # what the oracle has to subtract from is the larger one, and its digits are those that can be lost
        tol = tolerances(case, dtype, expected) + tolerances(
            case, "float64" if dtype == "float64" else "float32", stored
        )
        for group, point, best, t in zip(stored, found, expected, tol, strict=True):
            assert case.distance(point) <= 1.5 * t, (group, point)
            assert np.linalg.norm(point - group) <= np.linalg.norm(best - group) + 2 * t, (group, point, best)
            if case.convex:
                assert np.linalg.norm(point - best) <= 4 * t, (group, point, best)
        # what is in the set comes back bit for bit
        assert same(framework.read(framework.project(case.constraint, y)), found)
        assert case.constraint.contains(y)


@cases
@everywhere
def test_the_violation_is_the_distance(framework: Framework, case: Case) -> None:
    for shape in case.shapes:
        groups = case.groups(1, shape)
        x = framework.make(groups, "float64")
        expected = [np.linalg.norm(group - case.oracle(group)) for group in groups]
        scale = case.accuracy * np.linalg.norm(groups) * 1e-9
        np.testing.assert_allclose(framework.read(case.constraint.violation(x)), expected, rtol=1e-9, atol=scale)


@cases
@everywhere
def test_any_axes_give_what_the_last_ones_give(framework: Framework, case: Case) -> None:
    shape = case.shapes[-1]
    groups = case.groups(2, shape)[:6].reshape(2, 3, *shape)
    expected = framework.read(case.constraint.project(framework.make(groups, "float64")))
    for order in ((1, *range(2, 2 + case.rank), 0), (*range(2, 2 + case.rank), 0, 1)):
        moved = tuple(order.index(2 + i) for i in range(case.rank))
        constraint = case.along(moved)
        x = framework.make(np.transpose(groups, order), "float64")
        found = np.transpose(framework.read(constraint.project(x)), np.argsort(order))
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=case.accuracy * 1e-12 * np.abs(groups).max())


@cases
@everywhere
def test_a_group_that_is_not_finite_becomes_nan(framework: Framework, case: Case) -> None:
    groups = case.groups(3, case.shapes[-1])[:6]
    alone = framework.read(framework.project(case.constraint, framework.make(groups, "float32")))
    for group, bad in zip(groups[1:4], (np.nan, np.inf, -np.inf), strict=True):
        group.reshape(-1)[-1] = bad
    found = framework.read(framework.project(case.constraint, framework.make(groups, "float32")))
    assert np.isnan(found[1:4]).all()
    rest = alone[[0, 4, 5]]
    np.testing.assert_allclose(found[[0, 4, 5]], rest, rtol=1e-5, atol=1e-6 * np.nanmax(np.abs(rest)))


@cases
@everywhere
def test_huge_and_tiny_entries(framework: Framework, case: Case) -> None:
    some_groups = case.groups(4, case.shapes[-1])[[1, 4, 6]]
    groups = np.concatenate([some_groups * size for size in (1e-38, 1e-30, 1e15, 1e30)])
    x = framework.make(groups, "float32")
    y = framework.project(case.constraint, x)
    found = framework.read(y)
    assert np.isfinite(found).all()
    for point, t in zip(found, tolerances(case, "float32", found), strict=True):
        # in a set without bounds, as far as the digits of the entries go
        assert case.distance(point) <= 1.5 * t + 1e-37
    assert same(framework.read(framework.project(case.constraint, y)), found)


@compiled_cases
@some([TORCH, TORCH_GRAPH, JAX, TENSORFLOW], slow=(TORCH,))
def test_compiled_and_eager_agree(framework: Framework, case: Case) -> None:
    shape = case.shapes[-1]
    groups = case.groups(5, shape)
    assert framework.compile is not None
    with framework.scope():
        x = framework.make(groups, "float64")
        if framework is JAX and case.convex:  # eager JAX is slow, and the point is the same
            eager = case.constraint.project(groups)
        else:
            eager = framework.read(case.constraint.project(x))
        compiled = framework.read(framework.compile(case.constraint.project)(x))
    np.testing.assert_allclose(compiled, eager, rtol=1e-10, atol=case.accuracy * 1e-12 * np.abs(groups).max())


@compiled_cases
@some([f for f in FRAMEWORKS if f.gradient], slow=())
def test_derivatives_are_those_of_differences(framework: Framework, case: Case) -> None:
    assert framework.gradient is not None
    shape = case.shapes[-1]
    rng = np.random.default_rng(6)
    on = case.oracle(rng.standard_normal(shape))
    groups = np.stack(
        [rng.standard_normal(shape), 3 * rng.standard_normal(shape), 0.1 * rng.standard_normal(shape), on]
    )
    weights = rng.standard_normal(groups.shape)
    with framework.scope():
        x, w = framework.make(groups, "float64"), framework.make(weights, "float64")
        found = framework.read(framework.gradient(case.constraint.project, x, w))
    assert np.isfinite(found).all()
    if not case.smooth:
        return
    h = 1e-6
    for group, weight, gradient in zip(groups[:3], weights[:3], found[:3], strict=True):
        direction = rng.standard_normal(shape)
        ends = [(case.constraint.project(group + s * h * direction) * weight).sum() for s in (-1, 1)]
        difference = (ends[1] - ends[0]) / (2 * h)
        np.testing.assert_allclose((gradient * direction).sum(), difference, rtol=1e-4, atol=1e-5)


@compiled_cases
@some([f for f in FRAMEWORKS if f.gradient], slow=())
def test_derivatives_are_finite_at_zero(framework: Framework, case: Case) -> None:
    assert framework.gradient is not None
    for values in (np.zeros((2, *case.shapes[-1])), np.ones((2, *case.shapes[-1]))):
        with framework.scope():
            x, w = framework.make(values, "float64"), framework.make(values + 1.0, "float64")
            assert np.isfinite(framework.read(framework.gradient(case.constraint.project, x, w))).all()


@cases
def test_constraints_can_be_shown_saved_and_compared(case: Case) -> None:
    constraint = case.constraint
    assert pg.from_dict(constraint.to_dict()) == constraint
    assert hash(pg.from_dict(constraint.to_dict())) == hash(constraint)
    text = repr(constraint)
    if "<array" not in text:
        assert eval(text, vars(pg) | {"float": float}) == constraint
    empty = np.zeros((0, *case.shapes[-1]))
    assert constraint.project(empty).shape == empty.shape
    assert constraint.contains(empty)
    assert constraint.relaxed(0.5).rate == 0.5 * constraint.rate
