"""Ordered sequences: what is refused, what equals what, long sequences, and where two sets meet."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
from sklearn.isotonic import isotonic_regression

import projgrad as pg
from projgrad.sets import monotone
from tests.cases.sequences import CASES, convex, in_parts, in_variation, pooled, turning_once, with_peak


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pg.Monotone(1), TypeError, "Monotone: increasing=1 is not a bool"),
        (lambda: pg.Monotone(lower=2.0, upper=1.0), ValueError, "must not exceed"),
        (lambda: pg.Monotone(lower=math.inf), ValueError, "nor leave only infinity"),
        (lambda: pg.Monotone(lower=math.nan), ValueError, "lower has a NaN"),
        (lambda: pg.Monotone(upper=[1.0, 2.0]), ValueError, "upper must be a number"),
        (lambda: pg.Monotone(rate=0.0), ValueError, "rate=0.0"),
        (lambda: pg.Unimodal(1.5), TypeError, "Unimodal: peak=1.5 is not an int"),
        (lambda: pg.Unimodal(-1), ValueError, "Unimodal: peak=-1 must be at least 0"),
        (lambda: pg.Unimodal(valley="yes"), TypeError, "Unimodal: valley='yes' is not a bool"),
        (lambda: pg.Unimodal(3).project(np.zeros((4, 3))), ValueError, "no peak=3 in a sequence of 3"),
        (lambda: pg.Unimodal(3).bind((4, 3), (1,)), ValueError, "no peak=3 in a sequence of 3"),
        (lambda: pg.TotalVariationBall(-1.0), ValueError, "radius=-1.0 is a sum of distances"),
        (lambda: pg.TotalVariationBall("wide"), TypeError, "is not a number"),
        (lambda: pg.Convex(axis="rows"), ValueError, "axis='rows' is not known"),
        (lambda: pg.Convex(axis=2).project(np.zeros((2, 2))), ValueError, "axis 2 does not exist"),
    ],
)
def test_what_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def sequences(n: int) -> dict[str, np.ndarray]:
    """Long sequences on which pooling, splitting and bending have much to do, one after the other or all at once."""
    rng = np.random.default_rng(n)
    noise, rise = rng.standard_normal(n), np.linspace(0.0, 1.0, n)
    return {
        "noise": noise,
        "noise on a rise": 10 * rise + noise,
        "sorted": np.sort(noise),
        "falling": -np.sort(noise),
        "a low last": np.append(np.arange(n - 1.0), -n),
        "a high first": np.append(1e3 * n, np.arange(n - 1.0)),
        "a walk": np.cumsum(noise),
        "ties": np.round(noise),
        "many sizes": np.exp(8 * noise),
        "shrinking": np.exp(-80 * rise),
        "far from 0": 1e5 + noise,
        "almost convex": (rise - 0.4) ** 2 + 1e-3 * noise,
        "waves": np.sin(30 * rise),
    }


def off(y: np.ndarray, best: np.ndarray, dtype: str, x: np.ndarray) -> float:
    """The distance of `y` from `best` in tolerances of `x`."""
    return float(np.linalg.norm(y - best) / pg.tolerance(dtype, x.size, np.linalg.norm(x)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sequences(2))
def test_long_monotone_sequences(name: str, dtype: str) -> None:
    x = sequences(10_000)[name].astype(dtype)
    best = isotonic_regression(x.astype(np.float64))
    assert off(pg.Monotone().project(x), best, dtype, x) <= 1.1
    assert off(pg.Monotone(False).project(-x), -best, dtype, x) <= 1.1
    assert np.all(np.diff(pg.Monotone().project(x)) >= 0)


@pytest.fixture
def without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monotone, "_pooling_loop", lambda: None)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sequences(2))
def test_long_monotone_sequences_by_halves(name: str, dtype: str, without_scipy: None) -> None:
    x = sequences(3000)[name].astype(dtype)
    best = isotonic_regression(x.astype(np.float64))
    y = pg.Monotone().project(x)
    assert off(y, best, dtype, x) <= 1.1
    assert np.all(np.diff(y) >= 0)
    best = isotonic_regression(-x.astype(np.float64), increasing=False)
    assert off(pg.Monotone(False).project(-x), best, dtype, x) <= 1.1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("span", [6.0, 24.0])
def test_weights_of_all_sizes_by_halves(span: float, dtype: str, without_scipy: None) -> None:
    for n in (9, 40, 300):
        rng = np.random.default_rng(n)
        for v in (rng.standard_normal(n), -np.sort(rng.standard_normal(n)), np.exp(3 * rng.standard_normal(n))):
            x = v.astype(dtype)
            h = np.where(rng.random(n) < 0.3, 1.0, 10.0 ** (-span * rng.random(n))).astype(dtype)
            best = pooled_exactly(x.astype(np.float64), h.astype(np.float64))
            assert off(pg.Monotone().project(x, metric=h), best, dtype, x) <= 1.1


def test_monotone_sequences_compiled() -> None:
    jax = pytest.importorskip("jax")
    every = np.stack(list(sequences(40).values())).astype(np.float32)
    found = np.asarray(jax.jit(pg.Monotone().project)(every))
    for x, y in zip(every, found, strict=True):
        assert off(y, isotonic_regression(x.astype(np.float64)), "float32", x) <= 1.1


@pytest.mark.parametrize("start", [2.0**-1060, 2.0**-500, 2.0**1021])
def test_the_loop_neither_overflows_nor_underflows(start: float) -> None:
    x = np.random.default_rng(5).standard_normal(100)
    best = isotonic_regression(x)
    least = 2.0**-1074 / start
    np.testing.assert_allclose(pg.Monotone().project(x * start) / start, best, rtol=1e-14, atol=least)
    np.testing.assert_allclose(
        pg.Monotone().project(x * start, metric=np.full(100, 0.5)) / start, best, rtol=1e-14, atol=2 * least
    )


def test_a_long_level_stretch_has_its_mean_to_the_last_digits() -> None:
    x = -np.sort(np.random.default_rng(7).standard_normal(1_000_000))
    assert off(pg.Monotone().project(x), np.full(x.size, math.fsum(x) / x.size), "float64", x) <= 0.5


def test_many_rows_and_one_that_holds_already() -> None:
    """Where one of many rows is in the set, it stays bit for bit, and the others are projected."""
    x = np.random.default_rng(6).standard_normal((500, 700)).astype(np.float32)
    x[137] = np.sort(x[137])
    x[138, 3] = np.nan
    y = pg.Monotone().project(x)
    np.testing.assert_array_equal(y[137], x[137])
    assert np.isnan(y[138]).all()
    rest = [i for i in range(500) if i not in (137, 138)]
    best = np.stack([isotonic_regression(row) for row in x[rest].astype(np.float64)])
    np.testing.assert_allclose(y[rest], best, atol=3e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sequences(2))
def test_middling_sequences(name: str, dtype: str) -> None:
    x = sequences(80)[name].astype(dtype)
    wide = x.astype(np.float64)
    assert off(pg.Unimodal(30).project(x), with_peak_by_levels(30, wide), dtype, x) <= 1.1
    turned = pg.Unimodal().project(x)
    short = np.linalg.norm(turned - wide) - np.linalg.norm(in_parts(wide) - wide)
    assert short <= pg.tolerance(dtype, x.size, np.linalg.norm(x))
    radius = 0.1 * float(np.abs(np.diff(wide)).sum())
    assert off(pg.TotalVariationBall(radius).project(x), in_variation(radius, wide), dtype, x) <= 1.1


@pytest.mark.parametrize("name", sequences(2))
def test_convex_sequences_and_their_multipliers(name: str) -> None:
    """By the optimality conditions: what is taken off is the second sum of multipliers, 0 where the sequence bends."""
    x = sequences(300)[name]
    y = pg.Convex().project(x)
    rest = y - x
    multipliers = np.cumsum(np.cumsum(rest))[:-2]
    scale = np.linalg.norm(x)
    assert np.diff(y, 2).min() >= -1e-15 * scale
    assert abs(rest.sum()) <= 1e-12 * scale
    assert abs(rest @ np.arange(300.0)) <= 1e-10 * scale
    assert multipliers.min() >= -1e-10 * scale
    assert abs(multipliers @ np.diff(y, 2)) <= 1e-12 * scale**2


@pytest.mark.parametrize("name", sequences(2))
@pytest.mark.parametrize("constraint", [pg.Convex(), pg.TotalVariationBall(3.0)], ids=repr)
def test_long_sequences_in_single_precision(constraint: pg.Constraint, name: str) -> None:
    x = sequences(1000)[name].astype(np.float32)
    wide = constraint.project(x.astype(np.float64))
    assert off(constraint.project(x), wide, "float32", x) <= 1.2


def with_peak_by_levels(peak: int, v: np.ndarray) -> np.ndarray:
    """Isotonic regression of the sides, and the largest of the means of the peak with the highest of these."""
    left, right = isotonic_regression(v[:peak]), isotonic_regression(v[peak + 1 :], increasing=False)
    high = np.sort(np.append(left, right))[::-1]
    level = max(np.append(v[peak], high[:k]).mean() for k in range(high.size + 1))
    return np.concatenate([np.minimum(left, level), [level], np.minimum(right, level)])


def test_the_oracles_agree_with_each_other() -> None:
    rng = np.random.default_rng(0)
    for n in (6, 20):
        v = rng.standard_normal(n)
        np.testing.assert_allclose(pooled(v), isotonic_regression(v), atol=1e-14)
        np.testing.assert_allclose(with_peak(n - 1, v), pooled(v), atol=1e-14)
        np.testing.assert_allclose(with_peak(3, v), with_peak_by_levels(3, v), atol=1e-14)


def test_a_solver_agrees() -> None:
    cvxpy = pytest.importorskip("cvxpy")
    v = np.random.default_rng(1).standard_normal(25)
    x = cvxpy.Variable(v.size)
    for constraint, oracle, condition in (
        (pg.Convex(), convex, cvxpy.diff(x, 2) >= 0),
        (pg.TotalVariationBall(3.0), lambda v: in_variation(3.0, v), cvxpy.norm1(cvxpy.diff(x)) <= 3),
        (pg.Monotone(), pooled, cvxpy.diff(x) >= 0),
    ):
        cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(x - v)), [condition]).solve(cvxpy.CLARABEL)
        np.testing.assert_allclose(oracle(v), x.value, atol=1e-5)
        np.testing.assert_allclose(constraint.project(v), x.value, atol=1e-5)


def test_a_solver_agrees_in_a_metric() -> None:
    cvxpy = pytest.importorskip("cvxpy")
    rng = np.random.default_rng(3)
    v, h = rng.standard_normal(25), 10.0 ** (-6 * rng.random(25))
    x = cvxpy.Variable(v.size)
    rise = cvxpy.diff(x)
    for constraint, conditions in (
        (pg.Monotone(lower=-0.3, upper=0.2), [rise >= 0, x >= -0.3, x <= 0.2]),
        (pg.Monotone(False), [rise <= 0]),
        (pg.Unimodal(10), [rise[:10] >= 0, rise[10:] <= 0]),
        (pg.Unimodal(10, valley=True), [rise[:10] <= 0, rise[10:] >= 0]),
        (pg.TotalVariationBall(3.0), [cvxpy.norm1(rise) <= 3]),
    ):
        loss = cvxpy.sum_squares(cvxpy.multiply(np.sqrt(h), x - v))
        exact = {f"tol_{name}": 1e-11 for name in ("gap_abs", "gap_rel", "feas")}
        cvxpy.Problem(cvxpy.Minimize(loss), conditions).solve(cvxpy.CLARABEL, **exact)
        np.testing.assert_allclose(constraint.project(v, metric=h), x.value, atol=1e-4, err_msg=repr(constraint))


def pooled_exactly(v: np.ndarray, h: np.ndarray) -> np.ndarray:
    """`pooled` with weights, in fractions: weights of all sizes leave no digits to a floating-point sum."""
    pools: list[tuple[Fraction, Fraction, int]] = []
    for x, weight in zip(v.tolist(), h.tolist(), strict=True):
        pool = (Fraction(x) * Fraction(weight), Fraction(weight), 1)
        while pools and pools[-1][0] * pool[1] > pool[0] * pools[-1][1]:
            total, size, count = pools.pop()
            pool = (pool[0] + total, pool[1] + size, pool[2] + count)
        pools.append(pool)
    return np.repeat([float(total / size) for total, size, _ in pools], [count for _, _, count in pools])


def in_variation_exactly(radius: float, v: np.ndarray, h: np.ndarray) -> np.ndarray:
    """`in_variation` with weights, in fractions, for neighbours that differ."""
    total = [Fraction(x) * Fraction(weight) for x, weight in zip(v.tolist(), h.tolist(), strict=True)]
    size, count = [Fraction(weight) for weight in h.tolist()], [1] * v.size
    sign = np.sign(np.diff(v)).astype(int).tolist()
    while True:
        ends = [0, *sign, 0]
        mean = [x / weight for x, weight in zip(total, size, strict=True)]
        push = [(ends[i + 1] - ends[i]) / weight for i, weight in enumerate(size)]
        start = [s * (mean[i + 1] - mean[i]) for i, s in enumerate(sign)]
        speed = [s * (push[i] - push[i + 1]) for i, s in enumerate(sign)]
        merge = [a / b if b > 0 else None for a, b in zip(start, speed, strict=True)]
        first = min((m for m in merge if m is not None), default=None)
        done = (sum(start) - Fraction(radius)) / sum(speed) if sign else Fraction(0)
        if first is None or done <= first:
            return np.repeat([float(a + done * b) for a, b in zip(mean, push, strict=True)], count)
        k = merge.index(first)
        total[k : k + 2], size[k : k + 2] = [total[k] + total[k + 1]], [size[k] + size[k + 1]]
        count[k : k + 2] = [count[k] + count[k + 1]]
        del sign[k]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("span", [6.0, 24.0])
@pytest.mark.parametrize("n", [9, 40, 300])
def test_weights_of_all_sizes(n: int, span: float, dtype: str) -> None:
    """Light entries lose no digits to heavy ones, here or there in the sequence."""
    rng = np.random.default_rng(n)
    for v in (rng.standard_normal(n), -np.sort(rng.standard_normal(n)), np.exp(3 * rng.standard_normal(n))):
        x = v.astype(dtype)
        h = np.where(rng.random(n) < 0.3, 1.0, 10.0 ** (-span * rng.random(n))).astype(dtype)
        h = h / h.max()
        wide = (x.astype(np.float64), h.astype(np.float64))
        assert off(pg.Monotone().project(x, metric=h), pooled_exactly(*wide), dtype, x) <= 1.1
        if n <= 40:
            radius = float(np.float32(0.1 * np.abs(np.diff(wide[0])).sum()))
            best = in_variation_exactly(radius, *wide)
            assert off(pg.TotalVariationBall(radius).project(x, metric=h), best, dtype, x) <= 1.5
            costs = [metric_cost(p, *wide) for p in range(n)]
            found = weighted_distance(pg.Unimodal().project(x, metric=h), *wide)
            assert found - min(costs) <= pg.tolerance(dtype, n, np.linalg.norm(x))
            one = weighted_distance(pg.Unimodal(n // 3).project(x, metric=h), *wide)
            assert abs(one - costs[n // 3]) <= pg.tolerance(dtype, n, np.linalg.norm(x))


def weighted_distance(y: np.ndarray, v: np.ndarray, h: np.ndarray) -> float:
    return float(np.sqrt((h * (y - v) ** 2).sum()))


def metric_cost(peak: int, v: np.ndarray, h: np.ndarray) -> float:
    """The distance of `v` from the sequences with this peak: the largest mean of the peak with what is above it."""
    left, right = pooled_exactly(v[:peak], h[:peak]), -pooled_exactly(-v[peak + 1 :], h[peak + 1 :])
    sides, others = np.append(left, right), np.append(h[:peak], h[peak + 1 :])
    total, size = Fraction(v[peak]) * Fraction(h[peak]), Fraction(h[peak])
    level = total / size
    for k in np.argsort(-sides):
        total, size = total + Fraction(sides[k]) * Fraction(others[k]), size + Fraction(others[k])
        level = max(level, total / size)
    y = np.concatenate([np.minimum(left, float(level)), [float(level)], np.minimum(right, float(level))])
    return weighted_distance(y, v, h)


def test_a_level_beyond_a_heavy_entry() -> None:
    """The light entries meet at 1, however little that is worth beside the heavy one below it."""
    x, h = np.asarray([0.5] * 3 + [3.0] * 14 + [-1.0] * 15), np.asarray([1.0] * 3 + [1e-20] * 29)
    np.testing.assert_allclose(pg.Monotone().project(x, metric=h), pooled_exactly(x, h), rtol=1e-15)


def test_equivalences() -> None:
    x = np.random.default_rng(2).standard_normal((5, 12))
    same, close = np.testing.assert_array_equal, partial(np.testing.assert_allclose, atol=1e-14)
    close(pg.Unimodal(11).project(x), pg.Monotone().project(x))
    close(pg.Unimodal(0).project(x), pg.Monotone(False).project(x))
    same(pg.Unimodal(4, valley=True).project(x), -pg.Unimodal(4).project(-x))
    same(pg.Unimodal(valley=True).project(x), -pg.Unimodal().project(-x))
    same(pg.Concave().project(x), -pg.Convex().project(-x))
    close(pg.Monotone(False).project(x), pg.Monotone().project(x[:, ::-1])[:, ::-1])
    same(pg.Monotone(lower=-0.2, upper=0.3).project(x), np.clip(pg.Monotone().project(x), -0.2, 0.3))
    constant = np.broadcast_to(x.mean(1, keepdims=True), x.shape)
    close(pg.TotalVariationBall(0.0).project(x), constant)
    same(pg.TotalVariationBall(1e3).project(x), x)


def test_bounds_of_0_and_the_order_hold_exactly() -> None:
    x = np.array([-1e-9, 1.0, 1.0 - 1e-7, 2.0], np.float32)
    y = pg.Monotone(lower=0.0).project(x)
    assert y[0] == 0
    assert np.all(np.diff(y) >= 0)
    assert not pg.Monotone().contains(x)
    x = np.array([0.0, 1.0, 1.0 - 1e-7, 1.0, 0.0], np.float32)
    assert turning_once(pg.Unimodal().project(x)) == 0
    assert not pg.Unimodal().contains(x)


def test_all_peaks_in_a_batch() -> None:
    """Every sequence has its own peak; of two as good, the first is taken."""
    x = np.array([[0.0, 3.0, 0.0, 1.0], [1.0, 0.0, 3.0, 0.0], [2.0, 0.0, 0.0, 2.0]])
    expected = [[0.0, 3.0, 0.5, 0.5], [0.5, 0.5, 3.0, 0.0], [2.0, 2 / 3, 2 / 3, 2 / 3]]
    np.testing.assert_allclose(pg.Unimodal().project(x), expected, atol=1e-15)


@pytest.mark.parametrize(
    "constraint", [pg.Monotone(), pg.Unimodal(9), pg.Convex(), pg.TotalVariationBall(2.0)], ids=repr
)
def test_projecting_again_changes_nothing(constraint: pg.Constraint) -> None:
    (case,) = (case for case in CASES if case.constraint == pg.Convex())
    groups = np.concatenate([case.groups(seed, (33,)) for seed in range(40)])
    y = constraint.project(groups)
    np.testing.assert_array_equal(constraint.project(y), y)


@pytest.mark.parametrize("constraint", [pg.Monotone(), pg.Unimodal(), pg.Unimodal(peak=1), pg.TotalVariationBall(1e38)])
def test_entries_near_the_largest_number(constraint: Any) -> None:
    x = np.asarray([3e38, -2e38, 1e38, 2e38], np.float32)
    exact = constraint.project(x.astype(np.float64))
    np.testing.assert_allclose(constraint.project(x), exact, atol=1e33)


def test_smooth_and_alternating_sequences_get_there() -> None:
    t = np.arange(1500.0)
    for x in (np.sin(t), (-1) ** t * (1 + t), np.sin(1e-3 * t * t)):
        y = pg.TotalVariationBall(1.0).project(x)
        assert abs(np.abs(np.diff(y)).sum() - 1) < 1e-12
