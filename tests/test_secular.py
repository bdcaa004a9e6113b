"""The nearest point of a given norm in a metric, against bisection in extended precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import projgrad as pg
from projgrad.sets import secular

WIDE = np.longdouble
DISTANCES = {"far": (1.0, 10.0), "long": (1e-6, 1e-1), "short": (-1.0, -1e-1), "nearly": (-1e-1, -1e-6)}


def bisection(v: np.ndarray, h: np.ndarray) -> np.ndarray | None:
    """The point of norm 1; None where the entries of least weight are too small for a multiplier."""
    pull, above = v.astype(WIDE) * h.astype(WIDE), h.astype(WIDE) - h.astype(WIDE).min()
    low, high = np.finfo(WIDE).tiny ** WIDE(0.25), 1 + 2 * np.sqrt((pull**2).sum())
    if np.sqrt(((pull / (above + low)) ** 2).sum()) < 1:
        return None
    while high / low - 1 > 1e-18:
        middle = np.sqrt(low * high) if high > 4 * low else (low + high) / 2
        if not low < middle < high:
            break
        inside = np.sqrt(((pull / (above + middle)) ** 2).sum()) > 1
        low, high = (middle, high) if inside else (low, middle)
    return pull / (above + high)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("where", DISTANCES)
@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([2, 3, 5, 20, 200]),
    span=st.sampled_from([0, 2, 6, 12, 24]),
    spread=st.sampled_from([0, 3, 8]),
)
def test_the_nearest_point_of_a_norm(where: str, dtype: Any, seed: int, size: int, span: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    h = 10.0 ** (-span * rng.random(size))
    h = np.where(rng.random(size) < 0.2, 1.0, h)
    v = rng.standard_normal(size) * 10.0 ** (-spread * rng.random(size))
    low, high = DISTANCES[where]
    far = 10.0 ** rng.uniform(0, high) if where == "far" else 1 + rng.uniform(low, high)
    v, h = (v / np.linalg.norm(v) * far).astype(dtype), (h / h.max()).astype(dtype)
    expected = bisection(v, h)
    if expected is None:
        return
    found = pg.UnitNorm(axis=0).project(v, metric=h)
    objective = [np.sqrt((h.astype(WIDE) * (y.astype(WIDE) - v) ** 2).sum()) for y in (found, expected)]
    assert objective[0] - objective[1] <= 2 * np.finfo(dtype).eps * (1 + np.linalg.norm(v.astype(WIDE)))


def test_entries_of_tiny_weight_rise_late() -> None:
    v = np.asarray([9.9413174e-01, 1.0720114e-01, -8.3960884e-07, -1.0210421e-07, 1.1485623e-02], np.float32)
    h = np.asarray([1.2787646e-03, 5.0612598e-05, 1.5727735e-11, 1.8430076e-06, 3.7744792e-06], np.float32)
    expected = bisection(v, h)
    assert expected is not None
    # the third entry changes by more than the rounding error of the norm, which it makes up for
    np.testing.assert_allclose(pg.UnitNorm(axis=0).project(v, metric=h), expected.astype(float), atol=1e-5)


def test_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, original = [0], secular._step

    def counted(*args: Any) -> Any:
        steps[0] += 1
        return original(*args)

    monkeypatch.setattr(secular, "_step", counted)
    rng = np.random.default_rng(0)
    for span, most in ((1.0, 5), (6.0, 10), (24.0, 24)):
        w = rng.standard_normal((100, 50))
        w = w / np.linalg.norm(w, axis=1, keepdims=True) + 1e-3 * rng.standard_normal((100, 50))  # as after a step
        steps[0] = 0
        pg.UnitNorm(axis=1).project(w, metric=10.0 ** (-span * rng.random((100, 50))))
        assert 1 <= steps[0] <= most
