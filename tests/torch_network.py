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


@torch.no_grad()
def clip(model: Any, most: float = 0.5) -> None:
    """What `MaxNorm(most)` is for the weights of its layers, by hand."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            layer.weight.mul_((most / torch.linalg.vector_norm(layer.weight, dim=1, keepdim=True)).clamp(max=1.0))


def close(model: Any, other: Any, **tolerances: float) -> None:
    """Fail with the name of a parameter where two models are not alike, as `torch.testing.assert_close` says."""
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, **tolerances, msg=lambda text, name=name: f"{name}: {text}")


def wrapped(model: Any, rules: Any = RULES, **options: Any) -> ProjectedOptimizer:
    return ProjectedOptimizer(torch.optim.Adam(model.parameters(), lr=0.1), rules, model=model, **options)
