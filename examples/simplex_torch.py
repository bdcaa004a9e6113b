"""The training of `simplex.py` in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import projgrad as pg
from projgrad.torch import SPG, ProjectedOptimizer


def train(likelihoods: np.ndarray, optimizer: str, way: str, rate: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The losses before every step, and the weights after the last one; the rate goes down to 0."""
    torch.set_num_threads(1)
    data, count = torch.from_numpy(likelihoods), likelihoods.shape[1]
    free = way == "softmax"
    x = torch.nn.Parameter(torch.full((count,), 0.0 if free else 1 / count, dtype=torch.float64))

    def weights() -> torch.Tensor:
        return x.softmax(0) if free else x

    def closure() -> Any:
        x.grad = None
        loss = -(data @ weights()).log().mean()
        loss.backward()
        return loss.detach()

    rules = {"weights": pg.Simplex()}
    if optimizer == "spg":
        spg = SPG([("weights", x)], rules, max_iter=1, max_eval=30, tolerance_grad=0.0)
        losses = [float(spg.step(closure)) for _ in range(steps)]
    else:
        plain: torch.optim.Optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](
            [("weights", x)], lr=rate
        )
        schedule = torch.optim.lr_scheduler.LinearLR(plain, 1.0, 1e-6, steps)
        stepped = plain if free else ProjectedOptimizer(plain, rules, metric=way)
        losses = []
        for _ in range(steps):
            losses.append(float(stepped.step(closure)))
            schedule.step()
    return np.array(losses), weights().detach().numpy()
