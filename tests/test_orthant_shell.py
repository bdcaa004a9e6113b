"""Signs with a sphere or a shell in a metric, where one entry may leave 0 against its sign."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import projgrad as pg
from tests.frameworks import FRAMEWORKS, JAX, KERAS, TENSORFLOW, TORCH, TORCH_GRAPH, Framework, same

INF = math.inf
SPANS = (0.0, 0.3, 2.0, 6.0, 12.0, 24.0)  # orders of magnitude between the weights of a group
SHELLS = ((1.0, 1.0), (0.5, 2.0), (1.0, INF), (3.0, 4.0), (0.0, 0.5))
BOUNDS = ((0.0, INF), (-INF, 0.0), (0.0, 0.0), (-INF, INF))
DIGITS = 150
SEEDS = st.integers(0, 2**32 - 1)


# -- the nearest point, by trying every set of entries that are not 0 -------------------------------------------------


def halved(f: Callable[[Decimal], Decimal], low: Decimal, high: Decimal) -> Decimal:
    """Where f gets from more than 0, at `low`, to less; both ends are positive."""
    for _ in range(160):
        middle = (low * high).sqrt()
        low, high = (middle, high) if f(middle) > 0 else (low, middle)
    return high


def multipliers(v: list[Decimal], h: list[Decimal], radius: Decimal, chosen: tuple[int, ...]) -> Iterable[Decimal]:
    """All l for which ``y = h v / (h + l)`` on the chosen entries is positive and has the norm."""

    def over(at: Decimal) -> Decimal:
        return sum((h[i] * v[i] / (h[i] + at)) ** 2 for i in chosen) - radius**2  # type: ignore[return-value]

    def falling(at: Decimal) -> Decimal:
        return sum((h[i] * v[i]) ** 2 / (h[i] + at) ** 3 for i in chosen)  # type: ignore[return-value]

    low = max((-h[i] for i in chosen if v[i] > 0), default=None)
    high = min((-h[i] for i in chosen if v[i] < 0), default=None)
    far = 2 * max(h) + 2 * sum(h[i] * abs(v[i]) for i in chosen) / radius
    small = Decimal("1e-120")
    if high is None and low is not None:
        yield low + halved(lambda d: over(low + d), small * far, far)
    elif low is None and high is not None:
        yield high - halved(lambda d: over(high - d), small * far, far)
    elif low is not None and high is not None and low < high:
        width = high - low
        least = low + halved(lambda d: falling(low + d), small * width, (1 - small) * width)
        if over(least) < 0:
            yield low + halved(lambda d: over(low + d), small * width, least - low)
            yield high - halved(lambda d: over(high - d), small * width, high - least)


def on_sphere(v: list[Decimal], h: list[Decimal], radius: Decimal, supports: Iterable[tuple[int, ...]]) -> Decimal:
    """The least ``sum(h (y - v)^2)`` for y >= 0 of this norm, with some of these entries not 0."""
    found = []
    for chosen in supports:
        zeros = [i for i in chosen if v[i] == 0]
        rest = tuple(i for i in chosen if v[i] != 0)
        levels = multipliers(v, h, radius, rest) if not zeros else [-h[zeros[0]]] if len(zeros) == 1 else []
        for level in levels:
            if any((h[i] + level) * v[i] <= 0 for i in rest):
                continue
            y = {i: h[i] * v[i] / (h[i] + level) for i in rest}
            left = radius**2 - sum(c * c for c in y.values())
            if zeros and left >= 0:
                y[zeros[0]] = left.sqrt()
            if not zeros or left >= 0:
                found.append(sum((h[i] * (y.get(i, 0) - v[i]) ** 2 for i in range(len(v))), Decimal(0)))
    return min(found)


def exactly(values: Any) -> list[Decimal]:
    return [Decimal(float(value)) for value in values]


def least_value(
    v: np.ndarray, h: np.ndarray, bounds: list[tuple[float, float]], low: float, high: float, *, pairs: bool = False
) -> Decimal:
    """The least ``sum(h (y - v)^2)`` in the bounds and the shell.

    Args:
        pairs: try the entries with their sign, and these with one more, and no other sets of entries.
    """
    with localcontext() as context:
        context.prec = DIGITS
        sides = [
            0 if a == b else (-1 if b == 0 or (a < 0 and x < 0) else 1) for (a, b), x in zip(bounds, v, strict=True)
        ]
        given, weights = exactly(v), exactly(h)
        w = [x * side for x, side in zip(given, sides, strict=True)]
        held = sum((c * x * x for c, x, side in zip(weights, given, sides, strict=True) if side == 0), Decimal(0))
        norm = sum((x * x for x in w if x > 0), Decimal(0)).sqrt()
        if Decimal(low) <= norm <= Decimal(high):
            return held + sum((c * x * x for c, x in zip(weights, w, strict=True) if x < 0), Decimal(0))
        usable = [i for i, side in enumerate(sides) if side != 0]
        right = tuple(i for i in usable if w[i] > 0)
        supports: Iterable[tuple[int, ...]]
        if pairs:
            supports = [right, *((*right, i) for i in usable if i not in right)]
        else:
            supports = (s for k in range(1, len(usable) + 1) for s in itertools.combinations(usable, k))
        return held + on_sphere(w, weights, Decimal(low if norm < low else high), supports)


def value(y: np.ndarray, v: np.ndarray, h: np.ndarray) -> Decimal:
    with localcontext() as context:
        context.prec = DIGITS
        return sum((c * (a - b) ** 2 for a, b, c in zip(*map(exactly, (y, v, h)), strict=True)), Decimal(0))


def excess(y: np.ndarray, v: np.ndarray, h: np.ndarray, best: Decimal) -> float:
    """By what part the value of y is too large, beyond what comes from the rounding of its entries."""
    unit = float(np.finfo(y.dtype).eps) * max(1.0, float(np.abs(np.concatenate([y, v])).max()))
    rounding = Decimal(16 * v.size * unit**2 * float(h.max()))
    return float((value(y, v, h) - best - rounding) / max(best, Decimal("1e-300")))


# -- groups -------------------------------------------------------------------------------------------------------


def some_weights(rng: np.random.Generator, size: int) -> np.ndarray:
    h = 10.0 ** (-rng.choice(SPANS) * rng.random(size))
    return rng.choice(h, size) if rng.random() < 0.3 else h


def some_group(rng: np.random.Generator, size: int) -> np.ndarray:
    """Numbers of all signs or one, with zeros, within the sphere or beyond, with parts of different size, with ties."""
    v = rng.standard_normal(size) * 10 ** rng.uniform(-4, 1)
    kind = rng.integers(6)
    if kind == 1:
        v = -np.abs(v)
    if kind == 2:
        v[rng.random(size) < 0.5] = 0
    if kind == 3:
        v *= rng.uniform(0.2, 0.99) / np.linalg.norm(v)
    if kind >= 4:
        some = v < 0 if kind == 4 else v > 0
        v[some] *= 10 ** rng.uniform(-8, 0)
    return rng.choice(v, size) if rng.random() < 0.2 else v


def norm_between(low: float, high: float) -> pg.Constraint:
    if low == high == 1:
        return pg.UnitNorm(axis=-1)
    return pg.MinMaxNorm(low, high, axis=-1)


def some_set(rng: np.random.Generator, size: int) -> tuple[pg.Constraint, list[tuple[float, float]], float, float]:
    low, high = SHELLS[rng.integers(len(SHELLS))]
    kind = rng.integers(3)
    picked = rng.integers(0, 4, size) if kind == 2 else np.full(size, kind)
    picked[0] = 0 if np.all(picked == 2) else picked[0]
    bounds = [BOUNDS[i] for i in picked]
    signs: pg.Constraint = pg.Box(*map(np.array, zip(*bounds, strict=True)))
    if kind < 2:
        signs = (pg.NonNeg(), pg.NonPos())[kind]
    return norm_between(low, high) & signs, bounds, low, high


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=100)
@given(seed=SEEDS)
def test_no_other_set_of_entries_is_better(dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 7))
    both, bounds, low, high = some_set(rng, size)
    v, h = some_group(rng, size).astype(dtype), some_weights(rng, size).astype(dtype)
    found = both.project(v, metric=h)
    assert both.contains(found)
    assert same(both.project(found, metric=h), found)
    assert excess(found, v, h, least_value(v, h, bounds, low, high)) <= 100 * float(np.finfo(dtype).eps), (v, h, found)


@settings(max_examples=10)
@given(seed=SEEDS)
def test_in_longer_groups(seed: int) -> None:
    rng = np.random.default_rng(seed)
    v, h = some_group(rng, 40), some_weights(rng, 40)
    v *= rng.uniform(0.1, 0.99) / max(float(np.linalg.norm(np.maximum(v, 0))), 1e-3)
    found = (pg.UnitNorm(axis=-1) & pg.NonNeg()).project(v, metric=h)
    assert excess(found, v, h, least_value(v, h, [(0.0, INF)] * 40, 1.0, 1.0, pairs=True)) <= 1e-13


def almost_alike(count: int, part: float, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and weights so that the best points with any one of `count` entries have one value, up to `apart`.

    It is `part` of the value without any. Below the multiplier of that point, which is looked for first, every
    multiplier L has one weight w and one number for which ``A(L) + b^2 / (L - w)`` has it as its least value.
    """
    right, weights = np.array([0.3, 0.1]), np.array([1.0, 0.7])

    def at(level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        grown = weights / (weights - level[:, None])
        return level * (1 - (right**2 * grown).sum(1)), 1 - ((right * grown) ** 2).sum(1)

    low, high = 0.0, 0.7
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at(np.array([middle]))[1][0] > 0 else (low, middle)
    goal = part * at(np.array([low]))[0][0]
    level = low * np.linspace(0.02, 0.98, 400)
    gain, rest = at(level)
    w = level - (goal - gain) / rest
    able = np.flatnonzero((gain < goal) & (w > 0))
    some = able[np.linspace(0, able.size - 1, count).astype(int)]
    pull = ((goal - gain) / np.sqrt(rest))[some] * (1 + apart * np.random.default_rng(0).random(count))
    return np.r_[right, -pull / w[some]], np.r_[weights, w[some]]


@pytest.mark.parametrize(("count", "limit"), [(10, 1e-14), (60, 1e-9)])
@pytest.mark.parametrize("part", [0.9, 0.99, 0.999])
def test_many_entries_are_almost_alike(count: int, part: float, limit: float) -> None:
    for apart in (0.0, 1e-6, 1e-3, 1e-2):
        v, h = almost_alike(count, part, apart)
        found = (pg.UnitNorm(axis=-1) & pg.NonNeg()).project(v, metric=h)
        best = least_value(v, h, [(0.0, INF)] * v.size, 1.0, 1.0, pairs=True)
        assert excess(found, v, h, best) <= limit


SIGNED = pg.UnitNorm(axis=-1) & pg.NonNeg()


@pytest.mark.parametrize(
    ("v", "h", "expected"),
    [
        ([-0.1, 0.05], [1e-3, 1.0], [0.998746, 0.050055]),
        ([-0.1, 0.05], [1e-200, 1.0], [math.sqrt(1 - 0.05**2), 0.05]),
        ([-0.1, -0.05], [1e-3, 1.0], [1.0, 0.0]),  # 1 + 2 a times the weight counts
        ([-0.1, -0.05], [1.0, 0.99], [0.0, 1.0]),
        ([-1.0, -4.0], [1.0, 0.4], [1.0, 0.0]),
        ([0.0, 0.0, 0.0], [1.0, 0.5, 0.5], [0.0, 1.0, 0.0]),
        ([0.0, 0.6, -0.1], [0.1, 0.5, 1.0], [math.sqrt(1 - 0.75**2), 0.75, 0.0]),  # h v / (h - 0.1), and what is left
        ([0.0, 0.6], [0.5, 0.5], [0.0, 1.0]),
        ([3.0, 4.0, -9.0], [1.0, 1.0, 1e-6], [0.6, 0.8, 0.0]),  # too long: nothing needs to be added
    ],
)
def test_known_points(v: list[float], h: list[float], expected: list[float]) -> None:
    found = SIGNED.project(np.array(v), metric=np.array(h))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    mirrored = (pg.UnitNorm(axis=-1) & pg.NonPos()).project(-np.array(v), metric=np.array(h))
    np.testing.assert_array_equal(mirrored, -found)


def test_in_all_ways_to_say_it() -> None:
    v, h = np.array([-0.1, 0.05]), np.array([1e-3, 1.0])
    expected = SIGNED.project(v, metric=h)
    shell, box = pg.UnitNorm(axis=-1), pg.Box(0.0, INF)
    for both in (
        pg.Intersection(shell, pg.NonNeg(), method="orthant and sphere"),
        pg.Intersection(shell, pg.NonNeg(), method="sphere and box"),
        shell & box,
        shell & pg.Box([0.0, 0.0], INF),
        pg.MinMaxNorm(1.0, 3.0, axis=-1) & pg.NonNeg(),
        pg.MinMaxNorm(pg.Schedule({0: 1.0, 10: 2.0}), 3.0, axis=-1) & pg.NonNeg(),
    ):
        np.testing.assert_allclose(both.project(v, metric=h, step=0), expected, rtol=1e-12)
    mixed = shell & pg.Box([0.0, -INF, 0.0, -INF], [INF, 0.0, 0.0, INF])
    found = mixed.project(np.array([-0.1, -0.05, 5.0, 0.0]), metric=np.array([1e-3, 1.0, 1e-9, 1.0]))
    np.testing.assert_allclose(found, [expected[0], -expected[1], 0, 0], rtol=1e-6)
    found = (shell & pg.Mask([0, 1, 0])).project(np.array([-0.1, 7.0, 0.0]), metric=np.array([1.0, 1e-9, 1e-3]))
    np.testing.assert_allclose(found, [-0.1 / 0.999, 0, math.sqrt(1 - (0.1 / 0.999) ** 2)], rtol=1e-12)


def test_equal_weights_give_the_euclidean_point() -> None:
    rng = np.random.default_rng(0)
    v = np.stack([some_group(rng, 5) for _ in range(200)] + [np.zeros(5), -1e-20 * np.arange(5.0)[::-1]])
    for low, high in SHELLS:
        for signs in (pg.NonNeg(), pg.NonPos(), pg.Box([0.0, -INF, 0.0, 0.0, -INF], [INF, 0.0, 0.0, INF, 0.0])):
            both = pg.Intersection(norm_between(low, high), signs, method="orthant and sphere")
            euclidean = both.project(v)
            np.testing.assert_array_equal(both.project(v, metric=np.full(5, 0.3)), euclidean)


@pytest.mark.parametrize("low", [1e-30, 1.0, 1e30])
def test_huge_and_tiny_entries_and_weights(low: float) -> None:
    rng = np.random.default_rng(0)
    both = pg.MinMaxNorm(low, 4 * low, axis=-1) & pg.NonNeg()
    v = np.stack([rng.standard_normal(4) * 10.0 ** rng.uniform(-38, 30, 4) for _ in range(500)]).astype(np.float32)
    h = (10.0 ** rng.uniform(-25, 0, v.shape)).astype(np.float32)
    found = both.project(v, metric=h)
    assert np.all(np.isfinite(found))
    assert both.contains(found)
    assert same(both.project(found, metric=h), found)
    for group, weight, point in zip(v[:60], h, found, strict=False):
        best = least_value(group, weight, [(0.0, INF)] * 4, float(np.float32(low)), 4 * low)
        unit = float(np.finfo(np.float32).eps) * max(low, float(np.abs(group).max()))
        slack = Decimal(64 * unit) * Decimal(unit) * Decimal(float(weight.max()))
        assert value(point, group, weight) <= best * Decimal("1.0001") + slack, (group, weight, point)


@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f not in (TENSORFLOW, KERAS)], indirect=True)
def test_all_frameworks_find_the_same_points(framework: Framework) -> None:
    rng = np.random.default_rng(1)
    v, h = (np.stack([some(rng, 6) for _ in range(40)]) for some in (some_group, some_weights))
    for both in (SIGNED, pg.MinMaxNorm(0.5, 2.0, axis=-1) & pg.NonPos()):
        expected = both.project(v, metric=h)
        found = both.project(framework.make(v, "float64"), metric=framework.make(h, "float64"))
        np.testing.assert_allclose(framework.read(found), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("framework", [TORCH_GRAPH, JAX, pytest.param(TENSORFLOW, marks=pytest.mark.slow)], ids=repr)
def test_compiled(framework: Framework) -> None:
    if framework.missing:
        pytest.skip(f"{framework.needs} is not installed")
    rng = np.random.default_rng(2)
    v, h = (np.stack([some(rng, 5) for _ in range(40)]) for some in (some_group, some_weights))
    both = pg.MinMaxNorm(1.0, 2.0, axis=-1) & pg.Box([0.0, -INF, 0.0, -INF, 0.0], [INF, 0.0, INF, INF, 0.0])
    assert framework.compile is not None
    with framework.scope():
        x, weights = framework.make(v, "float64"), framework.make(h, "float64")
        run = framework.compile(lambda x, weights: both.project(x, metric=weights))
        found = framework.read(run(x, weights))
    np.testing.assert_allclose(found, both.project(v, metric=h), rtol=1e-8, atol=1e-10)


SMOOTH = [
    ([-0.1, 0.05, 0.2], [1e-3, 1.0, 0.4]),  # the first one gets most
    ([-0.02, 0.05, -0.3], [0.2, 1.0, 0.5]),
    ([0.3, 0.4, -0.1], [1.0, 0.5, 0.9]),  # none is added
    ([1e-4, 0.05, -0.2], [0.01, 1.0, 0.5]),  # by rights an entry with its sign
    ([2.0, 0.5, -0.1], [1e-3, 1.0, 0.4]),  # too long
    ([-0.1, -0.5, -0.2], [1e-3, 1.0, 0.4]),  # does not change
]


@pytest.mark.parametrize("framework", [TORCH, JAX, pytest.param(TENSORFLOW, marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("sign", [1, -1])
def test_derivatives(framework: Framework, sign: int) -> None:
    v, h = sign * np.array([c[0] for c in SMOOTH]), np.array([c[1] for c in SMOOTH])
    both = pg.UnitNorm(axis=-1) & (pg.NonNeg() if sign == 1 else pg.NonPos())
    check_derivatives(framework, both, v, h)


@pytest.mark.parametrize("framework", [TORCH, JAX], indirect=True)
def test_derivatives_at_zero(framework: Framework) -> None:
    """Where an entry that may have any sign is 0, it has a derivative too, as does one of least weight that is free."""
    v = np.array([[0.0, 0.05, 0.2, 0.0], [-0.1, 0.5, 0.1, 0.0], [1.3, 0.5, 0.1, 0.0]])
    h = np.array([[1e-3, 1.0, 0.4, 0.6], [1e-2, 1.0, 0.4, 0.5], [0.1, 0.2, 0.3, 0.4]])
    both = pg.UnitNorm(axis=-1) & pg.Box([0.0, 0.0, 0.0, -INF], INF)
    check_derivatives(framework, both, v, h)
    gradient = check_derivatives(framework, pg.UnitNorm(axis=-1) & pg.NonNeg(), v[:1, :3], h[:1, :3])
    assert gradient[0, 0] != 0


@pytest.mark.parametrize("framework", [TORCH, JAX], indirect=True)
def test_derivatives_are_finite(framework: Framework) -> None:
    rng = np.random.default_rng(0)
    v = rng.standard_normal((2000, 5)) * 10.0 ** rng.uniform(-38, 30, (2000, 5))
    v = np.where(rng.random(v.shape) < 0.1, 0.0, v)
    h = 10.0 ** rng.uniform(-25, 0, v.shape)
    both = pg.MinMaxNorm(0.5, 2.0, axis=-1) & pg.Box([0.0, -INF, -INF, 0.0, 0.0], [INF, INF, 0.0, 0.0, INF])
    x, weights, w = (framework.make(c, "float32") for c in (v, h, rng.standard_normal(v.shape)))
    assert framework.gradient is not None
    gradient = framework.gradient(lambda x: both.project(x, metric=weights), x, w)
    assert np.all(np.isfinite(framework.read(gradient)))


def check_derivatives(framework: Framework, both: pg.Constraint, v: np.ndarray, h: np.ndarray) -> np.ndarray:
    w, step = np.random.default_rng(0).standard_normal(v.shape), 1e-6
    weights = framework.make(h, "float64")
    assert framework.gradient is not None
    gradient = framework.gradient(
        lambda x: both.project(x, metric=weights), framework.make(v, "float64"), framework.make(w, "float64")
    )
    found = framework.read(gradient)
    for i in range(v.shape[-1]):
        move = step * np.eye(v.shape[-1])[i]
        ends = [both.project(v + side * move, metric=h) for side in (1, -1)]
        difference = ((ends[0] - ends[1]) * w).sum(-1) / (2 * step)
        np.testing.assert_allclose(found[:, i], difference, rtol=1e-4, atol=1e-5)
    return found


def test_an_orthant_of_zeros_has_no_point_on_a_sphere() -> None:
    empty = pg.UnitNorm(axis=-1) & pg.Box([0.0, 0.0], [0.0, 0.0])
    with pytest.raises(RuntimeError, match="no point in common"):
        empty.project(np.ones(2), metric=np.array([1.0, 0.5]))
