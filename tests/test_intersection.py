"""Intersections: which method is chosen, what is refused, and what is hard for an algorithm that iterates."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import LinearConstraint, linprog, minimize

import projgrad as pg
from tests.cases.intersections import sphere_in_box
from tests.frameworks import FRAMEWORKS, Framework

HELD = [[1.0], [0.0], [0.0]]  # the first of three

METHODS = [
    (pg.Box(-1, 0.5) & pg.NonNeg(), "one set"),
    (pg.MaxNorm(2.0, axis=0) & pg.MaxNorm(1.0, axis=0), "one set"),
    (pg.UnitNorm(axis=0) & pg.MaxNorm(1.0, axis=0), "one set"),
    (pg.MinMaxNorm(0.5, 2.0, axis=0) & pg.MaxNorm(1.0, axis=0), "one set"),
    (pg.Simplex(1.0, axis=0) & pg.NonNeg(), "one set"),
    (pg.Simplex(1.0, axis=0) & pg.MaxNorm(1.0, axis=0), "one set"),
    (pg.L1Ball(1.0, axis=0) & pg.L1Ball(2.0, axis=0), "one set"),
    (pg.UnitNorm(axis=0) & pg.Box(-1.0, 1.0), "one set"),
    (pg.SumTo(1.0, axis=0) & pg.NonNeg(), "sum and box"),
    (pg.Simplex(1.0, axis=0) & pg.Box(0.0, 0.5), "sum and box"),
    (pg.NonNeg() & pg.MaxNorm(1.0, axis=0), "cone, then ball"),
    (pg.Halfspace([1, 2, 3], axis=0) & pg.MaxNorm(1.0, axis=0), "cone, then ball"),
    (pg.ZeroMean(axis=0) & pg.Mask(HELD) & pg.MaxNorm(1.0, axis=0), "cone, then ball"),
    (pg.ZeroMean(axis=0) & pg.UnitNorm(axis=0), "affine set and norm"),
    (pg.Mask(HELD, 0.3) & pg.UnitNorm(axis=0), "affine set and norm"),
    (pg.SumTo(1.0, axis=0) & pg.MaxNorm(0.8, axis=0), "affine set and norm"),
    (pg.UnitNorm(axis=0) & pg.NonPos(), "orthant and sphere"),
    (pg.MinMaxNorm(0.5, 1.0, axis=0) & pg.NonNeg(), "orthant and sphere"),
    (pg.UnitNorm(axis=0) & pg.Box(0.0, 0.7), "sphere and box"),
    (pg.UnitNorm(axis=0) & pg.LInfBall(0.7), "sphere and box"),
    (pg.UnitNorm(axis=0) & pg.Box(0.0, 0.8) & pg.Mask(HELD), "sphere and box"),
    (pg.MaxNorm(1.0, axis=0) & pg.Box(-0.2, 0.9), "ball and box"),
    (pg.L1Ball(1.0, axis=0) & pg.NonNeg(), "orthant, then the other"),
    (pg.Cardinality(1, axis=0) & pg.Mask(HELD), "orthant, then the other"),
    (pg.L1Ball(1.5, axis=0) & pg.MaxNorm(1.0, axis=0), "dual root"),
    (pg.Simplex(1.0, axis=0) & pg.Mask(HELD), "dual root"),
    (pg.Hyperplane([1, 2, 3], 1.0, axis=0) & pg.Box(-1, 1), "dual root"),
    (pg.L2Ball(1.0, 0.5, axis=0) & pg.NonNeg(), "dual root"),
    (pg.Halfspace([1, 2, 3], axis=0) & pg.Halfspace([1, -2, 3], axis=0), "dual root"),
    (pg.Halfspace([1, 2, 3], axis=0) & pg.Halfspace([1, -2, 3], axis=0) & pg.ZeroMean(axis=0), "linear conditions"),
    (pg.MaxNorm(1.0, axis=0) & pg.MaxNorm(1.0, axis=1), "admm"),
    (pg.Intersection(pg.UnitNorm(axis=0), pg.Cardinality(2, axis=0), method="alternating"), "alternating"),
    (pg.Intersection(pg.NonNeg(), pg.MaxNorm(1.0, axis=0), method="admm"), "admm"),
]


@pytest.mark.parametrize(("constraint", "method"), METHODS, ids=str)
def test_the_method_is_chosen_and_shown(constraint: Any, method: str) -> None:
    assert f"method={method!r}" in repr(constraint)
    for twin in (eval(repr(constraint), vars(pg)), pg.from_dict(json.loads(json.dumps(constraint.to_dict())))):
        assert twin == constraint
        assert hash(twin) == hash(constraint)
    x = 2 * np.random.default_rng(0).standard_normal((3, 3))
    y = constraint.project(x)
    for part in constraint.sets:
        assert np.max(part.violation(y)) < 1e-12
    assert np.max(constraint.residual(x)) < 1e-6
    np.testing.assert_array_equal(constraint.project(y), y)
    assert constraint.contains(y)
    bound = constraint.bind((3, 3), "none")
    np.testing.assert_array_equal(bound.project(x), y)


def test_composition_has_the_laws_of_sets() -> None:
    a, b, c = pg.NonNeg(), pg.MaxNorm(1.0, axis=0), pg.ZeroMean(axis=0)
    assert a & a is a
    assert (a & b) & c == a & (b & c) == c & b & a
    assert a & b & a == a & b
    assert hash(a & b & c) == hash(c & a & b)
    assert a & b != a & c
    assert a & b != pg.Intersection(a, b, method="admm")
    with pytest.raises(TypeError):
        a & 3  # type: ignore[operator]


def test_incoming_axes_are_bound_in_every_part() -> None:
    both = pg.UnitNorm() & pg.Box(0.0, 0.9)
    assert both.bind((4, 3), (1,)) == pg.UnitNorm(axis=1) & pg.Box(0.0, 0.9)
    assert both.axis == "incoming"
    # which axes are whose is known only then
    mixed: Any = pg.MaxNorm(1.0) & pg.L1Ball(1.5, axis=-1)
    assert mixed.chosen is None
    assert "method" not in repr(mixed)
    assert mixed.bind((4, 3), (1,)).chosen == "dual root"
    assert mixed.bind((4, 3), (0,)).chosen == "admm"
    with pytest.raises(ValueError, match="layer"):
        both.project(np.ones((4, 3)))
    with pytest.raises(ValueError, match="no such axes"):
        both.bind((4, 3), "no such axes")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: pg.Box(0, 1) & pg.Box(2, 3), "empty"),
        (lambda: pg.NonNeg() & pg.Mask([1, 0], -1.0), "empty"),
        (lambda: pg.Box([0, 0], 1) & pg.Box([0, 0, 0], 1), "broadcast"),
        (lambda: pg.UnitNorm(axis=0) & pg.MaxNorm(0.5, axis=0), "empty"),
        (lambda: pg.Simplex(1.0, axis=0) & pg.SumTo(2.0, axis=0), "empty"),
        (lambda: pg.ZeroMean(axis=0) & pg.Simplex(1.0, axis=0), "empty"),
        (lambda: pg.UnitNorm(axis=0) & pg.Cardinality(2, axis=0), "alternating"),
        (lambda: pg.UnitNorm(axis=0) & pg.UnitNorm(axis=1), "not convex"),
        (lambda: pg.UnitNorm(axis=0) & pg.Box(-0.2, 0.9), "not convex"),
        (lambda: pg.NonNeg(rate=0.5) & pg.MaxNorm(1.0), "relaxed"),
        (lambda: pg.Intersection(), "no set"),
        (lambda: pg.Intersection(pg.NonNeg(), pg.MaxNorm(1.0), method="newton"), "not known"),
        (lambda: pg.Intersection(pg.NonNeg(), pg.MaxNorm(1.0), method="sum and box"), "does not fit"),
        (lambda: pg.Intersection(pg.NonNeg(), abs), "not a constraint"),  # type: ignore[arg-type]
        (lambda: pg.Intersection(pg.NonNeg(), pg.MaxNorm(1.0), rate=2.0), "rate"),
    ],
)
def test_what_cannot_be_is_refused_when_made(wrong: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        wrong()


@pytest.mark.parametrize(
    ("constraint", "shape", "message"),
    [
        (pg.UnitNorm(axis=0) & pg.Box(0.0, 0.05), (399, 2), "at least 400 are needed"),
        (pg.UnitNorm(axis=0) & pg.Box(0.5, 0.9), (5, 2), "at least 1.1"),
        (pg.MaxNorm(1.0, axis=0) & pg.Box(0.5, 0.9), (5, 2), "not at most 1"),
        (pg.Simplex(1.0, axis=0) & pg.Box(0.0, 0.2), (4, 2), "sum"),
        (pg.Simplex(1.0, axis=0) & pg.MaxNorm(0.4, axis=0), (4, 2), "norm of more than"),
    ],
)
def test_too_few_entries_are_refused_when_tagged(constraint: Any, shape: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        constraint.bind(shape, (0,))
    with pytest.raises(ValueError, match=message):
        constraint.project(np.ones(shape))


def test_unit_norm_with_small_weights(framework: Framework) -> None:
    """The question in the comments of the tutorial: unit norm, and each weight within [0, 0.05]."""
    both = pg.UnitNorm(axis=0) & pg.Box(0.0, 0.05)
    rng = np.random.default_rng(0)
    for n in (400, 401, 500, 3000):
        # few entries of a legal sign; enough of them; none; ties
        groups = [rng.standard_normal(n), rng.standard_normal(n) + 2, -rng.random(n), np.zeros(n), np.full(n, -1.0)]
        x = framework.make(np.stack(groups, axis=1), "float32")
        with framework.scope():
            found = framework.read(framework.project(both, x))
            assert both.contains(framework.make(found, "float32"))
        np.testing.assert_allclose(np.linalg.norm(found, axis=0), 1, rtol=2e-6)
        assert found.min() >= 0
        assert found.max() <= np.float32(0.05)
        for y, v in zip(found.T, groups, strict=True):
            best = largest_in_box(v, 0.05)
            assert y @ v >= best @ v - 1e-4 * np.linalg.norm(v)


def largest_in_box(v: np.ndarray, cap: float) -> np.ndarray:
    """The maximiser of ``sum(v x)`` over the unit sphere and [0, cap]^n, one sorted entry at a time."""
    order = np.argsort(-v, kind="stable")
    best = np.zeros_like(v)
    for full in range(v.size):  # that many at the cap; the rest share what is left, or the next one has it
        rest = 1 - full * cap**2
        if rest < -1e-9:
            break
        y = np.zeros_like(v)
        y[order[:full]] = cap
        left = np.maximum(v[order[full:]], 0)
        if not left.any():
            left[0] = 1.0
        y[order[full:]] = left / np.linalg.norm(left) * math.sqrt(max(rest, 0))
        if y.max() <= cap * (1 + 1e-9) and (not best.any() or y @ v > best @ v):
            best = y
    return best


@pytest.mark.parametrize("bounds", [(0.0, 0.6), (0.1, 0.8), (-0.6, 0.6), (-0.9, 0.0), (-0.9, -0.2)])
def test_a_sphere_in_a_box_is_that_of_brute_force(bounds: tuple[float, float]) -> None:
    rng = np.random.default_rng(1)
    both = pg.UnitNorm(axis=0) & pg.Box(*bounds)
    for trial in range(60):
        v = rng.standard_normal(4) * 10 ** rng.uniform(-2, 2) + rng.choice([-1.0, 0.0, 1.0])
        v = np.round(v) if trial % 3 == 0 else v
        y, best = both.project(v), sphere_in_box(v, *bounds)
        assert abs(np.linalg.norm(y) - 1) < 1e-14
        assert np.all((y >= bounds[0]) & (y <= bounds[1]))
        assert np.linalg.norm(y - v) <= np.linalg.norm(best - v) + 1e-12


def test_a_sphere_that_touches_the_corner_of_a_box() -> None:
    for n in (2, 3, 5, 7, 100, 400):
        cap = math.sqrt(1 / n)
        both = pg.UnitNorm(axis=0) & pg.Box(0.0, cap)
        for v in (np.arange(n) - n / 2, np.zeros(n), np.ones(n)):
            np.testing.assert_allclose(both.project(v), cap, rtol=1e-7)


def test_other_boxes_with_a_sphere_where_it_can_be_certified() -> None:
    both = pg.Intersection(pg.UnitNorm(axis=0), pg.Box(-0.2, 0.9), method="sphere and box")
    y = both.project(np.array([3.0, 2.0, -1.0]))
    assert abs(np.linalg.norm(y) - 1) < 1e-14
    assert both.contains(y)
    with pytest.raises(RuntimeError, match="residual"):
        both.project(np.array([-3.0, -2.0, -1.0]))


def test_shells_with_an_orthant() -> None:
    shell = pg.MinMaxNorm(1.0, 2.0, axis=0) & pg.NonNeg()
    expected = {
        (3.0, -1.0): (2.0, 0.0),
        (0.3, -1.0): (1.0, 0.0),
        (1.2, 0.9): (1.2, 0.9),
        (-1.0, -0.5): (0.0, 1.0),
        (-1.0, -1.0): (1.0, 0.0),
        (0.0, 0.0): (1.0, 0.0),
    }
    for given, nearest in expected.items():
        np.testing.assert_allclose(shell.project(np.array(given)), nearest, atol=1e-15)


def test_splitting_does_not_stop_where_little_changes() -> None:
    # a box and a line, 1000 away: the first sweeps change next to nothing, where the error is 0.9985
    plane, box = pg.Hyperplane([1.0, -1e-3], 0.0, axis=0), pg.Box(-1, 1)
    for v in ([1000.0, 1000.0], [0.0, 1000.0], [-1000.0, 0.5], [1e6, -1e6]):
        x = np.array(v)
        slow, exact = pg.Intersection(plane, box, method="admm"), plane & box
        np.testing.assert_allclose(slow.project(x), exact.project(x), atol=1e-7)
        assert slow.residual(x) <= 1e-7 * np.linalg.norm(x)
        along = np.clip(x @ [1e-3, 1] / (1 + 1e-6), -1, 1)
        np.testing.assert_allclose(exact.project(x), along * np.array([1e-3, 1.0]), atol=1e-12)


@pytest.mark.parametrize("depth", [1e-3, 1e-6, 1e-9])
def test_a_ball_and_a_shallow_halfspace(depth: float) -> None:
    both = pg.MaxNorm(1.0, axis=0) & pg.Halfspace([-1.0, 0.0], depth - 1, axis=0)
    y = both.project(np.array([0.0, 3.0]))
    np.testing.assert_allclose(y, [1 - depth, math.sqrt(depth * (2 - depth))], atol=1e-15 / math.sqrt(depth))


def test_a_wedge_of_a_hundredth(monkeypatch: pytest.MonkeyPatch) -> None:
    sine, cosine = math.sin(0.01), math.cos(0.01)
    wedge: Any = pg.Halfspace([sine, -cosine], axis=0) & pg.Halfspace([0.0, 1.0], axis=0)
    np.testing.assert_allclose(wedge.project(np.array([1.0, 0.5])), [0, 0], atol=1e-15)
    np.testing.assert_allclose(wedge.project(np.array([-1.0, 1.0])), [-1, 0], atol=1e-15)
    # and splitting says so rather than return what it has
    by_sweeps = pg.Intersection(*wedge.sets, method="admm")
    monkeypatch.setattr("projgrad.composition.splitting.MOST", 30)
    with pytest.raises(RuntimeError, match="alternating"):
        by_sweeps.project(np.array([1.0, 0.5], np.float64))


def test_a_simplex_and_a_halfspace_of_a_thousand() -> None:
    rng = np.random.default_rng(2)
    n = 1000
    normal, v = rng.standard_normal(n), 3 * rng.standard_normal(n)
    offset = float(normal @ pg.Simplex().project(v)) - 0.5
    y = (pg.Simplex() & pg.Halfspace(normal, offset)).project(v)
    assert abs(y.sum() - 1) < 1e-14
    assert y.min() >= 0
    assert normal @ y <= offset + 1e-13
    best = linprog(y - v, A_ub=[normal], b_ub=[offset], A_eq=[np.ones(n)], b_eq=[1.0])  # of the variational inequality
    assert best.fun >= (y - v) @ y - 1e-10 * np.linalg.norm(y - v)


def test_three_sets_are_those_of_a_solver() -> None:
    rng = np.random.default_rng(3)
    normal = np.array([1.0, 2.0, -1.0, 0.5])
    three = pg.Box(-1.0, 1.0) & pg.Halfspace(normal, -1.0, axis=0) & pg.MaxNorm(1.2, axis=0)
    for _ in range(10):
        v = 2 * rng.standard_normal(4)
        best = minimize(
            lambda y, v=v: ((y - v) ** 2).sum(),
            -normal / 4,
            bounds=[(-1, 1)] * 4,
            constraints=[
                {"type": "ineq", "fun": lambda y: -1.0 - normal @ y},
                {"type": "ineq", "fun": lambda y: 1.2**2 - y @ y},
            ],
            options={"ftol": 1e-14, "maxiter": 500},
        ).x
        np.testing.assert_allclose(three.project(v), best, atol=1e-5)


def test_sets_without_a_common_point_are_an_error_or_have_a_residual() -> None:
    apart: Any = pg.Hyperplane([1.0, 1.0], 5.0, axis=0) & pg.Box(0, 1)
    with pytest.raises(RuntimeError, match="no point in common"):
        apart.project(np.array([0.3, 0.2]))
    assert apart.residual(np.array([0.3, 0.2])) > 1


@pytest.mark.parametrize(
    "framework",
    [pytest.param(f, id=repr(f), marks=pytest.mark.slow if f.name == "torch" else ()) for f in FRAMEWORKS if f.compile],
)
def test_compiled_code_does_not_raise_but_tells_the_residual(framework: Framework) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    apart: Any = pg.Hyperplane([1.0, 1.0], 5.0, axis=0) & pg.Box(0, 1)
    assert framework.compile is not None
    with framework.scope():
        x = framework.make(np.array([0.3, 0.2]), "float64")
        assert np.isfinite(framework.read(framework.compile(apart.project)(x))).all()
        assert framework.read(framework.compile(apart.residual)(x)) > 1


def test_the_certificate_bounds_the_error() -> None:
    rng = np.random.default_rng(4)
    parts = [pg.MaxNorm(1.0, axis=0), pg.MaxNorm(1.0, axis=1), pg.Box(-0.4, 0.7)]
    both: Any = pg.Intersection(*parts, method="admm")
    for scale in (0.5, 2.0):
        x = scale * rng.standard_normal((4, 3))
        y = both.project(x)
        cones = [LinearConstraint(np.eye(12), -0.4, 0.7)]
        rows = [{"type": "ineq", "fun": lambda z, i=i: 1 - (z.reshape(4, 3)[i] ** 2).sum()} for i in range(4)]
        columns = [{"type": "ineq", "fun": lambda z, j=j: 1 - (z.reshape(4, 3)[:, j] ** 2).sum()} for j in range(3)]
        best = minimize(
            lambda z, x=x: ((z - x.ravel()) ** 2).sum() / 2,
            0 * x.ravel(),
            jac=lambda z, x=x: z - x.ravel(),
            constraints=[*cones, *rows, *columns],
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 1000},
        ).x
        assert np.linalg.norm(y.ravel() - best) <= both.residual(x) + 1e-5


def test_masks_leave_the_rest_of_the_radius() -> None:
    x = np.array([5.0, 3.0, -4.0])
    np.testing.assert_allclose(
        (pg.Mask([1, 0, 0], 0.6) & pg.UnitNorm(axis=0)).project(x), [0.6, 0.8 * 0.6, -0.8 * 0.8], atol=1e-15
    )
    np.testing.assert_allclose((pg.Mask([1, 0, 0]) & pg.Simplex(1.0)).project(x), [0, 1, 0], atol=1e-15)
    np.testing.assert_allclose((pg.Mask([0, 0, 1]) & pg.L1Ball(4.0)).project(x), [3, 1, 0], atol=1e-15)
    np.testing.assert_allclose((pg.Mask([1, 0, 0]) & pg.Cardinality(1)).project(x), [0, 0, -4], atol=1e-15)


def test_the_whole_can_be_relaxed() -> None:
    both = pg.NonNeg() & pg.MaxNorm(1.0, axis=0)
    x = np.array([3.0, -1.0])
    np.testing.assert_allclose(both.relaxed(0.5).project(x), [2.0, -0.5])
    assert both.relaxed(0.5) != both
    assert eval(repr(both.relaxed(0.5)), vars(pg)) == both.relaxed(0.5)
    with pytest.raises(ValueError, match="relax the whole"):
        both.relaxed(0.5) & pg.Box(0, 1)


def test_parts_can_have_schedules() -> None:
    both = pg.NonNeg() & pg.MaxNorm(pg.Schedule({0: 2.0, 10: 1.0}), axis=0)
    x = np.array([3.0, -1.0])
    np.testing.assert_allclose(both.project(x, step=0), [2, 0])
    np.testing.assert_allclose(both.project(x, step=10), [1, 0])
    np.testing.assert_allclose(both.project(x, step=np.asarray(5)), [1.5, 0])
    with pytest.raises(ValueError, match="empty"):
        pg.UnitNorm(axis=0) & pg.MaxNorm(pg.Schedule({0: 2.0, 10: 0.5}), axis=0)


def test_alternating_gets_into_all_sets() -> None:
    both = pg.Intersection(pg.UnitNorm(axis=0), pg.Cardinality(2, axis=0), method="alternating")
    y = both.project(np.array([3.0, -4.0, 0.1, 0.2]))
    np.testing.assert_allclose(y, [0.6, -0.8, 0, 0], atol=1e-15)
