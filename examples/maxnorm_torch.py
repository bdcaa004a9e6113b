"""The networks of `maxnorm.py` in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from projgrad.torch import ProjectedOptimizer, violations

# how Keras calls the parameters, and where its axes are: units are last there, first in PyTorch
KERAS = {"weight_ih_l0": "kernel", "weight_hh_l0": "recurrent_kernel", "bias_ih_l0": "bias", "weight": "kernel"}
ORDER = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
BACK = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


class MLP(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first, self.second, self.output = nn.Linear(784, 256), nn.Linear(256, 256), nn.Linear(256, 10)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.second):
            x = self.dropout(layer(x.flatten(1)).relu())
        return self.output(x)


class CNN(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first, self.second, self.output = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 32, 3), nn.Linear(800, 10)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, None]
        for layer in (self.first, self.second):
            x = nn.functional.max_pool2d(layer(x).relu(), 2)
        return self.output(self.dropout(x.permute(0, 2, 3, 1).flatten(1)))  # channels last, as in the others


class LSTM(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.lstm, self.output = nn.LSTM(28, 64, batch_first=True), nn.Linear(64, 10)
        self.lstm.bias_hh_l0.requires_grad_(False)  # a second bias, which adds nothing and stays 0
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.dropout(self.lstm(x)[0][:, -1]))


def keras_name(name: str) -> str:
    layer, _, attribute = name.partition(".")
    return f"{layer}/{KERAS.get(attribute, attribute)}"


def named(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters by Keras's names."""
    return ((keras_name(name), p) for name, p in model.named_parameters() if p.requires_grad)


def build(network: str, weights: Mapping[str, np.ndarray], dropout: float, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = {"MLP": MLP, "CNN": CNN, "LSTM": LSTM}[network](dropout)
    with torch.no_grad():
        for each in model.parameters():
            each.zero_()
        for name, parameter in named(model):
            parameter.copy_(torch.from_numpy(weights[name].transpose(ORDER[parameter.ndim])))
    return model


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().transpose(BACK[p.ndim]) for name, p in named(model)}


def logits(model: nn.Module, images: np.ndarray) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        found = model(torch.from_numpy(images)).numpy()
    model.train()
    return found


def accuracy(model: nn.Module, images: np.ndarray, digits: np.ndarray) -> float:
    return float((logits(model, images).argmax(1) == digits).mean())


def train(
    network: str,
    starts: Sequence[Mapping[str, np.ndarray]],
    rules: dict,
    dropout: float,
    data: Sequence[np.ndarray],
    epochs: int,
    tick: Callable[[int], object],
) -> Iterator[tuple[list[float], float, dict[str, np.ndarray], float]]:
    """Train from each of the starts; yield the test accuracies, the training accuracy, the weights, the violation."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
    train_x, train_y, test_x, test_y = data
    x, y = torch.from_numpy(train_x), torch.from_numpy(train_y)
    for seed, start in enumerate(starts):
        model = build(network, start, dropout, seed)
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=0.003, eps=1e-7)
        if rules:  # such as {"*.weight*": pg.MaxNorm(3.0), "*.bias*": pg.MaxNorm(3.0, axis=0), "output*": None}
            optimizer = ProjectedOptimizer(optimizer, rules, model=model)
        curve = []
        for _ in range(epochs):
            for part in torch.randperm(len(x)).split(50):
                loss = nn.functional.cross_entropy(model(x[part]), y[part])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            curve.append(accuracy(model, test_x, test_y))
            tick(1)
        largest = max(violations(model, rules).values(), default=0.0)
        yield curve, accuracy(model, train_x, train_y), weights(model), largest
