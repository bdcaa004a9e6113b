"""Weight constraints against overfitting: 500 ReLU units on 30 points of two moons, in PyTorch, JAX or Keras.

    python examples/moons.py --framework torch|jax|keras

Trains the network without a constraint, with incoming weights of unit norm (in two ways) and with a max-norm, once per
seed; prints a table of accuracies and weight norms, and draws them. The network and its training are in
`moons_torch.py`, `moons_jax.py` and `moons_keras.py`; what follows here is the data, the constraints and the report.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import common  # type: ignore[import-not-found]
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons
from tqdm import tqdm

import projgrad as pg

# norms are taken over the weights that feed one unit: axis="incoming", the default, which the layers translate
CONSTRAINTS: dict[str, Any] = {
    "none": None,
    "UnitNorm()": pg.UnitNorm(),
    "MinMaxNorm(1, 1)": pg.MinMaxNorm(1, 1),
    "MaxNorm(1)": pg.MaxNorm(1),
}
RADII = [0.3, 0.6, 0.9, 1, 1.3, 1.6]
# how the frameworks call the weights and the biases of a layer
NAMES = {"torch": ("{}.weight", "{}.bias"), "jax": ("{}/kernel", "{}/bias"), "keras": ("{}/kernel", "{}/bias")}
TUTORIAL = "Tutorial (Keras, one run): test 0.914 without a constraint, 0.943 with unit norm; train 1.000 in both."


class Run(NamedTuple):
    """One training: accuracies per (evaluation, train or test), norms per layer, largest violation at the end."""

    accuracy: np.ndarray
    norms: dict[str, np.ndarray]
    violation: float


Results = Mapping[str, Sequence[Run]]


def moons() -> list[np.ndarray]:
    """The tutorial's data: 30 points to train on, 70 to test on."""
    x, y = make_moons(100, noise=0.2, random_state=1)
    x, y = x.astype("float32"), y.astype("float32")[:, None]
    return [x[:30], y[:30], x[30:], y[30:]]


def rules_for(constraint: Any, framework: str, output: bool, bias: bool) -> dict[str, Any]:
    """The rules of one case: which parameters are kept in which set."""
    rules: dict[str, Any] = {}
    weight_name, bias_name = NAMES[framework]
    for layer in ("hidden", "output") if output else ("hidden",):
        if constraint is not None:
            rules[weight_name.format(layer)] = constraint
            if bias:  # no single unit's weights: as in Keras, the norm is that of the whole vector
                rules[bias_name.format(layer)] = replace(constraint, axis=0)
    return rules


def table(results: Results, layers: Sequence[str]) -> str:
    """The results as a Markdown table."""
    norms = [f"{layer} norm{'s' * (layer == 'hidden')}" for layer in layers]
    rows = [["constraint", "train accuracy", "test accuracy", *norms, "violation"]]
    for label, runs in results.items():
        last = np.array([run.accuracy[-1] for run in runs])
        ranges = [common.interval(np.concatenate([run.norms[layer] for run in runs])) for layer in layers]
        violation = "" if label == "none" else f"{max(run.violation for run in runs):.0e}"
        rows.append([label, common.spread(last[:, 0]), common.spread(last[:, 1]), *ranges, violation])
    return common.table(rows)


