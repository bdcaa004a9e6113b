"""The network of `moons.py` in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from projgrad.torch import ProjectedOptimizer, violations


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, 500)
        self.output = nn.Linear(500, 1)
        for layer in (self.hidden, self.output):  # as Keras does
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.hidden(x).relu())


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return ((model(x) > 0) == (y > 0.5)).float().mean().item()


def train(
    data: Sequence[np.ndarray],
    rules: dict,
    seeds: int,
    chunks: Sequence[int],
    tick: Callable[[int], object],
    metric: str = "euclidean",
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], float]]:
    """Train once per seed; yield the accuracies after every chunk of epochs, the final norms and the violation."""
    torch.set_num_threads(1)  # arrays this small gain nothing from more
    train_x, train_y, test_x, test_y = (torch.from_numpy(array) for array in data)
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = Network()
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), eps=1e-7)
        if rules:  # such as {"hidden.weight": pg.UnitNorm()}
            optimizer = ProjectedOptimizer(optimizer, rules, model=model, metric=metric)

        curve = []
        for epochs in chunks:
            for _ in range(epochs):
                loss = nn.functional.binary_cross_entropy_with_logits(model(train_x), train_y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                curve.append((accuracy(model, train_x, train_y), accuracy(model, test_x, test_y)))
            tick(epochs)

        with torch.no_grad():
            norms = {
                "hidden": model.hidden.weight.norm(dim=1).numpy(),
                "output": model.output.weight.norm(dim=1).numpy(),
                "hidden bias": model.hidden.bias.norm(dim=0, keepdim=True).numpy(),
            }
        yield np.array(curve), norms, max(violations(model, rules).values(), default=0.0)
