"""Gradients, steps and momentum without what points out of the set, in torch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import projgrad as pg
from tests.orthants import MOMENTUM, RATE, orthant_problems

torch = pytest.importorskip("torch")

from projgrad.torch import ProjectedOptimizer

SPHERE = pg.UnitNorm(axis=1)


def weight(seed: int = 0, dtype: Any = None) -> Any:
    values = torch.randn(16, 32, generator=torch.Generator().manual_seed(seed))
    return torch.nn.Parameter(values.to(dtype or torch.float32))


def cosine(a: Any, b: Any) -> float:
    return float((torch.nn.functional.cosine_similarity(a.detach().double(), b.detach().double(), dim=1)).abs().max())


def wrapped(w: Any, option: str | None, make: Any = torch.optim.Adam, **options: Any) -> Any:
    return ProjectedOptimizer(make([("w", w)], lr=1e-2, **options), {"w": pg.Tag(SPHERE, tangent=option)})


@pytest.mark.parametrize("closure", [False, True])
def test_the_optimizer_gets_a_tangent_gradient(closure: bool) -> None:
    w = weight()
    optimizer, target = wrapped(w, "gradient", torch.optim.SGD), torch.randn(16, 32)

    def evaluate() -> Any:
        optimizer.zero_grad()
        loss = (w * target).sum() + w.square().sum()
        loss.backward()
        return loss

    if not closure:
        evaluate()
        assert cosine(w.grad, w) > 0.1
    start = w.detach().clone()
    optimizer.step(evaluate) if closure else optimizer.step()
    assert cosine(w.grad, start) < 1e-6


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (torch.optim.Adam, {"foreach": True}),
        (torch.optim.Adam, {"fused": True}),
        (torch.optim.AdamW, {"foreach": False}),
        (torch.optim.NAdam, {}),
        (torch.optim.SGD, {"momentum": 0.9}),
    ],
)
@pytest.mark.parametrize("option", ["gradient", "update"])
def test_steps_and_momentum_are_tangent(option: str, make: Any, options: Any) -> None:
    w = weight()
    optimizer = wrapped(w, option, make, **options)
    for i in range(5):
        w.grad = torch.randn(16, 32, generator=torch.Generator().manual_seed(i + 1))
        start = w.detach().clone()
        optimizer.step()
        if option == "update":  # what is left along the weight is what leads back to the sphere
            along = ((w.detach() - start) * start).sum(1)
            across = (w.detach() - start).square().sum(1)
            np.testing.assert_allclose(along, -across / 2, atol=1e-6)
        state = optimizer.state[w]
        assert cosine(state["exp_avg" if "exp_avg" in state else "momentum_buffer"], w) < 1e-6


@pytest.mark.parametrize("option", ["gradient", "update"])
def test_fewer_steps_on_an_orthant(option: str) -> None:
    def steps(tangent: str | None, matrix: Any, vector: Any, start: Any, goal: float) -> int:
        a, b = torch.tensor(matrix), torch.tensor(vector)
        x = torch.nn.Parameter(torch.tensor(start))
        sgd = torch.optim.SGD([("x", x)], lr=RATE, momentum=MOMENTUM)
        optimizer = ProjectedOptimizer(sgd, {"x": pg.Tag(pg.NonNeg(), tangent=tangent)})
        for i in range(3000):
            with torch.no_grad():
                if 0.5 * x @ a @ x - b @ x <= goal:
                    return i
                x.grad = a @ x - b
            optimizer.step()
        return 5000

    problems = orthant_problems()[:2]
    made = [[steps(tangent, *problem) for problem in problems] for tangent in (None, option)]
    assert max(made[0] + made[1]) < 5000
    assert sum(made[1]) < sum(made[0])


def test_a_copy_and_a_set_over_two_parameters() -> None:
    a, b = torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(4))
    rules = {"*": pg.Joint(pg.UnitNorm(axis=1), tangent="update")}
    adam = torch.optim.Adam([("a", a), ("b", b)], lr=1e-2)
    optimizer = copy.deepcopy(ProjectedOptimizer(adam, rules))
    a, b = optimizer.param_groups[0]["params"]
    for x in (a, b):
        x.grad = torch.randn_like(x)
    start = torch.cat([a.detach(), b.detach()[:, None]], 1)
    optimizer.step()
    moved = torch.cat([a.detach(), b.detach()[:, None]], 1) - start
    np.testing.assert_allclose((moved * start).sum(1), -moved.square().sum(1) / 2, atol=1e-6)
    both = torch.cat([optimizer.state[a]["exp_avg"], optimizer.state[b]["exp_avg"][:, None]], 1)
    assert cosine(both, start + moved) < 1e-6


def test_parameters_without_a_gradient_and_other_tags_are_left_alone() -> None:
    w, free = weight(), weight(1)
    adam = torch.optim.SGD([("w", w), ("free", free)], lr=1.0)
    optimizer = ProjectedOptimizer(adam, {"w": pg.Tag(SPHERE, tangent="gradient"), "free": pg.MaxNorm(100.0, axis=1)})
    free.grad = torch.ones_like(free)
    start = free.detach().clone()
    optimizer.step()
    torch.testing.assert_close(free.detach(), start - 1)


def test_errors() -> None:
    adam = torch.optim.Adam([("w", weight())])
    with pytest.raises(ValueError, match="w cannot have tangent='gradient': .*not implemented"):
        ProjectedOptimizer(adam, {"w": pg.Tag(pg.SpectralNorm(), tangent="gradient")})
    w = weight()
    optimizer = wrapped(w, "gradient", torch.optim.SGD)
    w.grad = torch.randn(16, 32).to_sparse()
    with pytest.raises(ValueError, match="w: its gradient is sparse"):
        optimizer.step()
