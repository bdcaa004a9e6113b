"""A small torch network to constrain, and what is asked of it."""

from __future__ import annotations

from typing import Any

import pytest

import projgrad as pg

torch = pytest.importorskip("torch")

from torch import nn

from projgrad.torch import ProjectedOptimizer

RULES = {nn.Linear: {"weight": pg.MaxNorm(0.5)}}


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))


def loss_of(model: Any) -> Any:
    x = torch.linspace(-1, 1, 24).reshape(6, 4)
    return (model(x) - 3).square().mean()


def train(optimizer: Any, model: Any, steps: int = 5) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def norms(model: Any) -> Any:
    return torch.cat([torch.linalg.vector_norm(m.weight.double(), dim=1) for m in model if isinstance(m, nn.Linear)])


def held(model: Any) -> bool:
    return bool((norms(model) <= 0.5 * (1 + 1e-5)).all())


def wrapped(model: Any, rules: Any = RULES, **options: Any) -> ProjectedOptimizer:
    return ProjectedOptimizer(torch.optim.Adam(model.parameters(), lr=0.1), rules, model=model, **options)
