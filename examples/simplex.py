"""Weights on the simplex: how to average 40 weak experts, in PyTorch or JAX: `python examples/simplex.py`.

The experts look at 8 pixels of scikit-learn's digits each. Their average is weighted by w >= 0 with sum 1, such that
the log loss on other digits is least, which is a convex problem. It is solved on the simplex and, as is more common,
as the softmax of free numbers, by the same optimizers with the same number of steps, each with its best rate.
A bound tells how far the best weights can be from the optimum at most; all gaps are against those.

Found (one seed): 31 of 40 weights are exactly 0 on the simplex, none of the softmax, still 7e-6 above the minimum after
1,000 steps of Adam. On the simplex, Adam gets below 1e-6 in 92 steps in its own metric, and nowhere in the Euclidean
norm: it steps equally far in all weights, which the projection takes back, so that they stay equal at every rate. `SPG`
needs 26 steps and no rate. The log loss on new digits falls from 1.09 to 0.77 either way: zeros and the last digits of
the optimum are of no use there. The accuracy falls as well, from 0.875 with equal weights to 0.801.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import common  # type: ignore[import-not-found]
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier
from tqdm import tqdm

# label: the optimizer, how the weights stay on the simplex, the rates to try, and a colour
WAYS: dict[str, tuple[str, str, list[float], str]] = {
    "softmax, SGD": ("sgd", "softmax", [1, 10, 100], "#E69F00"),
    "softmax, Adam": ("adam", "softmax", [0.1, 1, 10], "#D55E00"),
    "simplex, SGD": ("sgd", "euclidean", [0.01, 0.1, 1], "#56B4E9"),
    "simplex, Adam": ("adam", "euclidean", [0.001, 0.01, 0.1], "#999999"),
    "simplex, Adam, its metric": ("adam", "optimizer", [0.001, 0.01, 0.1], "#009E73"),
    "simplex, SPG": ("spg", "euclidean", [1], "#0072B2"),
}


class Run(NamedTuple):
    """The rate, the loss at the start and after every step, and the weights at the end."""

    rate: float
    losses: np.ndarray
    weights: np.ndarray


def experts(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities (digits, experts, classes) and labels, on the digits to fit the weights to, and on new ones."""
    rng, digits = np.random.default_rng(seed), load_digits()
    pixels, labels = digits.data / 16.0, digits.target
    order = rng.permutation(len(labels))
    train, fit, new = np.split(order, [500, 1100])
    found = []
    for i in range(count):
        columns, rows = rng.choice(64, 8, replace=False), rng.choice(train, 200, replace=False)
        kinds = [
            DecisionTreeClassifier(max_depth=int(rng.integers(3, 10)), random_state=i),
            KNeighborsClassifier(n_neighbors=int(rng.integers(3, 30))),
            GaussianNB(var_smoothing=0.01),
            LogisticRegression(max_iter=300),
        ]
        model = kinds[i % 4].fit(pixels[rows][:, columns], labels[rows])
        probabilities = np.full((len(order), 10), 0.001)  # of being wrong altogether, one in a hundred
        probabilities[:, model.classes_] += 0.99 * model.predict_proba(pixels[:, columns])
        found.append(probabilities)
    stacked = np.stack(found, axis=1)
    return stacked[fit], labels[fit], stacked[new], labels[new]


def log_loss(likelihoods: np.ndarray, weights: np.ndarray) -> float:
    """What is minimised: of the probabilities (digits, experts) that the experts gave to the right class."""
    return float(-np.log(likelihoods @ weights).mean())


def bound(likelihoods: np.ndarray, weights: np.ndarray) -> float:
    """By how much the loss is above its minimum, at most: as it is convex, no weight gains more than its slope says."""
    gradient = -(likelihoods / (likelihoods @ weights)[:, None]).mean(0)
    return float(gradient @ weights - gradient.min())


def steps_to(gaps: np.ndarray, goal: float) -> str:
    """The first step after which the gap is small enough."""
    return str(int(np.argmax(gaps <= goal))) if (gaps <= goal).any() else "-"


