"""The network of `morphology.py` in PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import nn

from projgrad.torch import ProjectedOptimizer, violations

SPATIAL = (2, 3)  # of kernels of shape (filters, 1, height, width)
KERNEL = "dilation.weight"


class DilateImages(torch.autograd.Function):
    """Largest sum of image and kernel over each window, for images that need no gradient.

    `functools.reduce(torch.maximum, ...)` would do, as in `morphology_keras.py`, but takes seven times as long.
    """

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, weight: torch.Tensor, learning: bool) -> torch.Tensor:
        filters, _, *size = weight.shape
        height, width = (n - s + 1 for n, s in zip(images.shape[2:], size, strict=True))
        best = images.new_full((len(images), filters, height, width), -torch.inf)
        value, higher = torch.empty_like(best), torch.empty_like(best)  # written again and again, which saves time
        place = torch.zeros_like(best)  # where in the window: the first place if several are highest
        for i, (y, x) in enumerate(product(*map(range, size))):
            torch.add(images[:, :, y : y + height, x : x + width], weight[:, 0, y, x, None, None], out=value)
            if learning:
                torch.gt(value, best, out=higher)
                torch.maximum(place, higher.mul_(i), out=place)
            torch.maximum(best, value, out=best)
        ctx.save_for_backward(place, weight)
        return best

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        place, weight = ctx.saved_tensors
        entry = place.long() + weight[0].numel() * torch.arange(len(weight))[:, None, None]
        total = torch.bincount(entry.flatten(), gradient.flatten(), minlength=weight.numel())
        return None, total.view_as(weight).to(weight), None


class Dilation(nn.Module):
    def __init__(self, filters: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(filters, 1, size, size))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return DilateImages.apply(images, self.weight, torch.is_grad_enabled())


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dilation = Dilation(8, 5)
        self.convolution = nn.Conv2d(8, 32, 3)
        self.output = nn.Linear(800, 10)
        for layer in (self.convolution, self.output):  # as Keras does
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.dilation(images), 2)
        x = nn.functional.max_pool2d(self.convolution(x).relu(), 2)
        return self.output(nn.functional.dropout(x.flatten(1), 0.5, self.training))


def evaluate(model: nn.Module, images: torch.Tensor, digits: torch.Tensor) -> tuple[float, float, torch.Tensor]:
    """The loss, the accuracy, and the digits that the network takes the images for."""
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(part) for part in images.split(256)])
    model.train()
    found = logits.argmax(1)
    return nn.functional.cross_entropy(logits, digits).item(), (found == digits).float().mean().item(), found


def train(
    data: list[np.ndarray], rules: dict, seeds: int, epochs: int, tick: Callable[[int], object]
) -> Iterator[tuple[list[float], np.ndarray, np.ndarray, np.ndarray, float]]:
    """Train once per seed; yield the accuracies, kernels, dilated images, digits found, and the violation."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
    train_x, train_y, test_x, test_y = (torch.from_numpy(array) for array in data)
    train_x, test_x = train_x[:, None], test_x[:, None]
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = Network()
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=0.01, eps=1e-7)
        if rules:  # such as {"dilation.weight": pg.NonNeg()}
            optimizer = ProjectedOptimizer(optimizer, rules, model=model)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=2, threshold=1e-4, threshold_mode="abs"
        )  # halves the rate at the third epoch without progress, as Keras does with patience=3

        curve, least, waited, best = [], torch.inf, 0, model.state_dict()
        for epoch in range(epochs):
            total = 0.0
            for part in torch.randperm(len(train_x)).split(128):
                loss = nn.functional.cross_entropy(model(train_x[part]), train_y[part])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(part)
            test_loss, accuracy, _ = evaluate(model, test_x, test_y)
            plateau.step(test_loss)
            curve.append(accuracy)
            tick(1)
            waited += 1
            if total < least:  # early stopping goes by the training loss, and back to its least
                least, waited, best = total, 0, copy.deepcopy(model.state_dict())
            if waited == 10:
                tick(epochs - epoch - 1)
                break
        model.load_state_dict(best)

        found = evaluate(model, test_x, test_y)[2]
        with torch.no_grad():
            dilated = model.dilation(test_x)
        kernels = model.dilation.weight.detach()[:, 0]
        yield (
            curve,
            kernels.numpy(),
            dilated.numpy(),
            found.numpy(),
            max(violations(model, rules).values(), default=0.0),
        )
