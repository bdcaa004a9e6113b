"""Intersections by splitting: from far away, with a derivative, and empty ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import projgrad as pg
from projgrad.rules import Parameter, Use, resolve

FAR: list[tuple[Any, Any]] = [
    (pg.Intersection(pg.Simplex(axis=0), pg.Simplex(axis=1), method="admm"), pg.DoublyStochastic()),
    (pg.Intersection(pg.Simplex(), pg.Mask([1, 0, 0, 0, 0, 0]), method="admm"), pg.Simplex() & pg.Mask([1] + [0] * 5)),
    (
        pg.Intersection(pg.L1Ball(1.3), pg.MaxNorm(0.9, axis=-1), method="admm"),
        pg.L1Ball(1.3) & pg.MaxNorm(0.9, axis=-1),
    ),
]


@pytest.mark.parametrize(("by_splitting", "exact"), FAR, ids=str)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4, 1e6])
def test_splitting_gets_there_from_far_away(by_splitting: Any, exact: Any, size: float) -> None:
    x = size * np.random.default_rng(0).standard_normal((6, 6))
    np.testing.assert_allclose(by_splitting.project(x), exact.project(x), atol=1e-7)


def test_the_derivative_of_splitting() -> None:
    torch = pytest.importorskip("torch")
    both: Any = pg.MaxNorm(1.0, axis=0) & pg.MaxNorm(1.0, axis=1)
    assert both.chosen == "admm"
    x = torch.tensor(np.random.default_rng(1).standard_normal((3, 3)), requires_grad=True)
    assert torch.autograd.gradcheck(both.project, x, atol=1e-5)


E0 = np.eye(4)[0]
EMPTY = [
    pg.L2Ball(1.0, 5 * E0) & pg.L2Ball(1.0),
    pg.Hyperplane(E0, 1) & pg.Hyperplane(E0, 2),
    pg.Halfspace(E0, -1) & pg.NonNeg(),
    pg.L1Ball(0.5) & pg.SumTo(1),
    pg.L2Ball(0.1) & pg.SumTo(1),
    pg.UnitNorm(-1) & pg.SumTo(9),
    pg.Monotone(True, 0, 1) & pg.SumTo(10),
    pg.Mask(E0, 5.0) & pg.MaxNorm(1.0, axis=-1),
    pg.Box(1, 2) & pg.L1Ball(1.0),
]


@pytest.mark.parametrize("empty", EMPTY, ids=str)
def test_sets_without_a_common_point_are_found_when_tagged(empty: Any) -> None:
    with pytest.raises(ValueError, match=r"^w, of shape .*(in common|norm of at)"):
        resolve({"w": empty}, [Parameter((Use("w", "none"),), (6, 4), "float32")])
