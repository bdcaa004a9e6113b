"""The networks of `shapes.py` in PyTorch; all seeds train at once, as one more axis of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from projgrad.torch import ProjectedOptimizer, violations

Predict = Callable[[np.ndarray], np.ndarray]


class Networks(nn.Module):
    """The weights of a network per seed: as PyTorch's layers start, uniform up to the inverse root of what enters."""

    def __init__(self, count: int, features: int, width: int) -> None:
        super().__init__()

        def uniform(*shape: int, entering: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(count, *shape).uniform_(-(entering**-0.5), entering**-0.5))

        sizes = (width, width, 1)
        self.inputs = nn.ParameterList(uniform(size, features, entering=features) for size in sizes)
        self.biases = nn.ParameterList(uniform(1, size, entering=features) for size in sizes)
        self.passes = nn.ParameterList(uniform(size, width, entering=width) for size in sizes[1:])


def apply(weights: Sequence[Any], x: torch.Tensor, bend: Callable) -> torch.Tensor:
    """Each layer gets what the last one made and, past it, the inputs: ``U z + W x + b``."""
    inputs, biases, passes = weights
    first, second, last = (x @ weight.mT + bias for weight, bias in zip(inputs, biases, strict=True))
    z = bend(first)
    z = bend(z @ passes[0].mT + second)
    return (z @ passes[1].mT + last)[..., 0]


def mixed(z: torch.Tensor) -> torch.Tensor:
    """Half of the units ReLU, which is convex; half its reflection, which is concave. Both rise."""
    one, other = z.chunk(2, dim=-1)
    return torch.cat([one.relu(), other.clamp(max=0)], dim=-1)


ACTIVATIONS = {"mixed": mixed, "relu": torch.relu}


def fit(
    runs: Sequence[tuple[np.ndarray, np.ndarray]],
    rules: dict,
    activation: str,
    steps: int,
    tick: Callable[[int], object],
    decay: float = 0.0,
    width: int = 32,
) -> list[Predict]:
    """Train a network for every (inputs, targets), of equal sizes; return the functions that they are."""
    torch.set_num_threads(1)  # arrays this small gain nothing from more
    torch.manual_seed(0)
    x, y = (torch.tensor(np.stack(arrays), dtype=torch.float32) for arrays in zip(*runs, strict=True))
    model, bend = Networks(len(runs), x.shape[-1], width), ACTIVATIONS[activation]
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=decay)
    if rules:  # such as {"passes*": pg.NonNeg()}
        optimizer = ProjectedOptimizer(optimizer, rules, model=model)
    weights = [model.inputs, model.biases, model.passes]
    for _ in range(steps):
        errors = apply(weights, x, bend) - y
        optimizer.zero_grad()
        errors.square().mean(-1).sum().backward()  # the sum: no network feels the others
        optimizer.step()
        tick(1)
    assert max(violations(model, rules).values(), default=0.0) == 0

    def function(seed: int) -> Predict:
        own = [[weight[seed].detach() for weight in part] for part in weights]
        return lambda x: apply(own, torch.tensor(x, dtype=torch.float32), bend).double().numpy()

    return [function(seed) for seed in range(len(runs))]