def draw(results: Results, epochs: np.ndarray, title: str, path: Path) -> None:
    """The accuracy curves of every constraint above, the norms of its weights below."""
    blue, orange, grey = "#0072B2", "#D55E00", "#666666"  # distinct to colour-blind eyes as well
    labels, columns = list(results), min(4, len(results))
    rows = -(-len(labels) // columns)
    figure = plt.figure(figsize=(12, 2.7 * rows + 3.4), layout="constrained")
    figure.suptitle(title)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.7 * rows, 3]).ravel()
    axes = upper.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    final = {label: np.array([run.accuracy[-1] for run in runs]) for label, runs in results.items()}
    floor = min(0.78, *(accuracies.mean(0).min() - 0.04 for accuracies in final.values()))
    free = final[labels[0]][:, 1].mean()
    for i, (ax, label) in enumerate(zip(axes, labels, strict=False)):
        curves = np.array([run.accuracy for run in results[label]])
        for j, (name, colour) in enumerate([("train", blue), ("test", orange)]):
            mean, deviation = curves[..., j].mean(0), curves[..., j].std(0)
            ax.plot(epochs, mean, color=colour, lw=1.6, ls="--" if name == "train" else "-", label=name)
            ax.fill_between(epochs, mean - deviation, np.minimum(mean + deviation, 1), color=colour, alpha=0.25, lw=0)
        ax.axhline(free, color=grey, lw=1, ls=":", label="test at the end, none")
        ax.set_title(f"{label}\ntest {common.spread(final[label][:, 1])}", fontsize=10)
        ax.set_ylim(floor, 1.01)
        ax.grid(alpha=0.25)
        if i % columns == 0:
            ax.set_ylabel("accuracy")
        if i + columns >= len(labels):
            ax.set_xlabel("epoch")
            ax.tick_params(labelbottom=True)
    for ax in axes[len(labels) :]:
        ax.set_visible(False)
    axes[0].legend(loc="lower right", fontsize=9)

    left, right = lower.subplots(1, 2, sharey=True)
    jitter = np.random.default_rng(0)
    for i, label in enumerate(labels):
        hidden, output = (
            np.concatenate([run.norms[layer] for run in results[label]]) for layer in ("hidden", "output")
        )
        if np.ptp(hidden) > 1e-3:
            (body,) = left.violinplot(hidden, [i], orientation="horizontal", widths=0.8, showextrema=False)["bodies"]
            body.set(facecolor=blue, alpha=0.4)
            left.plot([hidden.min(), hidden.max()], [i, i], color=blue, lw=1.2, marker="|")
        else:
            left.plot(hidden.mean(), i, color=blue, marker="D", ms=7)
        right.plot(output, i + jitter.uniform(-0.2, 0.2, len(output)), "o", color=blue, alpha=0.5, ms=6, mew=0)
    left.set_yticks(range(len(labels)), labels)
    left.set_ylim(len(labels) - 0.4, -0.6)
    left.set_xlabel("norms of the weights into the hidden units, all seeds")
    right.set_xlabel("norm of the weights into the output unit, one dot per seed")
    right.set_xlim(left=0)
    for ax in (left, right):
        ax.grid(axis="x", alpha=0.25)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = common.parser("moons", __doc__, *NAMES)
    parser.add_argument("--constrain-output", action="store_true", help="constrain the output layer too")
    parser.add_argument("--constrain-bias", action="store_true", help="constrain the biases of constrained layers too")
    parser.add_argument(
        "--radius", nargs="*", type=float, metavar="R", help=f"compare MinMaxNorm(R, R) instead (default: {RADII})"
    )
    parser.add_argument(
        "--metric", choices=["euclidean", "optimizer"], default="euclidean", help="in which norm the nearest point is"
    )
    parser.add_argument("--seeds", type=common.count, help="how often to repeat (default: 10; Keras 3)")
    parser.add_argument("--epochs", type=common.count, default=4000)
    parser.add_argument("--fit", action="store_true", help="Keras: call model.fit as the tutorial does, which is slow")
    args = common.parse(parser, argv, seeds=1, epochs=100)
    if args.fit and args.framework != "keras":
        parser.error("--fit is for --framework keras")
    args.seeds = args.seeds or (3 if args.framework == "keras" else 10)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    train = import_module(f"moons_{args.framework}").train
    constraints = CONSTRAINTS
    if args.radius is not None:
        radii = args.radius or RADII
        constraints = {"none": None} | {f"MinMaxNorm({r:g}, {r:g})": pg.MinMaxNorm(r, r) for r in radii}
    every = max(1, args.epochs // 200)  # 200 points make a curve
    chunks = [every] * (args.epochs // every) + [args.epochs % every] * (args.epochs % every > 0)
    options: dict[str, Any] = {"metric": args.metric} | ({"fit": True} if args.fit else {})

    start, results = time.perf_counter(), {}
    with tqdm(total=len(constraints) * args.seeds * args.epochs, unit="epoch", smoothing=0.02) as bar:
        for label, constraint in constraints.items():
            bar.set_description(label)
            rules = rules_for(constraint, args.framework, args.constrain_output, args.constrain_bias)
            results[label] = [Run(*run) for run in train(moons(), rules, args.seeds, chunks, bar.update, **options)]
    seconds = time.perf_counter() - start

    repeats = f"{args.seeds} seed{'s' * (args.seeds > 1)}"
    print(f"\nTwo moons, {args.framework}, {args.epochs} epochs, mean ± deviation over {repeats}, {seconds:.0f} s.")
    print(f"{TUTORIAL}\n")
    print(table(results, ["hidden", "output"] + ["hidden bias"] * args.constrain_bias))
    draw(
        results,
        np.cumsum(chunks),
        f"Two moons, {args.framework}, {repeats}: accuracy (mean and deviation) and weight norms",
        args.out,
    )
    print(f"\nPicture: {args.out}")


if __name__ == "__main__":
    main()