def draw(runs: dict[str, Run], least: float, precision: float, title: str, path: Path) -> None:
    """The gaps over the steps, and the weights of the experts."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", width_ratios=[1, 1.15])
    figure.suptitle(title)
    for label, run in runs.items():
        gaps = np.maximum(run.losses - least, precision)
        left.loglog(np.arange(1, len(gaps)), gaps[1:], color=WAYS[label][3], lw=1.8, label=label)
    left.set(xlabel="steps", ylabel="log loss above its minimum", ylim=(precision / 2, None))
    left.legend(fontsize=8, loc="lower left")
    left.grid(alpha=0.25)

    ends = {label: runs[label].weights for label in ("simplex, Adam, its metric", "simplex, Adam", "softmax, Adam")}
    order = np.argsort(-runs["simplex, SPG"].weights)
    floor = 1e-10
    for (label, weights), marker in zip(ends.items(), "os^", strict=True):
        height = np.where(weights[order] > 0, np.maximum(weights[order], floor), floor / 10)
        right.plot(np.arange(len(order)), height, marker, color=WAYS[label][3], ms=6, alpha=0.8, label=label)
    right.axhspan(floor / 30, floor / 3.3, color="#0072B2", alpha=0.08)
    ticks = [1e-8, 1e-6, 1e-4, 1e-2, 1]
    right.set_yscale("log")
    right.set_yticks([floor / 10, floor, *ticks], ["0", "1e-10\nor less", *(f"{tick:g}" for tick in ticks)])
    right.minorticks_off()
    right.set(ylim=(floor / 30, 2), xlabel="expert, by its weight in the optimum", ylabel="weight")
    right.legend(fontsize=8)
    right.grid(alpha=0.25)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = common.parser("simplex", __doc__, "torch", "jax")
    parser.add_argument("--experts", type=common.count, default=40)
    parser.add_argument("--steps", type=common.count, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = common.parse(parser, argv, experts=12, steps=200)
    train = import_module(f"simplex_{args.framework}").train
    start = time.perf_counter()
    fit, fit_labels, new, new_labels = experts(args.experts, args.seed)
    likelihoods = fit[np.arange(len(fit)), :, fit_labels]

    tried: dict[str, list[Run]] = {label: [] for label in WAYS}
    with tqdm(total=sum(len(rates) for _, _, rates, _ in WAYS.values()), unit="run") as bar:
        for label, (optimizer, way, rates, _) in WAYS.items():
            bar.set_description(label)
            for rate in rates:
                losses, weights = train(likelihoods, optimizer, way, rate, args.steps)
                tried[label].append(Run(rate, np.append(losses, log_loss(likelihoods, weights)), weights))
                bar.update()
    seconds = time.perf_counter() - start

    every = [run.weights for runs in tried.values() for run in runs]
    best = min(every, key=lambda weights: log_loss(likelihoods, weights))
    least, uncertain = log_loss(likelihoods, best), max(bound(likelihoods, best), 1e-15)
    # of the rates the one whose gap is lowest in the mean over the steps, of its logarithm
    runs = {
        label: min(some, key=lambda run: np.log(np.maximum(run.losses - least, 1e-12)).mean())
        for label, some in tried.items()
    }

    def on_new(weights: np.ndarray) -> list[str]:
        mixed = np.einsum("nec,e->nc", new, weights)
        right = mixed[np.arange(len(new_labels)), new_labels]
        return [f"{-np.log(right).mean():.4f}", f"{(mixed.argmax(1) == new_labels).mean():.3f}"]

    rows = [["weights", "rate", "gap", "zeros", "steps to 1e-4", "to 1e-6", "log loss, new digits", "accuracy"]]
    for name, weights in {
        "the best expert": np.eye(args.experts)[np.argmin(-np.log(likelihoods).mean(0))],
        "all equal": np.full(args.experts, 1 / args.experts),
    }.items():
        gap, zeros = f"{log_loss(likelihoods, weights) - least:.1e}", str(np.sum(weights == 0))
        rows.append([name, "", gap, zeros, "", "", *on_new(weights)])
    for label, run in runs.items():
        gaps = run.losses - least
        zeros, gap = str(np.sum(run.weights == 0)), f"{max(gaps[-1], 0):.1e}"
        goals = [steps_to(gaps, goal) for goal in (1e-4, 1e-6)]
        rows.append([label, f"{run.rate:g}", gap, zeros, *goals, *on_new(run.weights)])
    print(f"\n{args.experts} experts, {args.framework}, {args.steps} steps, {seconds:.0f} s. ", end="")
    print(f"The least log loss is {least:.8f}, to within {uncertain:.0e}.\n")
    print(common.table(rows))
    draw(runs, least, max(uncertain, 1e-12), f"Weights of {args.experts} experts, {args.framework}", args.out)
    print(f"\nPicture: {args.out}")


if __name__ == "__main__":
    main()
